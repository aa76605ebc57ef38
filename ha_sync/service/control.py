"""The control API: what this node's tools ask of the engine, on the unix socket (R33)."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import functools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from importlib.metadata import version

from ha_proto.sync.v1 import control_pb2 as pb
from ha_proto.sync.v1 import control_pb2_grpc
from ha_sync.core.dataset import Role
from ha_sync.core.lag import LagSummary
from ha_sync.core.paths import host_of
from ha_sync.core.position import Epoch, Position
from ha_sync.errors import ConfigFault, WrongState
from ha_sync.logs.events import Event, EventLog
from ha_sync.node import DatasetStatus, Node
from ha_sync.pairing.keyring import Keyring
from ha_sync.service.definitions import Definitions
from ha_sync.service.divergence import Divergences
from ha_sync.service.full_backup import FullBackups
from ha_sync.service.logbook import Logbook, list_findings, list_runs
from ha_sync.service.packages import Packages
from ha_sync.service.peer import PeerLink, PeerWatch
from ha_sync.service.status_map import Context, streaming, unary
from ha_sync.service.storages import Storages

# ruff: noqa: N802 - methods are named as in the protocol

WATCH_MIN_S = 0.1
WATCH_MAX_S = 60.0
EVENTS_LIMIT = 1000
VERSION = version("ha-sync")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the control API looks at."""

    node: Node
    keyring: Callable[[], Keyring | None]
    link: PeerLink
    watch: PeerWatch
    events: EventLog
    logbook: Logbook
    full_backups: FullBackups
    divergences: Divergences
    began: float  # monotonic
    packages: Packages
    storages: Storages
    definitions: Definitions
    by_hand: bool  # the role is given by hand, not by an agent


class ControlServicer(control_pb2_grpc.ControlServiceServicer):
    """See the protocol for each method."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    @unary
    async def GetStatus(self, _request: pb.GetStatusRequest, _context: Context) -> pb.Status:
        """Everything at a glance."""
        return self._status()

    @streaming
    async def WatchStatus(self, request: pb.WatchStatusRequest, _context: Context) -> AsyncIterator[pb.Status]:
        """The same again and again."""
        interval = request.interval_s or 1.0
        _in_range("interval_s", interval, WATCH_MIN_S, WATCH_MAX_S)
        while True:
            yield self._status()
            await asyncio.sleep(interval)

    @unary
    async def WaitReplicated(self, request: pb.WaitReplicatedRequest, _context: Context) -> pb.WaitReplicatedResponse:
        """The barrier."""
        timeout = request.timeout_s or None
        missing = await self._parts.node.wait_replicated(tuple(request.datasets), timeout_s=timeout)
        return pb.WaitReplicatedResponse(replicated=not missing, waiting_for=missing)

    @unary
    async def SetRole(self, request: pb.SetRoleRequest, _context: Context) -> pb.SetRoleResponse:
        """Promotion or demotion by hand."""
        if not self._parts.by_hand:
            raise WrongState(
                "cannot set the role by hand",
                reason="the agent of this node decides it",
                hint="`ha-sync switch`; or run the engine alone with `ha-sync serve --role`",
            )
        names = {role.value: role for role in Role}
        if request.role not in names:
            raise ConfigFault("the call", (f"role: {request.role!r} is none of {', '.join(names)}",))
        _in_range("epoch", request.epoch, 1, 2**63 - 1)
        node = self._parts.node
        finished = await node.set_role(names[request.role], Epoch(request.epoch))
        return pb.SetRoleResponse(
            role=request.role,
            epoch=node.epoch,
            finished=[
                pb.FinishedValue(dataset=name, what=item.what, subject=item.subject, detail=item.detail)
                for name, item in finished
            ],
        )

    @unary
    async def CreateToken(self, request: pb.CreateTokenRequest, _context: Context) -> pb.CreateTokenResponse:
        """One time, short life."""
        keyring = self._parts.keyring()
        if keyring is None:
            raise WrongState("cannot make a token", reason="this node is not paired", hint="`ha-sync pair init` first")
        if self._parts.node.role is not Role.ACTIVE:
            raise WrongState(
                "cannot make a token", reason="this node is not the Active", hint="ask the node in service"
            )
        token = await asyncio.to_thread(keyring.invitations.create, keyring.identity, lifetime_s=request.lifetime_s)
        return pb.CreateTokenResponse(token=token.text, expires=token.expires)

    @unary
    async def Resume(self, request: pb.ResumeRequest, _context: Context) -> pb.ResumeResponse:
        """Releases a halted dataset."""
        await self._parts.node.resume(request.dataset, accept_deletes=request.accept_deletes)
        return pb.ResumeResponse()

    @unary
    async def Attach(self, request: pb.AttachRequest, _context: Context) -> pb.AttachResponse:
        """Installs capture triggers now."""
        return pb.AttachResponse(installed=await self._parts.node.attach(request.dataset))

    @unary
    async def Detach(self, request: pb.DetachRequest, _context: Context) -> pb.DetachResponse:
        """Removes every trace of ours."""
        return pb.DetachResponse(removed=await self._parts.node.detach(request.dataset))

    @streaming
    async def ExportPackage(
        self, request: pb.ExportPackageRequest, _context: Context
    ) -> AsyncIterator[pb.ExportPackageResponse]:
        """Everything as one package."""
        async with contextlib.aclosing(self._parts.packages.export(request)) as responses:
            async for response in responses:
                yield response

    @streaming
    async def VerifyPackage(
        self, request: pb.VerifyPackageRequest, _context: Context
    ) -> AsyncIterator[pb.PackageProgress]:
        """Whether a package is whole, and fits."""
        async with contextlib.aclosing(self._parts.packages.verify(request)) as messages:
            async for message in messages:
                yield message

    @streaming
    async def RestorePackage(
        self, request: pb.RestorePackageRequest, _context: Context
    ) -> AsyncIterator[pb.PackageProgress]:
        """The content of a package in the place of the data."""
        async with contextlib.aclosing(self._parts.packages.restore(request)) as messages:
            async for message in messages:
                yield message

    @streaming
    async def ListEvents(self, request: pb.ListEventsRequest, _context: Context) -> AsyncIterator[pb.Event]:
        """The event log, oldest first; with ``follow`` also what comes."""
        limit = request.limit or EVENTS_LIMIT
        events = self._parts.events
        last = 0
        query = functools.partial(events.query, request.since_unix_s, limit)
        for event in await asyncio.to_thread(query):
            last = event.id
            yield _event(event)
        if request.follow:
            async for event in events.follow(after_id=last):
                yield _event(event)

    @streaming
    async def ListRuns(self, request: pb.ListRunsRequest, _context: Context) -> AsyncIterator[pb.RunRecord]:
        """The backup log or the storage log, oldest first; with ``follow`` also what changes."""
        async for record in list_runs(self._parts.logbook, request):
            yield record

    @streaming
    async def ListFindings(self, request: pb.ListFindingsRequest, _context: Context) -> AsyncIterator[pb.FindingRecord]:
        """What one run found."""
        async for record in list_findings(self._parts.logbook, request):
            yield record

    @unary
    async def StartFullBackup(
        self, request: pb.StartFullBackupRequest, _context: Context
    ) -> pb.StartFullBackupResponse:
        """Begins a full backup, or joins the one that goes on."""
        return await self._parts.full_backups.start(request)

    @streaming
    async def WatchFullBackup(
        self, request: pb.WatchFullBackupRequest, _context: Context
    ) -> AsyncIterator[pb.FullBackupProgress]:
        """Its progress."""
        async for progress in self._parts.full_backups.watch(request):
            yield progress

    @unary
    async def ControlFullBackup(
        self, request: pb.ControlFullBackupRequest, _context: Context
    ) -> pb.ControlFullBackupResponse:
        """Pause, resume, cancel."""
        return await self._parts.full_backups.control(request)

    @unary
    async def ListDivergences(
        self, request: pb.ListDivergencesRequest, _context: Context
    ) -> pb.ListDivergencesResponse:
        """What this node wrote as Active and the other never got."""
        return await self._parts.divergences.listed(request)

    @unary
    async def ShowDivergence(self, request: pb.ShowDivergenceRequest, _context: Context) -> pb.ShowDivergenceResponse:
        """What of it differs from what stands here now."""
        return await self._parts.divergences.show(request)

    @unary
    async def MergeDivergence(
        self, request: pb.MergeDivergenceRequest, _context: Context
    ) -> pb.MergeDivergenceResponse:
        """Brings call records, voicemail and recordings of it into the Active."""
        return await self._parts.divergences.merge(request)

    @unary
    async def DiscardDivergence(
        self, request: pb.DiscardDivergenceRequest, _context: Context
    ) -> pb.DiscardDivergenceResponse:
        """Removes it for good."""
        return await self._parts.divergences.discard(request)

    @unary
    async def ListStorages(self, request: pb.ListStoragesRequest, _context: Context) -> pb.ListStoragesResponse:
        """Both nodes side by side."""
        return await self._parts.storages.listed(request)

    @streaming
    async def PlanStorage(self, request: pb.PlanStorageRequest, _context: Context) -> AsyncIterator[pb.StoragePlan]:
        """What a sync would do."""
        async with contextlib.aclosing(self._parts.storages.plan(request)) as plans:
            async for plan in plans:
                yield plan

    @unary
    async def SyncStorage(self, request: pb.SyncStorageRequest, _context: Context) -> pb.SyncStorageResponse:
        """Begins syncs, or joins those that go on."""
        return await self._parts.storages.sync(request)

    @streaming
    async def WatchStorage(
        self, request: pb.WatchStorageRequest, _context: Context
    ) -> AsyncIterator[pb.StorageProgress]:
        """The progress of one."""
        async for progress in self._parts.storages.watch(request):
            yield progress

    @unary
    async def ControlStorage(self, request: pb.ControlStorageRequest, _context: Context) -> pb.StorageProgress:
        """Pause, resume, cancel."""
        return await self._parts.storages.control(request)

    # ---- status

    def _status(self) -> pb.Status:
        parts = self._parts
        keyring = parts.keyring()
        identity = keyring.identity if keyring else None
        peer = identity.peer if identity else None
        role = parts.node.role
        datasets = parts.node.datasets()
        return pb.Status(
            node_id=identity.node_id if identity else "",
            cluster_id=identity.cluster_id if identity else "",
            role=role.value if role else "starting",
            epoch=parts.node.epoch,
            pair="off" if identity is None else "pair" if peer else "single",
            version=VERSION,
            uptime_s=time.monotonic() - parts.began,
            peer=pb.Peer(
                node_id=peer.node_id if peer else "",
                address=parts.link.address,
                connected=parts.watch.connected or any(item.connected for item in datasets),
                reason=parts.watch.reason,
                paths=self._paths(datasets),
            ),
            datasets=[_dataset(item, path=parts.link.path_name(item.peer_at)) for item in datasets],
            certificate_expires=_iso(identity.ends_unix_s) if identity else "",
            notices=(
                *parts.node.settings.notices,
                *parts.definitions.notices,
                *parts.divergences.merger.notices,
            ),
            full_backup=parts.full_backups.progress(),
        )

    def _paths(self, datasets: list[DatasetStatus]) -> list[pb.PeerPath]:
        hosts = {host_of(item.peer_at) for item in datasets}
        return [
            pb.PeerPath(name=path.name, address=path.address, state=state, used=host_of(path.address) in hosts)
            for path, state in self._parts.link.shown()
        ]


def _dataset(item: DatasetStatus, *, path: str) -> pb.Dataset:
    report = item.report
    return pb.Dataset(
        name=item.settings.name,
        kind=item.settings.kind.value,
        method=report.method,
        state=report.state.value,
        reason=report.reason,
        position=_position(report.position),
        acknowledged=None if report.acknowledged is None else _position(report.acknowledged),
        backlog=report.backlog,
        consistent=report.consistent,
        lag=None if report.lag is None else _lag(report.lag),
        counts=dict(report.counts),
        priority=item.settings.priority.name.lower(),
        path=item.settings.path,
        stream_path=path,
        stream_address=item.peer_at,
    )


def _position(position: Position) -> pb.PositionValue:
    return pb.PositionValue(epoch=position.epoch, incarnation=position.incarnation.hex(), sequence=position.sequence)


def _lag(lag: LagSummary) -> pb.Lag:
    histogram = lag.histogram
    return pb.Lag(
        p50_ms=_ms(lag.p50_s),
        p99_ms=_ms(lag.p99_s),
        samples=lag.samples,
        oldest_pending_ms=_ms(lag.oldest_pending_s),
        buckets=[pb.LagBucket(at_most_ms=at_most_s * 1000, count=count) for at_most_s, count in histogram.cumulated()],
        measured=histogram.measured,
        sum_ms=histogram.sum_s * 1000,
    )


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _iso(unix_s: float) -> str:
    return dt.datetime.fromtimestamp(unix_s, tz=dt.UTC).isoformat(timespec="seconds")


def _in_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigFault("the call", (f"{field}: {value} is not between {low} and {high}",))


def _event(event: Event) -> pb.Event:
    return pb.Event(
        id=event.id,
        unix_s=event.unix_s,
        severity=event.severity,
        what=event.what,
        fields=event.fields,
    )
