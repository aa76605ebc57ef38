"""The way to the other node: one TLS connection a stream, and a watch over what it replicates.

Each stream has a connection of its own, so a full sync never stands in front of a committed row. A peer that is frozen
is noticed by unanswered HTTP/2 pings within KEEPALIVE_S + KEEPALIVE_TIMEOUT_S.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

import grpc

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.core.dataset import DatasetName, Report, Role
from ha_sync.core.position import Epoch
from ha_sync.errors import HaSyncError, PeerUnreachable
from ha_sync.node import Node
from ha_sync.pairing.diagnosis import diagnose
from ha_sync.pairing.keyring import CHANNEL_OPTIONS, Keyring
from ha_sync.service.replication import SERVICE
from ha_sync.service.status_map import error_from
from ha_sync.stream.subscriber import Call, Dial
from ha_sync.stream.wire import MESSAGE_MAX

log = logging.getLogger(__name__)

KEEPALIVE_S = 5
KEEPALIVE_TIMEOUT_S = 5
CONNECT_S = 5.0
DESCRIBE_EVERY_S = 2.0
DIAGNOSE_AFTER = 2
DIAGNOSE_EVERY_S = 5.0
"""Failed attempts in a row before the reason is looked for by hand, and how often at the most."""

STREAM_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.max_receive_message_length", MESSAGE_MAX),
    ("grpc.max_send_message_length", MESSAGE_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_S * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_S * 1000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 1000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.enable_retries", 0),
)
"""For both ends of the peer port."""


class PeerLink:
    """Dials the peer at the address that is configured, or that it told when it joined."""

    def __init__(self, keyring: Callable[[], Keyring | None], *, configured: str) -> None:
        self._keyring = keyring
        self._configured = configured
        self._failures = 0
        self._diagnosis = ""
        self._diagnosed_at = float("-inf")

    @property
    def address(self) -> str:
        """host:port, or "" while there is no peer."""
        keyring = self._keyring()
        peer = keyring.identity.peer if keyring else None
        return self._configured or (peer.address if peer else "")

    def _reached(self) -> None:
        self._failures, self._diagnosis = 0, ""

    def dial(self, _dataset: DatasetName) -> Dial:
        """For a subscriber."""
        return self._call

    @contextlib.asynccontextmanager
    async def _call(self) -> AsyncIterator[Call]:
        async with self._channel() as channel:
            call = channel.stream_stream(f"/{SERVICE}/Replicate", _same, _same)(None)
            try:
                yield _Bytes(call, on_answer=self._reached)
            except grpc.aio.AioRpcError as error:
                raise await self._meaning(error) from error
            finally:
                call.cancel()

    async def describe(self) -> pb.DescribeResponse:
        """What the peer replicates, and in which role it is."""
        async with self._channel() as channel:
            method = channel.unary_unary(
                f"/{SERVICE}/Describe",
                request_serializer=pb.DescribeRequest.SerializeToString,
                response_deserializer=pb.DescribeResponse.FromString,
            )
            try:
                answer: pb.DescribeResponse = await method(pb.DescribeRequest(), timeout=CONNECT_S)
            except grpc.aio.AioRpcError as error:
                raise await self._meaning(error) from error
            return answer

    @contextlib.asynccontextmanager
    async def _channel(self) -> AsyncIterator[grpc.aio.Channel]:
        keyring, address = self._keyring(), self.address
        if keyring is None or not address:
            raise PeerUnreachable(
                "cannot reach the other node",
                reason="its address is not known" if keyring else "this node is not paired",
                hint="set `peer` in [node], or join the pair",
            )
        channel = grpc.aio.secure_channel(
            address, keyring.channel_credentials(), options=(*STREAM_OPTIONS, *CHANNEL_OPTIONS)
        )
        try:
            yield channel
        finally:
            await channel.close(None)

    async def _meaning(self, error: grpc.aio.AioRpcError) -> HaSyncError:
        if error.code() is not grpc.StatusCode.UNAVAILABLE:
            return error_from(error)
        # gRPC says only "socket closed" to whom TLS refused: after a few failures the reason is looked for by hand.
        self._failures += 1
        reason, keyring = error.details() or "", self._keyring()
        due = time.monotonic() - self._diagnosed_at >= DIAGNOSE_EVERY_S
        if self._failures >= DIAGNOSE_AFTER and keyring is not None and due:
            self._diagnosed_at = time.monotonic()
            self._diagnosis = await diagnose(self.address, keyring.identity)
        return PeerUnreachable("cannot reach the other node at", subject=self.address, reason=self._diagnosis or reason)


def _same(data: bytes) -> bytes:
    return data


class _Bytes:
    """A call of bytes whose end is None."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes], *, on_answer: Callable[[], None]) -> None:
        self._call = call
        self._on_answer = on_answer
        self._answers = aiter(call)

    async def read(self) -> bytes | None:
        data = await anext(self._answers, None)
        self._on_answer()
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self._call.write(data)
        except asyncio.InvalidStateError as error:  # the call is over; its status is read by the reader
            raise PeerUnreachable("lost the active", reason="the call ended") from error


class PeerWatch:
    """As Standby: asks every few seconds what the Active replicates, and says what only one of the nodes has."""

    def __init__(self, node: Node, link: PeerLink, report: Report) -> None:
        self._node = node
        self._link = link
        self._report = report
        self.connected = False
        self.reason = ""
        self._seen: tuple[str, ...] = ()
        self._told: tuple[str, ...] = ()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if self._node.role is Role.STANDBY or self._link.address:
                await self._look()
            await asyncio.sleep(DESCRIBE_EVERY_S)

    async def _look(self) -> None:
        try:
            theirs = await self._link.describe()
        except HaSyncError as error:
            self.connected, self.reason = False, error.sentence()
            return
        self.connected, self.reason = True, ""
        if theirs.role == Role.ACTIVE.value:
            self._node.active_lacks(
                (DatasetName(item.name) for item in theirs.datasets if item.absent), epoch=Epoch(theirs.epoch)
            )
        faults = self._differences(theirs)
        if faults:
            self.reason = "; ".join(faults)
        # Twice in a row: while the roles change each node learns of it at a moment of its own.
        lasting, self._seen = faults == self._seen, faults
        if lasting and faults != self._told:
            for fault in faults:
                self._report("error", "the nodes do not agree", {"reason": fault})
            self._told = faults

    def _differences(self, theirs: pb.DescribeResponse) -> tuple[str, ...]:
        mine = dict(self._node.describe())
        other = {item.name: item.kind for item in theirs.datasets}
        faults = [f"dataset {name!r} is only here" for name in mine if name not in other]
        faults += [f"dataset {name!r} is only on the other node" for name in other if name not in mine]
        faults += [
            f"dataset {name!r} is of kind {kind} here and {other[name]} there"
            for name, kind in mine.items()
            if name in other and other[name] != kind
        ]
        if self._node.role is not None and theirs.role == self._node.role.value == Role.ACTIVE.value:
            faults.append(f"both nodes are Active (epoch {self._node.epoch} here, {theirs.epoch} there)")
        return tuple(faults)
