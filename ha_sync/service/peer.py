"""The way to the other node: one TLS connection a stream, and a watch over what it replicates.

Each stream has a connection of its own, so a full sync never stands in front of a committed row. A peer that is frozen
is noticed by unanswered HTTP/2 pings within KEEPALIVE_S + KEEPALIVE_TIMEOUT_S, as is a cable that is dead; where an
agent hears the beats, it says so earlier. Which path is taken, and when another: ``core.paths``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace

import grpc

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.config.settings import DEFAULT_PEER_PORT
from ha_sync.core.dataset import DatasetName, Report, Role
from ha_sync.core.paths import Heard, Paths, PeerPath, Why, at_port, host_of
from ha_sync.core.position import Epoch
from ha_sync.errors import HaSyncError, PeerUnreachable, Refused, WrongState
from ha_sync.node import Node
from ha_sync.pairing.diagnosis import diagnose
from ha_sync.pairing.identity import Peer
from ha_sync.pairing.keyring import CHANNEL_OPTIONS, Keyring
from ha_sync.service.replication import SERVICE
from ha_sync.service.status_map import error_from
from ha_sync.stream.subscriber import Call, Dial
from ha_sync.stream.wire import MESSAGE_MAX

log = logging.getLogger(__name__)

KEEPALIVE_S = 3
KEEPALIVE_TIMEOUT_S = 4
CONNECT_S = 4.0
QUIET_LOOK_S = 0.25
DESCRIBE_EVERY_S = 2.0
DIAGNOSE_AFTER = 2
DIAGNOSE_EVERY_S = 5.0
"""Failed attempts in a row before the reason is looked for by hand, and how often at the most."""

MOVED = "the stream moved to another path"
EXAMINE = "/ha_proto.sync.v1.ExamineService/Examine"
PATH_FAILED = "a path to the other node does not work"

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


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentPath:
    """A path as the agent tells it."""

    name: str
    host: str
    heard: Heard


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A connection that stays open from one look to the next."""

    path: PeerPath
    channel: grpc.aio.Channel
    keyring: Keyring | None
    stack: contextlib.AsyncExitStack


class PeerLink:
    """Dials the peer on the best of its paths: those of the agent, then what is configured or was told at pairing.

    Whoever answers must say that it is the paired node: by TLS alone it is one that has a certificate of this pair.
    """

    def __init__(
        self,
        keyring: Callable[[], Keyring | None],
        *,
        configured: tuple[str, ...],
        report: Report,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._keyring = keyring
        self._configured = configured
        self._report = report
        self._clock = clock
        self._directed: tuple[AgentPath, ...] = ()
        self._paths = Paths()
        self._told: set[str] = set()  # addresses of which it was reported that they fail
        self._news = asyncio.Event()  # set and replaced whenever a stream may have to move
        self._held = ""
        self._kept: _Kept | None = None
        self._failures = 0
        self._diagnosis = ""
        self._diagnosed_at = float("-inf")

    # ---- what is known

    def direct(self, paths: tuple[AgentPath, ...]) -> None:
        """The agent's word on the paths, the best first."""
        self._directed = paths
        self._refresh()
        self._announce()

    def hold(self, reason: str) -> None:
        """The agent's word that nothing may be streamed from the other node, and why; "": it may."""
        if reason != self._held:
            self._held = reason
            self._announce()

    def agent_lost(self) -> None:
        """Nobody listens to the beats any more: what was heard of the paths is old."""
        self.direct(tuple(replace(path, heard=Heard.UNKNOWN) for path in self._directed))

    @property
    def address(self) -> str:
        """host:port that is used, or would be tried first; "" while there is no peer."""
        now = self._refresh()
        used, order = self._paths.used, self._paths.order(now=now)
        return used.address if used else order[0].address if order else ""

    def shown(self) -> tuple[tuple[PeerPath, str], ...]:
        """Every path with its state, the best first."""
        now = self._refresh()
        return tuple((path, self._paths.state_of(path, now=now)) for path in self._paths.known)

    def path_name(self, address: str) -> str:
        """Of the path at whose other end the peer has this address; "" where the agent names none."""
        return self._paths.name_of(host_of(address))

    def rest(self) -> None:
        """This node has no streams to the peer."""
        self._paths.rest()

    def _refresh(self) -> float:
        """Takes in what is configured and known at this moment, which is returned."""
        now = self._clock()
        keyring = self._keyring()
        peer = keyring.identity.peer if keyring else None
        plain = self._configured or ((peer.address,) if peer and peer.address else ())
        directed = self._directed if plain or peer else ()
        port = plain[0].rpartition(":")[2] if plain else str(DEFAULT_PEER_PORT)
        named = [PeerPath(name=one.name, address=at_port(one.host, port), heard=one.heard) for one in directed]
        self._paths.know((*named, *(PeerPath(address=address) for address in plain)), now=now)
        return now

    def _announce(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    # ---- streams

    def dial(self, _dataset: DatasetName) -> Dial:
        """For a subscriber."""
        return self._call

    @contextlib.asynccontextmanager
    async def _call(self, method: str = f"/{SERVICE}/Replicate") -> AsyncIterator[Call]:
        if self._held:
            raise WrongState("the stream is held", reason=self._held)
        async with self._reached() as (path, channel, _):
            call = channel.stream_stream(method, _same, _same)(None)
            try:
                yield _Bytes(call, path, self)
            except grpc.aio.AioRpcError as error:
                raise _meaning(error, path) from error
            finally:
                call.cancel()

    def dial_examination(self) -> contextlib.AbstractAsyncContextManager[Call]:
        """For the full backup's questions: on a connection of its own, beside the streams."""
        return self._call(EXAMINE)

    def taken(self, path: PeerPath) -> None:
        """A stream goes there: the other node has answered it."""
        moved = self._paths.taken(path, now=self._clock())
        if moved is not None:
            back = moved.why is Why.BETTER
            fields: dict[str, object] = {"before": str(moved.before), "after": str(moved.after)}
            self._report("info" if back else "warning", MOVED, {**fields, "reason": moved.why.value})
            self._announce()

    async def time_to_leave(self, path: PeerPath, quiet: Callable[[], bool]) -> str:
        """Returns, with the reason, when a stream on that path has to go by another."""
        while True:
            news = self._news
            if self._held:
                return f"held: {self._held}"
            lost = self._paths.must_leave(path.address, now=self._clock())
            if lost is not None:
                return f"{path}: {lost.value}"
            better = self._paths.better(path.address, now=self._clock())
            if better is not None and quiet():
                return f"{path}: {Why.BETTER.value}"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(None if better is None else QUIET_LOOK_S):
                    await news.wait()

    # ---- looking

    async def describe(self) -> pb.DescribeResponse:
        """What the peer replicates, and in which role it is."""
        async with self._reached() as (_, _, answer):
            return answer

    async def look(self) -> pb.DescribeResponse:
        """As ``describe``, on a connection that is kept: a handshake costs each node milliseconds. One at a time."""
        began = self._clock()
        if (kept := self._kept) is not None:
            try:
                return await self._look_again(kept)
            except HaSyncError:
                await self.look_away()
                if (now := self._clock()) - began >= CONNECT_S:
                    self._paths.failed(kept.path.address, now=now)
                    raise  # no answer; a peer that has begun anew closes the connection, and is dialled at once
        async with contextlib.AsyncExitStack() as stack:
            path, channel, answer = await stack.enter_async_context(self._reached())
            self._kept = _Kept(path=path, channel=channel, keyring=self._keyring(), stack=stack.pop_all())
        return answer

    async def _look_again(self, kept: _Kept) -> pb.DescribeResponse:
        order, keyring = self._paths.order(now=self._refresh()), self._keyring()
        if keyring is None or keyring is not kept.keyring or kept.path not in order[:1]:
            raise PeerUnreachable("cannot look at the other node", reason="another path or key is to be used")
        answer = await _greet(kept.channel, kept.path, keyring.identity.peer)
        self._answered(kept.path)
        return answer

    async def look_away(self) -> None:
        """Closes the connection that was kept."""
        kept, self._kept = self._kept, None
        if kept is not None:
            await kept.stack.aclose()

    async def look_for_better(self) -> None:
        """Whether the peer answers on the paths that would be better than the one in use; tells the streams."""
        used = self._paths.used
        if used is None:
            return
        for path in self._paths.preferred(used.address):
            with contextlib.suppress(HaSyncError):
                async with self._open(path):
                    self._answered(path)
        if self._paths.better(used.address, now=self._clock()) is not None:
            self._announce()

    # ---- connections

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[grpc.aio.Channel]:
        """For a call of another service of the peer port. gRPC's errors leave as ours."""
        async with self._reached() as (path, channel, _):
            try:
                yield channel
            except grpc.aio.AioRpcError as error:
                raise _meaning(error, path) from error

    @contextlib.asynccontextmanager
    async def _reached(self) -> AsyncIterator[tuple[PeerPath, grpc.aio.Channel, pb.DescribeResponse]]:
        """A connection by the first path on which the peer answers, and what it says."""
        order = self._paths.order(now=self._refresh())
        if not order:
            raise PeerUnreachable(
                "cannot reach the other node",
                reason="its address is not known" if self._keyring() else "this node is not paired",
                hint="set `peer` in [node], or join the pair",
            )
        failures: list[tuple[PeerPath, HaSyncError]] = []
        for path in order:
            async with contextlib.AsyncExitStack() as stack:
                try:
                    channel, answer = await stack.enter_async_context(self._open(path))
                except HaSyncError as error:
                    failures.append((path, error))
                    continue
                self._answered(path)
                self._tell_of(failures)
                yield path, channel, answer
                return
        raise await self._in_words(failures)

    @contextlib.asynccontextmanager
    async def _open(self, path: PeerPath) -> AsyncIterator[tuple[grpc.aio.Channel, pb.DescribeResponse]]:
        """A connection by this path, with the peer at its end. Raises HaSyncError after the path was marked."""
        keyring = self._keyring()
        if keyring is None:
            raise PeerUnreachable("cannot reach the other node", reason="this node is not paired")
        channel = grpc.aio.secure_channel(
            path.address, keyring.channel_credentials(), options=(*STREAM_OPTIONS, *CHANNEL_OPTIONS)
        )
        try:
            try:
                answer = await _greet(channel, path, keyring.identity.peer)
            except HaSyncError:
                self._paths.failed(path.address, now=self._clock())
                raise
            yield channel, answer
        finally:
            await channel.close(None)

    def _answered(self, path: PeerPath) -> None:
        self._paths.answered(path.address)
        self._told.discard(path.address)
        self._failures, self._diagnosis = 0, ""

    def _tell_of(self, failures: list[tuple[PeerPath, HaSyncError]]) -> None:
        """Another path works, so this is about the path; once until it works again."""
        for path, error in failures:
            if path.heard is not Heard.SILENT and path.address not in self._told:
                self._told.add(path.address)
                self._report("warning", PATH_FAILED, {"path": str(path), "reason": error.sentence()})

    async def _in_words(self, failures: list[tuple[PeerPath, HaSyncError]]) -> HaSyncError:
        """What to say where no path works: a refusal is worth more than a silence."""
        path, error = next((one for one in failures if not isinstance(one[1], PeerUnreachable)), failures[0])
        keyring = self._keyring()
        if not isinstance(error, PeerUnreachable) or keyring is None:
            return error
        # gRPC says only "socket closed" to whom TLS refused: after a few failures the reason is looked for by hand.
        self._failures += 1
        due = self._clock() - self._diagnosed_at >= DIAGNOSE_EVERY_S
        if self._failures >= DIAGNOSE_AFTER and due:
            self._diagnosed_at = self._clock()
            self._diagnosis = await diagnose(path.address, keyring.identity)
        if self._diagnosis:
            return PeerUnreachable(error.attempted, subject=error.subject, reason=self._diagnosis)
        return error


async def _greet(channel: grpc.aio.Channel, path: PeerPath, peer: Peer | None) -> pb.DescribeResponse:
    method = channel.unary_unary(
        f"/{SERVICE}/Describe",
        request_serializer=pb.DescribeRequest.SerializeToString,
        response_deserializer=pb.DescribeResponse.FromString,
    )
    try:
        answer: pb.DescribeResponse = await method(pb.DescribeRequest(), timeout=CONNECT_S)
    except grpc.aio.AioRpcError as error:
        raise _meaning(error, path) from error
    if peer is not None and answer.node_id != peer.node_id:
        raise Refused(
            "refused the node at",
            subject=path.address,
            reason=f"it is node {answer.node_id}, this one is paired with {peer.node_id}",
            hint="see `peer` in sync.toml and [[path]] in ha.toml",
        )
    return answer


def _meaning(error: grpc.aio.AioRpcError, path: PeerPath) -> HaSyncError:
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        reason = f"no answer within {CONNECT_S:g} s"
    elif error.code() is grpc.StatusCode.UNAVAILABLE:
        reason = error.details() or ""
    else:
        return error_from(error)
    return PeerUnreachable("cannot reach the other node at", subject=path.address, reason=reason)


def _same(data: bytes) -> bytes:
    return data


class _Bytes:
    """A call of bytes whose end is None."""

    def __init__(self, call: grpc.aio.StreamStreamCall[bytes, bytes], path: PeerPath, link: PeerLink) -> None:
        self._call = call
        self._path = path
        self._link = link
        self._answers = aiter(call)
        self._answered = False
        self.address = path.address

    async def read(self) -> bytes | None:
        data = await anext(self._answers, None)
        if data is not None and not self._answered:
            self._answered = True
            self._link.taken(self._path)
        return data

    async def write(self, data: bytes) -> None:
        try:
            await self._call.write(data)
        except asyncio.InvalidStateError as error:  # the call is over; its status is read by the reader
            raise PeerUnreachable("lost the active", reason="the call ended") from error

    async def time_to_leave(self, quiet: Callable[[], bool]) -> str:
        return await self._link.time_to_leave(self._path, quiet)


class PeerWatch:
    """As Standby: asks every few seconds what the Active replicates, and says what only one of the nodes has."""

    def __init__(
        self,
        node: Node,
        link: PeerLink,
        report: Report,
        *,
        on_described: Callable[[pb.DescribeResponse], Awaitable[None]],
    ) -> None:
        """``on_described`` is told each answer; it raises nothing."""
        self._node = node
        self._link = link
        self._report = report
        self._on_described = on_described
        self.connected = False
        self.reason = ""
        self._seen: tuple[str, ...] = ()
        self._told: tuple[str, ...] = ()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                if self._node.role is not Role.STANDBY:
                    self._link.rest()
                if self._node.role is Role.STANDBY or self._link.address:
                    await self._look()
                    await self._link.look_for_better()
                await asyncio.sleep(DESCRIBE_EVERY_S)
        finally:
            await self._link.look_away()

    async def _look(self) -> None:
        try:
            theirs = await self._link.look()
        except HaSyncError as error:
            self.connected, self.reason = False, error.sentence()
            return
        self.connected, self.reason = True, ""
        await self._on_described(theirs)
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
