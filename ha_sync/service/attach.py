"""The engine attached to its agent: it reports, and follows what the agent directs (DESIGN 9).

The engine opens the call and opens it again whenever it ends. Without an agent it keeps the role it has: as Standby it
goes on applying, as Active it goes on streaming; it never promotes itself. An epoch is stored before it is acted upon;
as Active a lower one than was seen is refused. Seconds are monotonic.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

import grpc
import xxhash

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_proto.agent.v1 import agent_pb2_grpc
from ha_sync.core.dataset import DatasetName, Finished, Report, Role
from ha_sync.core.position import Epoch
from ha_sync.errors import HaSyncError
from ha_sync.node import Membership, Node

log = logging.getLogger(__name__)

REPORT_EVERY_S = 0.5
RETRY_S = 0.2
SOCKET_NAME = "agent.sock"
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
        self, node: Node, *, socket_path: str, membership: Callable[[], Membership | None], report: Report
    ) -> None:
        self._node = node
        self._socket_path = socket_path
        self._membership = membership
        self._report_event = report
        self._progress = _Progress()
        self._changed = asyncio.Event()
        self._quiescing: asyncio.Task[None] | None = None
        self.attached = False

    async def run(self) -> None:
        """Until cancelled."""
        try:
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self._attach_once()
                if self.attached:
                    self._report_event("warning", "agent lost: the engine keeps its role", {})
                self.attached = False
                await asyncio.sleep(RETRY_S)
        finally:
            self._end_quiesce()

    async def _attach_once(self) -> None:
        async with grpc.aio.insecure_channel(f"unix:{self._socket_path}", options=CHANNEL_OPTIONS) as channel:
            stub = agent_pb2_grpc.AgentServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.Attach(self._reports())
            try:
                async for directive in call:
                    if not self.attached:
                        self._report_event("info", "attached to the agent", {})
                    self.attached = True
                    await self._follow(directive)
            finally:
                call.cancel()

    async def _reports(self) -> AsyncIterator[pb.EngineReport]:
        while True:
            self._changed.clear()
            yield self._report()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), REPORT_EVERY_S)

    # ---- directives

    async def _follow(self, directive: pb.Directive) -> None:
        match directive.WhichOneof("directive"):
            case "role":
                await self._take_role(directive.role)
            case "quiesce":
                self._end_quiesce()
                self._quiescing = asyncio.create_task(self._quiesce(directive.quiesce))
            case "resume":
                self._end_quiesce()
        self._changed.set()

    async def _take_role(self, wanted: pb.RoleDirective) -> None:
        self._end_quiesce()
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
            self._progress.promoted = epoch
            self._progress.finished = finished or self._progress.finished

    async def _quiesce(self, wanted: pb.QuiesceDirective) -> None:
        """The PBX is stopped: everything it did is captured and brought to the Standby, or what is missing is said."""
        progress = self._progress
        try:
            progress.waiting_for = await self._node.wait_replicated((), timeout_s=wanted.deadline_ms / 1000)
        except HaSyncError as error:
            progress.waiting_for = (error.sentence(),)
        if not progress.waiting_for:
            progress.quiesced = wanted.serial
        self._changed.set()

    def _end_quiesce(self) -> None:
        if self._quiescing is not None:
            self._quiescing.cancel()
            self._quiescing = None

    # ---- reports

    def changed(self) -> None:
        """Something moved that the agent should hear of without waiting."""
        self._changed.set()

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
        )
