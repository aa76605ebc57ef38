"""The engine attached to its agent: it reports, and follows what the agent directs (DESIGN 9).

The engine opens the call and opens it again whenever it ends. Without an agent it keeps the role it has: as Standby it
goes on applying, as Active it goes on streaming; it never promotes itself. An epoch is stored before it is acted upon;
as Active a lower one than was seen is refused. Of several roles that were directed the newest counts; one that the disk
does not let it take is tried again until another is directed. Seconds are monotonic.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc
import xxhash

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_proto.agent.v1 import agent_pb2_grpc
from ha_sync.core.dataset import DatasetName, Finished, Report, Role
from ha_sync.core.paths import Heard
from ha_sync.core.position import Epoch
from ha_sync.errors import HaSyncError, Retryable
from ha_sync.node import Membership, Node
from ha_sync.service.full_backup import FullBackups
from ha_sync.service.peer import AgentPath, PeerLink
from ha_sync.service.restoring import Restoring
from ha_sync.service.tidings import Tidings

log = logging.getLogger(__name__)

REPORT_EVERY_S = 0.5
RETRY_S = 0.2
ROLE_RETRY_S = 1.0
PATHS_MAX = 32  # more are not looked at
SOCKET_NAME = "agent.sock"
HOLDS = {"schema_apart": "the two nodes share no data layout: upgrade the older one"}
CHANNEL_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))


@dataclass(slots=True, kw_only=True)
class _Progress:
    """What the engine tells beside its data."""

    promoted: int = 0
    quiesced: int = 0
    waiting_for: tuple[str, ...] = ()
    finished: tuple[tuple[DatasetName, Finished], ...] = ()


class AgentLink:
    """Keeps the engine attached to the agent at ``socket_path``."""

    def __init__(
        self,
        node: Node,
        *,
        socket_path: str,
        membership: Callable[[], Membership | None],
        report: Report,
        link: PeerLink,
        full_backups: FullBackups,
        tidings: Tidings | None = None,
    ) -> None:
        self._node = node
        self._full_backups = full_backups
        self._tidings = tidings or Tidings()
        self._link = link
        self._socket_path = socket_path
        self._membership = membership
        self._report_event = report
        self._progress = _Progress()
        self._changed = asyncio.Event()
        self._wanted: pb.RoleDirective | None = None  # not taken yet
        self._directed: tuple[str, int, str] | None = None  # what was directed last in this call
        self._role_wanted = asyncio.Event()
        self._role_settled = asyncio.Event()
        self._role_settled.set()
        self._quiescing: asyncio.Task[None] | None = None
        self.attached = False
        self.restoring = Restoring(self._changed.set)
        self.model = self.firmware = ""  # of this node, as the agent knows them
        self.shared_version = ""  # of the pair's settings that the agent has

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._keep_role(), name="role")
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self._attach_once(tasks)
                if self.attached:
                    self.restoring.interrupt("the agent of this node is gone")
                    self._report_event("warning", "agent lost: the engine keeps its role", {})
                    self._link.agent_lost()
                self.attached = False
                await asyncio.sleep(RETRY_S)

    async def _attach_once(self, tasks: asyncio.TaskGroup) -> None:
        async with grpc.aio.insecure_channel(f"unix:{self._socket_path}", options=CHANNEL_OPTIONS) as channel:
            stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Attach(self._reports())
            self._directed = None
            try:
                async for directive in call:
                    if not self.attached:
                        self._report_event("info", "attached to the agent", {})
                    self.attached = True
                    self._follow(directive, tasks)
            finally:
                call.cancel()

    async def _reports(self) -> AsyncIterator[pb.EngineReport]:
        told = 0
        while True:
            self._changed.clear()
            report = self._report()
            report.notices.extend(self._tidings.after(told))
            told = max((notice.serial for notice in report.notices), default=told)
            yield report
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REPORT_EVERY_S):
                    await self._changed.wait()

    # ---- directives

    def _follow(self, directive: pb.Directive, tasks: asyncio.TaskGroup) -> None:
        kind = directive.WhichOneof("directive")
        if kind == "role":
            self._link.direct(_paths(directive.role))
            self.shared_version = directive.role.shared_version
            self._link.hold(HOLDS.get(directive.role.hold, directive.role.hold))
            facts = (directive.role.role, directive.role.epoch, directive.role.active_at)
            # Only the paths are news: a quiesce that runs goes on, and what was refused is not refused once more.
            if facts == self._directed:
                return
            self._directed = facts
            self.model, self.firmware = directive.role.model, directive.role.firmware
        if kind == "restore":
            self.restoring.answered(directive.restore)
            return
        self._end_quiesce()
        if kind == "quiesce" or (kind == "role" and directive.role.role != Role.ACTIVE.value):
            self.restoring.interrupt("the role of this node changes")
        match kind:
            case "role":
                self._wanted = directive.role
                self._role_settled.clear()
                self._role_wanted.set()
            case "quiesce":
                self._quiescing = tasks.create_task(self._quiesce(directive.quiesce), name="quiesce")
        self._changed.set()

    async def _keep_role(self) -> None:
        told = ""
        while True:
            await self._role_wanted.wait()
            self._role_wanted.clear()
            assert self._wanted is not None
            try:
                await self._take_role(self._wanted)
            except (OSError, sqlite3.Error) as failed:
                if told != str(failed):
                    told = str(failed)
                    self._report_event("error", "the role cannot be taken", {"reason": told})
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ROLE_RETRY_S):
                        await self._role_wanted.wait()
                self._role_wanted.set()
                continue
            told = ""
            if not self._role_wanted.is_set():
                self._role_settled.set()
            self._changed.set()

    async def _take_role(self, wanted: pb.RoleDirective) -> None:
        if wanted.role not in {role.value for role in Role}:
            self._report_event("error", "a directive of the agent is not understood", {"role": wanted.role})
            return
        role = Role(wanted.role)
        # To follow is safe in whatever epoch this node has seen: only serving below one is not.
        lowest = self._node.promised if role is Role.STANDBY else 0
        epoch = Epoch(max(wanted.epoch, lowest))
        self._node.active_at = wanted.active_at
        try:
            finished = await self._node.set_role(role, epoch)
        except HaSyncError as error:
            self._report_event("error", "a directive of the agent was refused", {"reason": error.sentence()})
            return
        if role is Role.ACTIVE:
            # The same role said again finishes nothing more; another epoch's promotion is another.
            self._progress.finished = finished if epoch != self._progress.promoted else self._progress.finished
            self._progress.promoted = epoch

    async def _quiesce(self, wanted: pb.QuiesceDirective) -> None:
        """The PBX is stopped: everything it did is captured and brought to the Standby, or what is missing is said."""
        progress = self._progress
        loop = asyncio.get_running_loop()
        deadline = loop.time() + wanted.deadline_ms / 1000
        if wanted.end_backup and self._full_backups.running:
            self._report_event("warning", "a full backup is ended by a forced switch", {})
            await self._full_backups.end("a forced switch")
        try:
            # An engine that was just started is not Active yet, and its captures open one after the other.
            async with asyncio.timeout_at(deadline):
                await self._role_settled.wait()
            await self._node.keeper.leaving()
            while True:
                try:
                    left_s = max(0.0, deadline - loop.time())
                    progress.waiting_for = await self._node.wait_replicated((), timeout_s=left_s)
                    break
                except Retryable:
                    if loop.time() + RETRY_S >= deadline:
                        raise
                await asyncio.sleep(RETRY_S)
        except TimeoutError:
            progress.waiting_for = ("the role of the engine",)
        except HaSyncError as error:
            progress.waiting_for = (error.sentence(),)
        if not progress.waiting_for:
            progress.quiesced = wanted.serial
        self._changed.set()

    def _end_quiesce(self) -> None:
        if self._quiescing is not None:
            self._quiescing.cancel()
            self._quiescing = None

    @property
    def socket_path(self) -> str:
        """Where the agent answers."""
        return self._socket_path

    @property
    def promoted(self) -> int:
        """The epoch whose promotion is complete."""
        return self._progress.promoted

    # ---- reports

    def _report(self) -> pb.EngineReport:
        node, progress = self._node, self._progress
        membership = self._membership()
        standing = node.standing(founder=membership is not None and membership.founder)
        return pb.EngineReport(
            node_id=membership.node_id if membership is not None else "",
            cluster_id=membership.cluster_id if membership is not None else "",
            role=node.role.value if node.role else "starting",
            epoch=node.epoch,
            promised=node.promised,
            data=standing.data,
            sound=standing.sound,
            current=standing.current,
            progress=standing.progress,
            backup=self._full_backups.running or self.restoring.serial != 0,
            backup_left_s=self._full_backups.left_s,
            digest=xxhash.xxh3_128_hexdigest(standing.positions.encode()),
            quiesced=progress.quiesced,
            waiting_for=progress.waiting_for,
            promoted=progress.promoted if node.role is Role.ACTIVE else 0,
            finished=[
                pb.FinishedRecord(dataset=name, what=item.what, subject=item.subject, detail=item.detail)
                for name, item in progress.finished
            ],
            pid=os.getpid(),
            paths=[dataset.path for dataset in node.settings.datasets],
            restore=self.restoring.serial,
            troubles=self._tidings.troubles(),
            run=self._tidings.run,
        )


def _paths(wanted: pb.RoleDirective) -> tuple[AgentPath, ...]:
    """Half a path is none: a connection needs both directions."""
    heard = {"both": Heard.HEARD, "half": Heard.SILENT, "lost": Heard.SILENT}
    return tuple(
        AgentPath(name=path.name, host=path.address, heard=heard.get(path.state, Heard.UNKNOWN))
        for path in wanted.paths[:PATHS_MAX]
    )
