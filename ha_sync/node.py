"""The engine of one node: its datasets in the role it has, and the change from one role to the other.

As Active every dataset has an open source, which a subscriber of the peer may read; as Standby every dataset has an
open sink and a subscriber that keeps it fed. A role is taken in this order: the epoch is promised durably, what ran is
stopped, the dead node's work is finished (promotion), the role is stored durably, then the new ends open.
One dataset's fault never stops another. Runs in one event loop; seconds are monotonic.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.apply.database import DatabaseSink
from ha_sync.apply.tree import TreeSink
from ha_sync.capture.database import DatabaseSource
from ha_sync.capture.remembered import acknowledged
from ha_sync.capture.tree import TreeSource
from ha_sync.catalogue.engine import EngineState, admit
from ha_sync.config import DatasetSettings, Settings, TreeSettings
from ha_sync.core.dataset import (
    DatasetName,
    DatasetReport,
    DatasetState,
    Finished,
    Report,
    Role,
    Sink,
    Source,
)
from ha_sync.core.position import NOWHERE, Epoch, Position
from ha_sync.core.standing import DatasetStanding, Standing, standing_of
from ha_sync.divergence.keeper import Keeper
from ha_sync.endpoint import DatasetStatus, Endpoint, Membership, Stillness, remove_hidden, take_tasks
from ha_sync.errors import ConfigFault, Fenced, HaSyncError, OperatorNeeded, Refused, Retryable, WrongState
from ha_sync.stream.full_sync import FullSyncWatch
from ha_sync.stream.gate import Gate
from ha_sync.stream.publisher import Outlet, Publisher
from ha_sync.stream.subscriber import Dial, Subscriber, Subscription
from ha_sync.stream.wire import PROTOCOL

__all__ = ["DatasetStatus", "Membership", "Node", "Stillness"]

log = logging.getLogger(__name__)

MIB = 1024 * 1024
GATE_BYTES = 32 * MIB
GATE_BULK_BYTES = 16 * MIB
"""Under way in all streams together; bulk leaves the rest of it to what is live."""

OPEN_RETRY_S = 5.0
CAPTURE_S = 10.0
"""So long a promotion waits for the captures; the phones wait for it."""

CODEC_THREADS = 2


class Node:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        *,
        state: EngineState,
        membership: Callable[[], Membership | None],
        dial: Callable[[DatasetName], Dial],
        report: Report,
        full_syncs: FullSyncWatch | None = None,
    ) -> None:
        self.settings = settings
        self._state = state
        self._membership = membership
        self._dial = dial
        self._report = report
        self._full_syncs = full_syncs
        self._booted = {item.name for item in settings.datasets}  # not connected as Standby yet
        self._endpoints = {item.name: Endpoint(settings=item) for item in settings.datasets}
        cluster = lambda: found.cluster_id if (found := membership()) else ""  # noqa: E731 - one use
        self.keeper = Keeper.of(settings, cluster=cluster, report=report)
        self._changing = asyncio.Lock()
        self._acknowledged = asyncio.Condition()
        self._executor = ThreadPoolExecutor(CODEC_THREADS, thread_name_prefix="codec")
        self._outlet = Outlet(
            gate=Gate(GATE_BYTES, bulk_budget=GATE_BULK_BYTES), executor=self._executor, settings=settings.stream
        )
        self.role: Role | None = None
        self.epoch = Epoch(0)
        self._turning = False  # the ends are being closed: a subscriber would stay at one that nobody ends
        self.active_at = ""  # what the agent says; else the settings
        self._absent: tuple[Epoch, frozenset[DatasetName]] = (Epoch(0), frozenset())

    # ---- epochs, as the subscribers see them

    @property
    def promised(self) -> Epoch:
        """The highest epoch seen."""
        return self._state.stored.promised

    @property
    def served(self) -> Epoch:
        """The last epoch in which this node was Active."""
        return self._state.stored.served

    async def promise(self, epoch: Epoch) -> None:
        """Stores a higher epoch durably before it returns."""
        if epoch > self.promised:
            await asyncio.to_thread(self._state.promise, epoch)
        if self.role is Role.STANDBY:
            self.epoch = max(self.epoch, epoch)

    # ---- the role

    async def set_role(self, role: Role, epoch: Epoch) -> tuple[tuple[DatasetName, Finished], ...]:
        """Takes a role; returns what a promotion finished. Raises Fenced for an epoch that would go back."""
        async with self._changing:
            if (role, epoch) == (self.role, self.epoch):
                return ()
            admit(self._state.stored, role=role, epoch=epoch)
            await self.keeper.leaving()
            was = self.role or self._state.stored.role
            await asyncio.to_thread(self._state.reserve if role is Role.ACTIVE else self._state.promise, epoch)
            self._turning = True
            try:
                await self._stop_streams()
                finished: tuple[tuple[DatasetName, Finished], ...] = ()
                if role is Role.ACTIVE and was is Role.STANDBY:
                    finished = await self._promote()
                await self._close_ends()
                await asyncio.to_thread(self._state.take, role, epoch)
                self.role, self.epoch = role, epoch
            finally:
                self._turning = False
            self._begin_ends()
            if role is Role.ACTIVE:
                self._booted.clear()
                await self._captures_begun()
                await self.keeper.promoted()
            self._report("info", "role taken", {"role": role.value, "epoch": epoch, "finished": len(finished)})
            return finished

    @contextlib.asynccontextmanager
    async def still(self) -> AsyncIterator[Stillness]:
        """Nobody here touches the Active's data until the block ends; no role is taken meanwhile.

        The captures go on afterwards, but where the data was exchanged: then the role of a new epoch begins them.
        """
        async with self._changing:
            if self.role is not Role.ACTIVE:
                raise WrongState("the data is not this node's to change", reason="this node is not the Active")
            stillness = Stillness()
            self._turning = True
            try:
                await self._stop_streams()
                await self._close_ends()
                yield stillness
            finally:
                self._turning = False
                if not stillness.exchanged:
                    self._begin_ends()

    def _begin_ends(self) -> None:
        for endpoint in self._endpoints.values():
            endpoint.tried.clear()
            endpoint.tasks.append(asyncio.create_task(self._keep_open(endpoint), name=endpoint.settings.name))

    async def _captures_begun(self) -> None:
        """The PBX is started when this returns: a database that a program has open takes no triggers."""
        waiting = [endpoint for endpoint in self._endpoints.values() if not endpoint.tried.is_set()]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CAPTURE_S):
                for endpoint in waiting:
                    await endpoint.tried.wait()
        late = [endpoint.settings.name for endpoint in waiting if not endpoint.tried.is_set()]
        if late:
            self._report("warning", "capture is still starting", {"datasets": ", ".join(late), "seconds": CAPTURE_S})

    async def close(self) -> None:
        """Stops everything; what other programs need (triggers, guards) stays."""
        async with self._changing:
            await self._stop_streams()
            await self._close_ends()
            self._executor.shutdown(wait=False)

    async def _stop_streams(self) -> None:
        tasks = [task for endpoint in self._endpoints.values() for task in take_tasks(endpoint)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _close_ends(self) -> None:
        for endpoint in self._endpoints.values():
            await self._close_end(endpoint)

    async def _promote(self) -> tuple[tuple[DatasetName, Finished], ...]:
        """Datasets at once: each is independent, and the PBX waits for the slowest."""
        ordered = sorted(self._endpoints.values(), key=lambda endpoint: endpoint.settings.priority)
        results = await asyncio.gather(*(self._promote_one(endpoint) for endpoint in ordered))
        return tuple(item for result in results for item in result)

    async def _promote_one(self, endpoint: Endpoint) -> list[tuple[DatasetName, Finished]]:
        name, place = endpoint.settings.name, self._place(endpoint.settings)
        if endpoint.sink is None and await asyncio.to_thread(self.keeper.is_own, endpoint.settings, place):
            return []  # served here before, and nothing was applied since: it lacks only what the other node wrote
        if endpoint.sink is None:  # a restart as Active of a node that was Standby
            sink = self._new_sink(endpoint.settings)
            await self._guarded(endpoint, sink.open(self.promised, active_at=self._active_at()))
            endpoint.sink = sink
        try:
            endpoint.based = endpoint.sink.applied != NOWHERE and endpoint.sink.report().consistent
            done = await endpoint.sink.promote()
        except (HaSyncError, OSError) as error:
            # The phones come first: a dataset that cannot be tidied must not keep the others from serving.
            self._report("error", "promotion of a dataset failed", {"dataset": name, "reason": str(error)})
            return [(name, Finished(what="promotion failed", subject=name, detail=str(error)))]
        for item in done:
            fields: dict[str, object] = {"dataset": name, "subject": item.subject, "detail": item.detail}
            self._report("info", item.what, fields)
        return [(name, item) for item in done]

    # ---- the ends

    async def _keep_open(self, endpoint: Endpoint) -> None:
        """Opens a dataset's end and runs what belongs to it; tries again after a fault."""
        while True:
            try:
                await self._open(endpoint)
                endpoint.tried.set()
                if endpoint.subscriber is None:
                    return
                await endpoint.subscriber.run()
            except HaSyncError as error:
                endpoint.fault = error.sentence()
            except Exception as error:  # a bug in one dataset must not stop the others; it is reported
                log.exception("dataset failed", extra={"dataset": endpoint.settings.name})
                endpoint.fault = f"internal error: {error!r}"
            endpoint.tried.set()
            self._report("error", "dataset failed", {"dataset": endpoint.settings.name, "reason": endpoint.fault})
            await asyncio.sleep(OPEN_RETRY_S)
            await self._close_end(endpoint)

    async def _open(self, endpoint: Endpoint) -> None:
        settings, place = endpoint.settings, self._place(endpoint.settings)
        if self.role is Role.ACTIVE:
            await asyncio.to_thread(self.keeper.serve, settings, place, self.epoch, based=endpoint.based)
            source = self._new_source(endpoint.settings)
            await source.open(self.epoch)
            endpoint.source = source  # only now: nobody may ask an end that is not open
        else:
            # Before any end of ours may touch it: what the new Active has replaces what only this node has.
            await asyncio.to_thread(self.keeper.save, settings, place, acknowledged)
            sink = self._new_sink(endpoint.settings)
            await sink.open(self.epoch, active_at=self._active_at())
            endpoint.sink = sink
            membership = await self._joined()
            endpoint.subscriber = Subscriber(
                endpoint.sink,
                Subscription(
                    dataset=endpoint.settings.name,
                    kind=endpoint.settings.kind.value,
                    cluster_id=membership.cluster_id,
                    node_id=membership.node_id,
                ),
                dial=self._dial(endpoint.settings.name),
                epochs=self,
                executor=self._executor,
                booted=self._booted,
            )
        endpoint.fault = ""

    async def _joined(self) -> Membership:
        while (membership := self._membership()) is None:
            await asyncio.sleep(1.0)
        return membership

    async def _close_end(self, endpoint: Endpoint) -> None:
        ends = (endpoint.source, endpoint.sink)
        # First of all: nobody may ask an end that is being closed how it is.
        endpoint.source = endpoint.sink = endpoint.subscriber = None
        for end in ends:
            if end is not None:
                await self._guarded(endpoint, end.close())

    async def _guarded(self, endpoint: Endpoint, work: Awaitable[None]) -> None:
        try:
            await work
        except (HaSyncError, OSError) as error:
            log.warning("dataset end failed", extra={"dataset": endpoint.settings.name, "reason": str(error)})

    def _new_source(self, settings: DatasetSettings) -> Source:
        place = self._place(settings)
        if isinstance(settings, TreeSettings):
            return TreeSource(settings, catalogue_path=os.path.join(place, "catalogue.db"), report=self._report)
        return DatabaseSource(settings, state_dir=place, report=self._report)

    def _new_sink(self, settings: DatasetSettings) -> Sink:
        place = self._place(settings)
        if isinstance(settings, TreeSettings):
            return TreeSink(settings, catalogue_path=os.path.join(place, "catalogue.db"), report=self._report)
        return DatabaseSink(settings, state_dir=place, report=self._report)

    def _place(self, settings: DatasetSettings) -> str:
        place = os.path.join(self.settings.node.state_dir, "datasets", settings.name)
        os.makedirs(place, mode=0o700, exist_ok=True)
        return place

    def _active_at(self) -> str:
        return self.active_at or self.settings.node.active_at or next(iter(self.settings.node.peer), "the other node")

    # ---- publishing, called for each subscriber of the peer

    async def publish(
        self,
        subscribe: pb.Subscribe,
        messages: AsyncIterator[pb.SubscriberMessage],
        write: Callable[[bytes], Awaitable[None]],
        *,
        peer_at: str = "",
    ) -> None:
        """Serves one subscriber, who called from ``peer_at``, until it goes. Raises what it must be told."""
        await self._end_publishing(self._endpoint_for(subscribe))
        endpoint = self._endpoint_for(subscribe)  # again, and no await from here on: the role may have changed
        assert endpoint.source is not None
        publisher = Publisher(
            endpoint.source,
            priority=endpoint.settings.priority,
            epoch=self.epoch,
            outlet=self._outlet,
            write=write,
            acknowledged=self._on_acknowledged,
            full_syncs=self._full_syncs if endpoint.settings.essential else None,
        )
        endpoint.subscriber_at = peer_at
        task = endpoint.publishing = asyncio.create_task(publisher.serve(subscribe, messages))
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():  # by a role change or a newer subscriber, not by the transport
                raise WrongState("ended the stream", reason="the role changed or a newer subscriber came") from None
            raise
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
            if endpoint.publishing is task:
                endpoint.publishing = None

    @staticmethod
    async def _end_publishing(endpoint: Endpoint) -> None:
        while endpoint.publishing is not None and not endpoint.publishing.done():
            endpoint.publishing.cancel()
            await asyncio.wait([endpoint.publishing])

    def _endpoint_for(self, subscribe: pb.Subscribe) -> Endpoint:
        subject = f"the subscriber of {subscribe.dataset!r}"
        if subscribe.protocol != PROTOCOL:
            raise Refused(f"refused {subject}", reason=f"protocol {subscribe.protocol}, this node speaks {PROTOCOL}")
        membership = self._membership()
        if membership is None or subscribe.cluster_id != membership.cluster_id:
            raise Refused(f"refused {subject}", reason=f"it belongs to cluster {subscribe.cluster_id!r}")
        if self.role is not Role.ACTIVE:
            raise WrongState(f"refused {subject}", reason="this node is not the Active")
        if subscribe.served_epoch > self.epoch or subscribe.promised_epoch > self.epoch:
            self._report("error", "a higher epoch exists", {"mine": self.epoch, "theirs": subscribe.promised_epoch})
            raise Fenced(
                f"refused {subject}",
                reason=f"it has seen epoch {subscribe.promised_epoch}, this Active has {self.epoch}",
                hint="one of the two must become Standby, or this one take a higher epoch",
            )
        endpoint = self._endpoints.get(DatasetName(subscribe.dataset))
        if endpoint is None:
            raise OperatorNeeded(
                f"refused {subject}",
                reason="the Active has no such dataset",
                hint="sync.toml must name the same datasets on both nodes",
            )
        if endpoint.settings.kind.value != subscribe.kind:
            raise OperatorNeeded(
                f"refused {subject}", reason=f"kind {subscribe.kind!r} there, {endpoint.settings.kind.value!r} here"
            )
        if endpoint.source is None or self._turning:
            raise Retryable(f"refused {subject}", reason=endpoint.fault or "its capture is still starting")
        return endpoint

    def _on_acknowledged(self) -> None:
        async def wake() -> None:
            async with self._acknowledged:
                self._acknowledged.notify_all()

        if self._waiters:
            self._waking = asyncio.ensure_future(wake())

    _waiters = 0
    _waking: asyncio.Future[None] | None = None

    # ---- what the operator asks

    def datasets(self) -> list[DatasetStatus]:
        """Every dataset, in order of priority."""
        ordered = sorted(self._endpoints.values(), key=lambda item: (item.settings.priority, item.settings.name))
        return [self._status(endpoint) for endpoint in ordered]

    def _status(self, endpoint: Endpoint) -> DatasetStatus:
        end = endpoint.source or endpoint.sink
        if endpoint.fault or end is None:
            report = DatasetReport(
                state=DatasetState.FAILED if endpoint.fault else DatasetState.STARTING,
                reason=endpoint.fault,
                position=NOWHERE,
            )
            return DatasetStatus(settings=endpoint.settings, report=report, connected=False)
        report = end.report()
        if endpoint.subscriber is not None:
            connected, peer_at = endpoint.subscriber.connected, endpoint.subscriber.address
            if not connected and report.state not in {DatasetState.HALTED, DatasetState.FAILED}:
                reason = endpoint.subscriber.reason or report.reason
                report = replace(report, state=DatasetState.WAITING, reason=reason)
            elif self._is_absent(endpoint) and report.position == NOWHERE:
                report = replace(report, state=DatasetState.WAITING, reason="the active has nothing of it yet")
        else:
            connected, peer_at = endpoint.publishing is not None, endpoint.subscriber_at
            if not connected and report.state in {DatasetState.STREAMING, DatasetState.SYNCING}:
                report = replace(report, state=DatasetState.WAITING, reason="no standby is connected")
        return DatasetStatus(
            settings=endpoint.settings, report=report, connected=connected, peer_at=peer_at if connected else ""
        )

    def ends(self, name: DatasetName) -> tuple[DatasetSettings, Source | None, Sink | None]:
        """What of a dataset is open now, for the full backup."""
        endpoint = self._named(name)
        return endpoint.settings, endpoint.source, endpoint.sink

    def active_lacks(self, names: Iterable[DatasetName], *, epoch: Epoch) -> None:
        """What the Active of ``epoch`` has nothing of yet: this Standby lacks nothing either."""
        self._absent = (epoch, frozenset(names))

    def _is_absent(self, endpoint: Endpoint) -> bool:
        return self._absent[0] == self.epoch and endpoint.settings.name in self._absent[1]

    def standing(self, *, founder: bool) -> Standing:
        """How this node's data stands beside the other node's."""
        found = (
            DatasetStanding(
                name=item.settings.name,
                state=item.report.state,
                position=item.report.position,
                acknowledged=item.report.acknowledged,
                consistent=item.report.consistent,
                connected=item.connected,
                absent=self._is_absent(self._endpoints[item.settings.name]),
            )
            for item in self.datasets()
            if item.settings.essential
        )
        return standing_of(found, role=self.role, epoch=self.epoch, served=self.served, founder=founder)

    async def wait_replicated(self, names: tuple[str, ...], *, timeout_s: float | None) -> tuple[str, ...]:
        """The barrier: returns what is still missing when the time is over (nothing: all is durable on the Standby)."""
        if self.role is not Role.ACTIVE:
            raise WrongState("cannot wait for replication", reason="this node is not the Active")
        wanted = self._sources(names)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._waiters += 1
        try:
            missing = await asyncio.gather(*(self._wait_one(name, source, deadline) for name, source in wanted))
        finally:
            self._waiters -= 1
        return tuple(text for text in missing if text)

    def _sources(self, names: tuple[str, ...]) -> list[tuple[DatasetName, Source]]:
        for name in names:
            self._named(name)
        chosen = [
            item for item in self._endpoints.values() if item.settings.name in names or (not names and _counts(item))
        ]
        for endpoint in chosen:
            if endpoint.source is None:
                raise Retryable("cannot wait for", subject=endpoint.settings.name, reason=endpoint.fault or "starting")
        return [(item.settings.name, item.source) for item in chosen if item.source is not None]

    async def _wait_one(self, name: DatasetName, source: Source, deadline: float | None) -> str:
        try:
            async with asyncio.timeout(None if deadline is None else max(0.0, deadline - time.monotonic())):
                target = await source.settled()
                while not _covers(source.report(), target):
                    async with self._acknowledged:
                        with contextlib.suppress(TimeoutError):
                            async with asyncio.timeout(0.25):
                                await self._acknowledged.wait()
        except TimeoutError:
            report = source.report()
            return f"{name}: {report.backlog} changes not yet on the standby" + (
                f" ({report.reason})" if report.reason else ""
            )
        return ""

    def _named(self, name: str) -> Endpoint:
        endpoint = self._endpoints.get(DatasetName(name))
        if endpoint is None:
            known = ", ".join(self._endpoints) or "none"
            raise ConfigFault("the command line", (f"dataset: {name!r} is not configured here; there are: {known}",))
        return endpoint

    async def resume(self, name: str, *, accept_deletes: bool) -> None:
        """An operator releases a halted dataset."""
        endpoint = self._named(name)
        end = endpoint.source or endpoint.sink
        if end is None:
            raise WrongState("cannot resume", subject=name, reason=endpoint.fault or "it is starting")
        await end.resume(accept_deletes=accept_deletes)

    async def attach(self, name: str) -> tuple[str, ...]:
        """Installs the capture triggers of a database now."""
        endpoint = self._named(name)
        if not isinstance(endpoint.source, DatabaseSource):
            raise WrongState("cannot attach to", subject=name, reason="only a database on the Active has triggers")
        return await endpoint.source.attach()

    async def detach(self, name: str) -> tuple[str, ...]:
        """Removes every trace of ours from one dataset, or from all; it is not replicated again until a restart."""
        chosen = [self._named(name)] if name else list(self._endpoints.values())
        removed: list[str] = []
        for endpoint in chosen:
            end = endpoint.source or endpoint.sink
            if end is None:
                continue
            await self._end_tasks(endpoint)
            removed.extend(f"{endpoint.settings.name}: {trace}" for trace in await end.detach())
            await self._close_end(endpoint)
            endpoint.fault = "detached: it is replicated again after a restart of the engine"
        return tuple(removed)

    async def leave(self) -> tuple[str, ...]:
        """The pair is dissolved: every trace leaves the data, then this node has no role. Raises OperatorNeeded.

        May be repeated, also by an engine that has no role yet: what is not open is opened to be cleaned.
        """
        async with self._changing:
            await self._stop_streams()
            role = self.role or self._state.stored.role
            removed: list[str] = []
            failed: list[str] = []
            for endpoint in self._endpoints.values():
                if role is None:
                    break  # nothing was ever put anywhere
                name = endpoint.settings.name
                try:
                    removed += [f"{name}: {trace}" for trace in await self._cleaned(endpoint, role)]
                except (HaSyncError, OSError) as error:
                    failed.append(f"{name}: {error}")
                await self._close_end(endpoint)
                endpoint.fault = "the pair was dissolved"
            self.role = None
            if failed:
                raise OperatorNeeded("cannot remove every trace from the data", reason="; ".join(failed))
            await asyncio.to_thread(self._state.leave)
            return tuple(removed)

    async def _cleaned(self, endpoint: Endpoint, role: Role) -> tuple[str, ...]:
        end = endpoint.source or endpoint.sink
        if end is None and role is Role.ACTIVE:
            end = endpoint.source = self._new_source(endpoint.settings)
            await end.open(self._state.stored.promised)
        elif end is None:
            end = endpoint.sink = self._new_sink(endpoint.settings)
            await end.open(self._state.stored.promised, active_at=self._active_at())
        return (*await end.detach(), *await asyncio.to_thread(remove_hidden, endpoint.settings))

    async def _end_tasks(self, endpoint: Endpoint) -> None:
        tasks = take_tasks(endpoint)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def describe(self) -> list[tuple[str, str]]:
        """Names and kinds of the datasets here."""
        return [(item.settings.name, item.settings.kind.value) for item in self._endpoints.values()]


def _covers(report: DatasetReport, target: Position) -> bool:
    if report.absent or target == NOWHERE:  # there is nothing
        return True
    acknowledged = report.acknowledged  # without a change too there are contents, of which the Standby may have nothing
    return acknowledged is not None and acknowledged.resumes(target) and acknowledged.sequence >= target.sequence


def _counts(endpoint: Endpoint) -> bool:
    """Whether a barrier waits for it: for a storage only while it flows, since its medium may be pulled out."""
    source = endpoint.source
    return endpoint.settings.essential or (
        source is not None and endpoint.publishing is not None and source.report().state is DatasetState.STREAMING
    )
