"""An agent's socket with nothing behind it but what the test says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_proto.agent.v1 import agent_pb2_grpc
from tests.support.scripted import Scripted, listening, streaming, unary

SWITCH = pb.SwitchRecord(
    id="ab12",
    begin_unix_s=1_700_000_000.5,
    end_unix_s=1_700_000_002.125,
    trigger="planned",
    result="done",
    epoch=8,
    from_role="standby",
    to_role="active",
    phases_s={"services": 1.2, "address": 0.31, "detect": 0.0, "drain": 0.5},
    health={"process:asterisk": "good"},
    peer_health={"process:asterisk": "gone pid 12"},
    positions={"cdr": "8/ab/120"},
    took_s=1.625,
)

STATUS = pb.AgentStatus(
    node="pbx-a",
    station_type="primary",
    role="active",
    phase="active",
    epoch=8,
    cluster_ip="192.168.129.53",
    holder="this node",
    holds=True,
    lease_left_s=4.25,
    ready=True,
    paths=[
        pb.PathStatus(name="lan", heard_age_s=0.05, peer_heard_age_s=0.1, state="both"),
        pb.PathStatus(name="cable", state="lost"),
    ],
    probes=[
        pb.ProbeStatus(name="process:asterisk", state="good", switches=True),
        pb.ProbeStatus(name="fxo:3", state="bad", detail="alarm RED"),
        pb.ProbeStatus(name="link:eth0", state="good"),
    ],
    alarms=["path lost: cable"],
    last_switch=SWITCH,
    peer_role="standby",
    peer_epoch=8,
    engine_attached=True,
)


class FakeAgent(Scripted, agent_pb2_grpc.AgentServiceServicer):
    """Answers as it was told to and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.answers |= {
            "GetStatus": STATUS,
            "CancelSwitch": pb.CancelSwitchResponse(),
            "SetMaintenance": pb.SetMaintenanceResponse(),
            "ReleaseHold": pb.ReleaseHoldResponse(),
            "DeclareSingle": pb.DeclareSingleResponse(),
        }

    GetStatus = unary("GetStatus")
    Switch = unary("Switch")
    CancelSwitch = unary("CancelSwitch")
    SetMaintenance = unary("SetMaintenance")
    ReleaseHold = unary("ReleaseHold")
    DeclareSingle = unary("DeclareSingle")
    ListAlarms = unary("ListAlarms")
    TestAlarm = unary("TestAlarm")
    ListSwitches = streaming("ListSwitches")
    ListEvents = streaming("ListEvents")


@contextmanager
def fake_agent(path: str) -> Iterator[FakeAgent]:
    """Listens at the unix socket ``path``."""
    fake = FakeAgent()
    with listening(fake, agent_pb2_grpc.add_AgentServiceServicer_to_server, path):
        yield fake
