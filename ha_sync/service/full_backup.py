"""The full backup in this engine: its desk, its runner and its answerer, and what gRPC asks of them.

Which examiner and which witness a dataset has follows from how it is captured now: a tree, a database by pages, one by
rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import grpc

from ha_proto.sync.v1 import control_pb2 as control_pb
from ha_proto.sync.v1 import examine_pb2 as pb
from ha_sync.apply.database import DatabaseSink
from ha_sync.apply.pages import PagesSink
from ha_sync.backup.full.answering import Answerer, Member, refuse_unsuited
from ha_sync.backup.full.desk import Desk
from ha_sync.backup.full.memory import Memory
from ha_sync.backup.full.pages import PagesExaminer, PagesWitness
from ha_sync.backup.full.runner import FullBackup, Standing
from ha_sync.backup.full.storages import StorageWitness
from ha_sync.backup.full.trees import TreeExaminer, TreeWitness
from ha_sync.backup.rows import RowsExaminer, RowsWitness
from ha_sync.capture.database import DatabaseSource
from ha_sync.capture.pages import PagesSource
from ha_sync.capture.tree import TreeSource
from ha_sync.config import TreeSettings
from ha_sync.core.dataset import DatasetName, Report, Role
from ha_sync.core.examine import Depth, Examiner, Witness
from ha_sync.core.position import Epoch
from ha_sync.errors import ConfigFault, Fenced, HaSyncError, ProtocolFault, Retryable, WrongState
from ha_sync.external.inventory import look_now
from ha_sync.logs.runs import RunLog, Trigger
from ha_sync.node import Membership, Node
from ha_sync.pairing.gate import Gate
from ha_sync.service.peer import PeerLink
from ha_sync.service.status_map import Context, abort
from ha_sync.service.storage_wire import found_to_wire

log = logging.getLogger(__name__)

EXAMINE_SERVICE = "ha_proto.sync.v1.ExamineService"
AGAIN_S = 5.0
BARRIER_S = 120.0
"""So long a barrier waits for a Standby that is slow or away; then the run waits for it as a whole."""


class _Host:
    """The node, as the runner and the answerer see it."""

    def __init__(self, node: Node) -> None:
        self._node = node

    @property
    def role(self) -> Role | None:
        return self._node.role

    @property
    def epoch(self) -> Epoch:
        return self._node.epoch

    @property
    def promised(self) -> Epoch:
        return self._node.promised

    @property
    def served(self) -> Epoch:
        return self._node.served

    async def promise(self, epoch: Epoch) -> None:
        await self._node.promise(epoch)

    def examined(self) -> dict[DatasetName, int]:
        return {
            item.settings.name: dict(item.report.counts).get("entries", 0)
            for item in self._node.datasets()
            if not item.report.absent and item.settings.essential
        }

    def examiner(self, name: DatasetName) -> Examiner:
        settings, source, _ = self._node.ends(name)
        if source is None:
            raise Retryable("cannot compare", subject=name, reason="its capture is not open")
        if isinstance(settings, TreeSettings):
            assert isinstance(source, TreeSource), source
            return TreeExaminer(settings, source)
        assert isinstance(source, DatabaseSource), source
        way = source.way
        return PagesExaminer(settings, way) if isinstance(way, PagesSource) else RowsExaminer(settings, way)

    def witness(self, name: DatasetName) -> Witness:
        settings, _, sink = self._node.ends(name)
        if sink is None:
            raise Retryable("cannot answer about", subject=name, reason="its copy is not open")
        if isinstance(settings, TreeSettings):
            if settings.storage is not None:
                return StorageWitness(settings, lambda: found_to_wire(look_now(settings)).SerializeToString())
            return TreeWitness(settings)
        assert isinstance(sink, DatabaseSink), sink
        way = sink.way
        if isinstance(way, PagesSink):
            return PagesWitness(settings, way, asyncio.get_running_loop())
        return RowsWitness(settings, way)

    async def replicated(self, name: DatasetName) -> None:
        missing = await self._node.wait_replicated((name,), timeout_s=BARRIER_S)
        if missing:
            raise Retryable("cannot compare", subject=name, reason="; ".join(missing))
        _, source, _ = self._node.ends(name)
        if source is None or source.report().acknowledged is None:
            # A journal that never moved has nothing to wait for, and yet its first full sync may be going on.
            raise Retryable("cannot compare", subject=name, reason="its first full sync is not over")


class FullBackups:
    """See the module."""

    def __init__(
        self,
        node: Node,
        *,
        link: PeerLink,
        runs: RunLog,
        report: Report,
        membership: Callable[[], Membership | None],
    ) -> None:
        host = _Host(node)
        self._node = node
        self._report = report
        self._membership = membership
        self.desk = Desk()
        self.runner = FullBackup(
            host,
            desk=self.desk,
            memory=Memory(os.path.join(node.settings.node.state_dir, "backup", "full.json")),
            runs=runs,
            settings=node.settings.backup,
            report=report,
            peer=lambda: found.peer_id if (found := membership()) else "",
        )
        self._noting: set[asyncio.Task[None]] = set()
        self._answerer = Answerer(host, member=self._member, dial=link.dial_examination, noted=self._noted)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._kept(self.runner.run), name="full backups")
            tasks.create_task(self._kept(self._answerer.run), name="answers to the full backup")

    async def _kept(self, part: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Begins again after whatever went wrong: the streams must not end with it."""
        while True:
            try:
                await part()
            except Exception as error:  # a bug, or a disk that fails; it is reported
                log.exception("full backup")
                self._report("error", "the full backup failed and starts again", {"reason": repr(error)})
            await asyncio.sleep(AGAIN_S)

    def _member(self) -> Member | None:
        found = self._membership()
        return Member(cluster_id=found.cluster_id, node_id=found.node_id) if found else None

    def _noted(self, begun_unix_s: float) -> None:
        task = asyncio.create_task(self.runner.noted(begun_unix_s), name="note of a full backup")
        self._noting.add(task)
        task.add_done_callback(self._noting.discard)

    # ---- the agent

    @property
    def running(self) -> bool:
        """Whether one goes on: no switch by hand meanwhile."""
        return self.runner.running

    @property
    def left_s(self) -> float | None:
        """How long the one that goes on will take, as far as can be told."""
        standing = self.runner.standing()
        return standing.done.left_s if standing.running and standing.done is not None else None

    async def end(self, why: str) -> None:
        """A forced switch comes first."""
        with contextlib.suppress(WrongState):
            await self.runner.cancel(why)

    # ---- the peer

    def handler(self, gate: Gate) -> grpc.GenericRpcHandler[Any, Any]:
        """``Examine``, to be added to the peer's server."""

        async def examine(requests: AsyncIterator[pb.ExamineAnswer], context: Context) -> None:
            try:
                gate.authorize(context)
                await self._serve(aiter(requests), context.write)
            except HaSyncError as error:
                await abort(context, error)

        method = grpc.stream_stream_rpc_method_handler(
            examine,
            request_deserializer=pb.ExamineAnswer.FromString,
            response_serializer=pb.ExamineQuestion.SerializeToString,
        )
        return grpc.method_handlers_generic_handler(EXAMINE_SERVICE, {"Examine": method})

    async def _serve(self, answers: AsyncIterator[pb.ExamineAnswer], write: Any) -> None:
        first = await anext(answers, None)
        if first is None or not first.HasField("hello"):
            raise ProtocolFault("refused an examination", reason="its first message says not who it is")
        membership, node = self._membership(), self._node
        if membership is None or node.role is not Role.ACTIVE:
            raise WrongState("refused an examination", reason="this node is not the Active")
        refuse_unsuited(first.hello, cluster_id=membership.cluster_id, epoch=node.epoch)
        await self.desk.serve(node.epoch, answers, write)
        if node.role is Role.ACTIVE:
            raise Fenced("ended the examination", reason="a newer one came, or the epoch changed")

    # ---- this node's tools

    async def start(self, request: control_pb.StartFullBackupRequest) -> control_pb.StartFullBackupResponse:
        """Begins or joins."""
        depths = {depth.value: depth for depth in Depth}
        verify = request.verify or Depth.CONTENT.value
        if verify not in depths:
            raise ConfigFault("the call", (f"verify: {verify!r} is none of {', '.join(depths)}",))
        joined = await self.runner.start(depths[verify], Trigger.MANUAL)
        return control_pb.StartFullBackupResponse(progress=self.progress(), joined=joined)

    async def watch(self, request: control_pb.WatchFullBackupRequest) -> AsyncIterator[control_pb.FullBackupProgress]:
        """See the protocol."""
        async for standing in self.runner.watch(request.run):
            yield progress_of(standing)

    async def control(self, request: control_pb.ControlFullBackupRequest) -> control_pb.ControlFullBackupResponse:
        """Pause, resume, cancel."""
        match request.action:
            case "pause":
                await self.runner.pause()
            case "resume":
                await self.runner.resume()
            case "cancel":
                await self.runner.cancel("by an operator")
            case other:
                raise ConfigFault("the call", (f"action: {other!r} is none of pause, resume, cancel",))
        return control_pb.ControlFullBackupResponse(progress=self.progress())

    def progress(self) -> control_pb.FullBackupProgress:
        """Now; on the Standby whether the Active's full backup asks it."""
        asked = self._answerer.answering
        if asked:
            return control_pb.FullBackupProgress(state="backing up", phase="answering the active", dataset=asked)
        return progress_of(self.runner.standing())


def progress_of(now: Standing) -> control_pb.FullBackupProgress:
    """For the protocol."""
    message = control_pb.FullBackupProgress(
        state="backing up" if now.running else "idle",
        run=now.run,
        verify=now.depth.value if now.run else "",
        trigger=now.trigger,
        phase=now.phase,
        dataset=now.dataset,
        differing=now.tally.differing,
        repaired=now.tally.repaired,
        unverified=now.tally.unverified,
        in_motion=now.tally.in_motion,
        result=now.result,
        reason=now.reason,
        elapsed_s=now.elapsed_s,
        wire_bytes=now.wire_bytes,
        exit_code=now.exit_code,
        left_s=now.done.left_s if now.done and now.running else None,
        next_unix_s=now.next_unix_s,
    )
    if now.done is not None:
        message.percent = now.done.percent
        message.objects = now.done.objects
        message.objects_expected = now.done.objects_expected
        message.bytes = now.done.content_bytes
        message.bytes_expected = now.done.bytes_expected
        message.bytes_per_s = now.done.bytes_per_s
    return message
