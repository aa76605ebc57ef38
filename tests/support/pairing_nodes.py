"""A peer port as the engine makes it, with a method behind the gate, and a clock that a test can set."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from ha_proto.sync.v1 import life_pb2, pairing_pb2_grpc
from ha_sync.core.dataset import Role
from ha_sync.core.position import Epoch
from ha_sync.errors import HaSyncError
from ha_sync.pairing.clock import Moment, read_clock
from ha_sync.pairing.gate import Gate, Refusals
from ha_sync.pairing.identity import Identity
from ha_sync.pairing.joining import Joined, join
from ha_sync.pairing.keyring import CHANNEL_OPTIONS, Keyring
from ha_sync.pairing.servicer import PairingServicer

METHOD = "/ha_proto.sync.v1.ReplicationService/Replicate"


class SetClock:
    """Time stands still until it is moved."""

    def __init__(self) -> None:
        self.moment = read_clock()

    def __call__(self) -> Moment:
        return self.moment

    def pass_s(self, seconds: float) -> None:
        self.moment = Moment(
            boot_id=self.moment.boot_id,
            boot_s=self.moment.boot_s + seconds,
            unix_s=self.moment.unix_s + seconds,
        )

    def set_wall(self, unix_s: float) -> None:
        self.moment = Moment(boot_id=self.moment.boot_id, boot_s=self.moment.boot_s, unix_s=unix_s)

    def reboot(self) -> None:
        self.moment = Moment(boot_id="another", boot_s=12.0, unix_s=self.moment.unix_s)


class PeerPort:
    """One node's port; what its event log was told stands in ``events``."""

    def __init__(self, identity: Identity, clock: SetClock) -> None:
        self.clock = clock
        self.events: list[tuple[str, str, dict[str, object]]] = []
        self.keyring = Keyring(identity, clock=clock)
        self.gate = Gate(self.keyring, Refusals(self.report, monotonic=lambda: clock().boot_s))
        self.role = Role.ACTIVE
        self.decided = True
        self.epoch = Epoch(42)
        self.address = ""
        self.facts = life_pb2.NodeFacts()
        self.shared: list[life_pb2.Document] = []
        self.callers: list[str] = []

    def report(self, severity: str, what: str, fields: dict[str, object]) -> None:
        self.events.append((severity, what, fields))

    def refusals(self) -> list[str]:
        return [str(fields["reason"]) for _, what, fields in self.events if what == "connection refused"]

    def token(self, *, lifetime_s: float = 0.0) -> str:
        made = self.keyring.invitations.create(self.keyring.identity, lifetime_s=lifetime_s, address=self.address)
        return made.text

    def servicer(self) -> PairingServicer:
        return PairingServicer(
            self.keyring,
            self.gate,
            self.report,
            epoch=lambda: self.epoch,
            role=lambda: self.role,
            decided=lambda: self.decided,
            facts=self._facts,
            shared=self._shared,
        )

    async def _facts(self) -> life_pb2.NodeFacts:
        plain = life_pb2.NodeFacts(unix_s=time.time(), state_free_bytes=1 << 40)
        plain.MergeFrom(self.facts)
        return plain

    async def _shared(self) -> list[life_pb2.Document]:
        return self.shared

    async def replicate(self, _request: bytes, context: Any) -> bytes:
        try:
            caller = self.gate.authorize(context)
        except HaSyncError as refused:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, refused.sentence())
            raise
        self.callers.append(caller.member.node_id)
        return b"welcome"


class _Replicate(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, port: PeerPort) -> None:
        self._port = port

    def service(self, details: Any) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._port.replicate) if details.method == METHOD else None


@contextlib.asynccontextmanager
async def serving(identity: Identity, clock: SetClock | None = None) -> AsyncIterator[PeerPort]:
    """The port answers inside."""
    port = PeerPort(identity, clock or SetClock())
    server = grpc.aio.server()
    pairing_pb2_grpc.add_PairingServiceServicer_to_server(port.servicer(), server)
    server.add_generic_rpc_handlers((_Replicate(port),))
    number = server.add_secure_port("127.0.0.1:0", port.keyring.server_credentials())
    port.address = f"127.0.0.1:{number}"
    await server.start()
    try:
        yield port
    finally:
        await server.stop(0)


async def call(address: str, credentials: grpc.ChannelCredentials) -> bytes:
    """Calls the method behind the gate over a connection of its own. Raises ``grpc.aio.AioRpcError``."""
    async with grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS) as channel:
        answer: bytes = await channel.unary_unary(METHOD)(b"", timeout=10)
        return answer


def join_as(token: str, state_dir: str, **wishes: Any) -> Joined:
    """Joins with what a test does not care about filled in. Blocking."""
    facts: dict[str, Any] = {
        "address": "127.0.0.1:9",
        "node_name": "second",
        "has_business_data": tuple,
        "exporter": str,
    }
    return join(token, state_dir, **(facts | wishes))
