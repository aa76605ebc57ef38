"""An engine's control socket with nothing behind it but what the test says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ha_proto.sync.v1 import control_pb2 as pb
from ha_proto.sync.v1 import control_pb2_grpc
from tests.support.scripted import Scripted, listening, streaming, unary

STATUS = pb.Status(
    node_id="n-1",
    cluster_id="c-1",
    role="active",
    epoch=2**40,
    pair="pair",
    version="0.1.0",
    uptime_s=3725,
    peer=pb.Peer(
        node_id="n-2",
        address="127.0.0.3:9527",
        connected=False,
        reason="wrong cluster",
        paths=[
            pb.PeerPath(name="cable", address="127.0.0.3:9527", state="heard", used=True),
            pb.PeerPath(address="127.0.0.4:9527", state="unknown"),
        ],
    ),
    datasets=[
        pb.Dataset(
            name="cdr",
            kind="sqlite",
            method="rows: WAL",
            state="streaming",
            position=pb.PositionValue(epoch=4, incarnation="ab", sequence=120),
            acknowledged=pb.PositionValue(epoch=4, incarnation="ab", sequence=118),
            backlog=2,
            consistent=True,
            lag=pb.Lag(
                p50_ms=2.25,
                p99_ms=9.75,
                samples=100,
                buckets=[pb.LagBucket(at_most_ms=2.5, count=80), pb.LagBucket(at_most_ms=10, count=100)],
                measured=101,
                sum_ms=512,
            ),
            counts={"copies_rejected": 20, "checks": 3, "none": 0},
            stream_path="cable",
            stream_address="127.0.0.3:40312",
        ),
        pb.Dataset(name="voicemail", kind="tree", state="halted", reason="the root is empty", consistent=False),
    ],
    notices=["backup: kept"],
)


class FakeEngine(Scripted, control_pb2_grpc.ControlServiceServicer):
    """Answers as it was told to and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.answers["GetStatus"] = STATUS

    GetStatus = unary("GetStatus")
    WaitReplicated = unary("WaitReplicated")
    SetRole = unary("SetRole")
    Resume = unary("Resume")
    ListDivergences = unary("ListDivergences")
    ListStorages = unary("ListStorages")
    Attach = unary("Attach")
    Detach = unary("Detach")
    ExportPackage = streaming("ExportPackage")
    VerifyPackage = streaming("VerifyPackage")
    RestorePackage = streaming("RestorePackage")
    ListEvents = streaming("ListEvents")
    ListRuns = streaming("ListRuns")
    ListFindings = streaming("ListFindings")


@contextmanager
def fake_engine(path: str) -> Iterator[FakeEngine]:
    """Listens at the unix socket ``path``."""
    fake = FakeEngine()
    with listening(fake, control_pb2_grpc.add_ControlServiceServicer_to_server, path):
        yield fake
