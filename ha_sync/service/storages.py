"""External storage in this engine: what both nodes have, the syncs, and what gRPC asks of them.

The Standby tells the Active what it has, and hears what the Active has, every EXCHANGE_S; both show both. Each storage
has a runner of its own, the one that full backups have too, with the storage log. Whether a sync is safe is decided on
the Active from what both told last. Seconds are monotonic.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import grpc

from ha_proto.sync.v1 import control_pb2 as control_pb
from ha_proto.sync.v1 import storage_pb2 as pb
from ha_sync.backup.full.desk import Desk
from ha_sync.backup.full.memory import Memory
from ha_sync.backup.full.runner import FullBackup, Purpose
from ha_sync.backup.full.storages import Plan, StoragePeer, holding_of_both, planned
from ha_sync.backup.full.trees import TreeExaminer
from ha_sync.capture.tree import TreeSource
from ha_sync.config import BackupSettings, TreeSettings
from ha_sync.core.dataset import DatasetName, Report, Role
from ha_sync.core.examine import Depth, Examined, Examiner, Peer, Run
from ha_sync.errors import ConfigFault, HaSyncError, PeerUnreachable, Refused, Retryable, WrongState
from ha_sync.external.fitting import Both, lacks_room, mismatches, refusal, side_by_side, unlike
from ha_sync.external.inventory import Found, Inventory
from ha_sync.external.syncing import Needed, StorageSync
from ha_sync.logs.runs import Kind, RunLog, Trigger
from ha_sync.node import Membership, Node
from ha_sync.pairing.gate import Gate
from ha_sync.service.full_backup import progress_of
from ha_sync.service.peer import PeerLink
from ha_sync.service.status_map import Context, abort
from ha_sync.service.storage_stream import Host, Stream
from ha_sync.service.storage_wire import found_from_wire, found_to_wire
from ha_sync.service.tidings import Trouble

SERVICE = "ha_proto.sync.v1.StorageService"
EXCHANGE_S = 3.0
CALL_S = 5.0
AGAIN_S = 0.1
FRESH_S = 15.0
"""A sync begins on what the other node told at most so long ago."""

PLAN_EVERY_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class _Told:
    """What the other node told last."""

    found: tuple[Found, ...]
    at: float


class Storages:
    """See the module."""

    def __init__(
        self,
        node: Node,
        *,
        link: PeerLink,
        desk: Desk,
        runs: RunLog,
        report: Report,
        membership: Callable[[], Membership | None],
    ) -> None:
        self._node = node
        self._link = link
        self._desk = desk
        self._report = report
        self._membership = membership
        self._settings = {
            item.name: item
            for item in node.settings.datasets
            if isinstance(item, TreeSettings) and item.storage is not None
        }
        self._inventory = Inventory(self._settings.values())
        self._here: tuple[Found, ...] = ()
        self._there: _Told | None = None
        self._news = asyncio.Event()
        self._troubles: dict[str, str] = {}
        self._streams = {name: Stream(node, name) for name in self._settings}
        self._runners = {name: self._runner(item, runs) for name, item in self._settings.items()}

    def _runner(self, settings: TreeSettings, runs: RunLog) -> FullBackup:
        assert settings.storage is not None
        name, stream = settings.name, self._streams[settings.name]
        state_dir = self._node.settings.node.state_dir

        def sync() -> Examiner:
            return StorageSync(name, stream, plan=lambda peer, run: self._needed(name, peer, run), examiner=compare)

        def compare() -> Examiner:
            return _Comparing(settings, stream.book(), self._kinds(name))

        membership = self._membership
        return FullBackup(
            Host(self._node, settings, sync),
            desk=self._desk,
            memory=Memory(os.path.join(state_dir, "storage", f"{name}.json")),
            runs=runs,
            settings=BackupSettings(full="", rate_mib_per_s=settings.storage.rate_mib_per_s),
            report=self._report,
            peer=lambda: found.peer_id if (found := membership()) else "",
            purpose=Purpose(
                words="storage sync",
                kind=Kind.STORAGE_SYNC,
                announced=False,
                hint="ask the Active",
                facts=(("storage", name), ("medium", settings.storage.medium.value)),
                sent=lambda: stream.sent_bytes,
            ),
        )

    # ---- life

    async def run(self) -> None:
        """Until cancelled."""
        if not self._settings:
            return
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, runner in self._runners.items():
                    tasks.create_task(runner.run(), name=f"syncs of {name}")
                tasks.create_task(self._keep_told(), name="exchange about storages")
        finally:
            self._inventory.close()

    async def _keep_told(self) -> None:
        while True:
            self._here = await self._inventory.look()
            self._tell_troubles()
            if self._node.role is Role.STANDBY:
                await self._exchange()
            self._withhold_shared()
            await asyncio.sleep(EXCHANGE_S)

    async def _exchange(self) -> None:
        membership = self._membership()
        if membership is None or not membership.peer_id:
            return
        try:
            async with self._link.connection() as channel:
                call = channel.unary_unary(
                    f"/{SERVICE}/Exchange",
                    request_serializer=pb.StorageExchange.SerializeToString,
                    response_deserializer=pb.StorageExchange.FromString,
                )
                self._heard(await call(self._mine(membership), timeout=CALL_S))
        except HaSyncError:
            pass  # the streams and the watch say why; what was heard grows old

    def _mine(self, membership: Membership) -> pb.StorageExchange:
        return pb.StorageExchange(
            cluster_id=membership.cluster_id, node_id=membership.node_id, storages=map(found_to_wire, self._here)
        )

    def _heard(self, message: pb.StorageExchange) -> None:
        self._there = _Told(found=tuple(map(found_from_wire, message.storages)), at=time.monotonic())
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _withhold_shared(self) -> None:
        """Before anything of it could be sent."""
        for pair in self._pairs():
            source = self._node.ends(DatasetName(pair.name))[1] if pair.name in self._settings else None
            terms = source.terms if isinstance(source, TreeSource) else None
            if isinstance(source, TreeSource) and terms is not None:
                withheld = "shared: both nodes have mounted the same one, nothing is copied" if pair.shared else ""
                if terms.withheld != withheld:
                    terms.withheld = withheld
                    source.rouse()
                    what = "a storage is shared" if withheld else "a storage is shared no more"
                    self._report("info", what, {"storage": pair.name})

    def _tell_troubles(self) -> None:
        now = {found.name: found.trouble for found in self._here}
        for name, trouble in now.items():
            if trouble and self._troubles.get(name, "") != trouble:
                self._report("warning", "a storage cannot be used", {"storage": name, "reason": trouble})
            if not trouble and self._troubles.get(name):
                self._report("info", "a storage can be used again", {"storage": name})
        self._troubles = now

    def troubles(self) -> Iterable[Trouble]:
        """What stands, of those that were asked for."""
        for name, trouble in self._troubles.items():
            source = self._node.ends(DatasetName(name))[1]
            terms = source.terms if isinstance(source, TreeSource) else None
            if trouble and terms is not None and terms.admitted:
                yield "error", "a storage cannot be used", name, {"reason": trouble}

    # ---- the peer

    def handler(self, gate: Gate) -> grpc.GenericRpcHandler[Any, Any]:
        """``Exchange``, to be added to the peer's server."""

        async def exchange(request: pb.StorageExchange, context: Context) -> pb.StorageExchange:
            try:
                gate.authorize(context)
                membership = self._membership()
                if membership is None or request.cluster_id != membership.cluster_id:
                    raise Refused("refused to tell of storages", reason="it is no node of this pair")
                if len(request.storages) > STORAGES_MAX:
                    raise Refused("refused to hear of storages", reason="they are too many")
                self._heard(request)
                return self._mine(membership)
            except HaSyncError as error:
                await abort(context, error)
                raise

        method = grpc.unary_unary_rpc_method_handler(
            exchange,
            request_deserializer=pb.StorageExchange.FromString,
            response_serializer=pb.StorageExchange.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(SERVICE, {"Exchange": method})

    # ---- whether it is safe

    def _pairs(self) -> tuple[Both, ...]:
        return side_by_side(self._here, self._there.found if self._there else ())

    def _pair(self, name: str) -> Both:
        return next((pair for pair in self._pairs() if pair.name == name), Both(name=name, here=None, there=None))

    def _kinds(self, name: str) -> tuple[str, ...]:
        return self._pair(name).kinds

    async def _fresh(self, names: Iterable[str]) -> None:
        """What both nodes have, and of these what it is now. Raises PeerUnreachable."""
        self._here = await self._inventory.look()
        if self._there is None or time.monotonic() - self._there.at > FRESH_S:
            news = self._news
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FRESH_S):
                    await news.wait()
        told = self._there
        if told is None or time.monotonic() - told.at > FRESH_S or not await self._desk.until_connected(FRESH_S):
            raise PeerUnreachable(
                "cannot synchronise storages",
                reason="the other node does not tell what it has",
                hint="`ha-sync status`",
            )
        known = {one.name for one in told.found} & set(names)
        now = {one.name: one for one in await asyncio.gather(*map(self._asked, known))}
        self._there = replace(told, found=tuple(now.get(one.name, one) for one in told.found))
        self._withhold_shared()

    async def _asked(self, name: str) -> Found:
        """The other node's storage now."""
        before = next(one for one in self._there.found if one.name == name) if self._there else None
        assert before is not None
        question = pb.StorageQuestion(found=True).SerializeToString()
        trouble = "no answer"
        try:
            async with asyncio.timeout(CALL_S):
                while True:
                    try:
                        chunks = [chunk async for chunk in self._desk.ask(DatasetName(name), question)]
                        return found_from_wire(pb.FoundStorage.FromString(b"".join(chunks)))
                    except Retryable as error:  # its engine has just begun, or its line was cut
                        trouble = error.reason or trouble
                        await asyncio.sleep(AGAIN_S)
        except TimeoutError:
            return replace(before, trouble=f"{trouble} within {CALL_S:g} s")

    async def _plan(
        self, name: DatasetName, peer: Peer, *, told: Callable[[Plan], None] = lambda _: None, run: Run | None = None
    ) -> Plan:
        settings = self._settings[name]
        return await planned(settings, self._streams[name].book(), peer, kinds=self._kinds(name), told=told, run=run)

    async def _needed(self, name: DatasetName, peer: Peer, run: Run) -> Needed:
        """Raises Refused: nothing of it was sent yet."""
        await self._fresh((name,))
        if reason := refusal(self._pair(name)):
            raise Refused("will not synchronise", subject=name, reason=reason)
        plan = await self._plan(name, peer, run=run)
        there = self._pair(name).there
        assert there is not None
        if reason := lacks_room(send_bytes=plan.send_bytes, send_objects=plan.send_objects, there=there):
            raise Refused("will not synchronise", subject=name, reason=reason)
        return Needed(objects=plan.send_objects, content_bytes=plan.send_bytes)

    # ---- this node's tools

    async def listed(self, _request: control_pb.ListStoragesRequest) -> control_pb.ListStoragesResponse:
        """Both nodes side by side."""
        self._here = await self._inventory.look()
        reports = {item.settings.name: item.report for item in self._node.datasets()}
        age_s = time.monotonic() - self._there.at if self._there else None
        pairs = self._pairs()
        answer = control_pb.ListStoragesResponse(peer_age_s=age_s)
        for pair in pairs:
            report = reports.get(DatasetName(pair.name))
            answer.storages.append(
                control_pb.StoragePair(
                    name=pair.name,
                    here=found_to_wire(pair.here) if pair.here else None,
                    there=found_to_wire(pair.there) if pair.there else None,
                    state=report.state.value if report else "",
                    reason=report.reason if report else "",
                    synced=self._is_synced(pair.name),
                    shared=pair.shared,
                    mismatches=unlike(pair) if age_s is not None else (),
                    sync=self._progress(pair.name) if pair.name in self._runners else None,
                )
            )
        if age_s is not None:
            answer.mismatches.extend(mismatches(pairs))
        return answer

    def _is_synced(self, name: str) -> bool:
        if name not in self._settings:
            return False
        _, source, sink = self._node.ends(DatasetName(name))
        if isinstance(source, TreeSource):
            return source.terms is not None and source.terms.admitted
        return sink is not None and sink.report().consistent

    async def plan(self, request: control_pb.PlanStorageRequest) -> AsyncGenerator[control_pb.StoragePlan, None]:
        """What a sync would do; changes nothing."""
        self._must_be_active()
        name = self._named(request.name)
        await self._fresh((name,))
        reason = refusal(self._pair(name))
        if reason:
            yield control_pb.StoragePlan(name=name, complete=True, refusal=reason)
            return
        now = Plan()

        def told(plan: Plan) -> None:
            nonlocal now
            now = plan

        planning = asyncio.ensure_future(self._plan(name, self._desk.peer(name), told=told))
        try:
            while not planning.done():
                await asyncio.wait({planning}, timeout=PLAN_EVERY_S)
                if not planning.done():
                    yield control_pb.StoragePlan(name=name, looked_at=now.looked_at)
            yield self._shown(name, planning.result())
        finally:
            planning.cancel()
            await asyncio.gather(planning, return_exceptions=True)

    def _shown(self, name: str, plan: Plan) -> control_pb.StoragePlan:
        there = self._pair(name).there
        assert there is not None
        return control_pb.StoragePlan(
            name=name,
            complete=True,
            looked_at=plan.looked_at,
            send_objects=plan.send_objects,
            send_bytes=plan.send_bytes,
            change_objects=plan.change_objects,
            delete_objects=plan.delete_objects,
            left_out=plan.left_out,
            room_bytes=there.free_bytes,
            refusal=lacks_room(send_bytes=plan.send_bytes, send_objects=plan.send_objects, there=there),
            lines=[
                control_pb.StoragePlanLine(
                    what=line.what, path=os.fsencode(line.path).decode(errors="backslashreplace") or ".",
                    bytes=line.size, detail=line.detail,
                )
                for line in plan.lines
            ],
        )  # fmt: skip

    async def sync(self, request: control_pb.SyncStorageRequest) -> control_pb.SyncStorageResponse:
        """Begins or joins. Raises Refused where it would not be safe."""
        self._must_be_active()
        depths = {depth.value: depth for depth in Depth}
        verify = request.verify or Depth.METADATA.value
        if verify not in depths:
            raise ConfigFault("the call", (f"verify: {verify!r} is none of {', '.join(depths)}",))
        names = [self._named(name) for name in request.names] or list(self._settings)
        if not names:
            raise WrongState("cannot synchronise", reason="no [[storage]] is configured")
        left_out: list[str] = []
        if not all(self._runners[name].running for name in names):
            await self._fresh(names)
            names, left_out = self._fitting(names, every=not request.names, allow=request.allow_mismatch)
        answer = control_pb.SyncStorageResponse(left_out=left_out)
        for name in names:
            joined = await self._runners[name].start(depths[verify], Trigger.MANUAL)
            answer.syncs.append(self._progress(name, joined=joined))
        return answer

    def _fitting(self, names: list[DatasetName], *, every: bool, allow: bool) -> tuple[list[DatasetName], list[str]]:
        """Those that may begin, and why the others may not. Raises Refused."""
        pairs = self._pairs()
        reasons = {name: reason for name in names if (reason := refusal(self._pair(name)))}
        shared = {name for name in reasons if every and self._pair(name).shared}
        said = [f"{name}: {reason}" for name, reason in reasons.items()]
        differing = mismatches(pair for pair in pairs if not pair.shared)
        if not allow and (differing or reasons.keys() - shared):
            told = [*differing, *(line for line in said if line not in differing)]
            left = ", ".join(reasons) or "nothing"
            raise Refused(
                "will not synchronise storages",
                reason="; ".join(dict.fromkeys(told)),
                hint=f"--allow-mismatch goes on and leaves out: {left}",
            )
        if reasons and not every:
            raise Refused("will not synchronise", reason="; ".join(said))
        return [name for name in names if name not in reasons], said

    def _named(self, name: str) -> DatasetName:
        if name not in self._settings:
            known = ", ".join(self._settings) or "none"
            raise ConfigFault("the command line", (f"storage: {name!r} is not configured here; there are: {known}",))
        return DatasetName(name)

    def _must_be_active(self) -> None:
        if self._node.role is not Role.ACTIVE:
            raise WrongState("cannot synchronise storages", reason="this node is not the Active", hint="ask the Active")

    async def watch(self, request: control_pb.WatchStorageRequest) -> AsyncIterator[control_pb.StorageProgress]:
        """See the protocol."""
        name = self._named(request.name)
        async for standing in self._runners[name].watch(request.run):
            yield control_pb.StorageProgress(name=name, progress=progress_of(standing))

    async def control(self, request: control_pb.ControlStorageRequest) -> control_pb.StorageProgress:
        """Pause, resume, cancel."""
        runner = self._runners[self._named(request.name)]
        match request.action:
            case "pause":
                await runner.pause()
            case "resume":
                await runner.resume()
            case "cancel":
                await runner.cancel("by an operator")
            case other:
                raise ConfigFault("the call", (f"action: {other!r} is none of pause, resume, cancel",))
        return self._progress(request.name)

    def _progress(self, name: str, *, joined: bool = False) -> control_pb.StorageProgress:
        standing = self._runners[DatasetName(name)].standing()
        return control_pb.StorageProgress(name=name, joined=joined, progress=progress_of(standing))


class _Comparing:
    """A tree's examiner, whose questions are those of a storage."""

    def __init__(self, settings: TreeSettings, book: TreeSource, kinds: tuple[str, ...]) -> None:
        self._examiner = TreeExaminer(settings, book, holding=holding_of_both(kinds))
        self._kinds = kinds

    async def examine(self, peer: Peer, run: Run) -> Examined:
        return await self._examiner.examine(StoragePeer(peer, self._kinds), run)


STORAGES_MAX = 64
