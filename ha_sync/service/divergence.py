"""What `ha-sync divergence` asks of the engine: list, show, merge, discard this node's archives.

Differences are against what stands on this node now: on a Standby that is what the Active has, once its stream is in
step, and a note says where it is not yet.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.config import SqliteSettings, TreeSettings
from ha_sync.core.dataset import DatasetName, DatasetState, Report, Role
from ha_sync.divergence.apart import run_apart
from ha_sync.divergence.archive import CONTENTS, FILES, ROWS, STAGING, Archive
from ha_sync.divergence.child import settings_out
from ha_sync.divergence.differing_files import differing_files
from ha_sync.divergence.merger import Around, Merger
from ha_sync.divergence.merging import Merging
from ha_sync.errors import ConfigFault, HaSyncError
from ha_sync.logs.runs import RunLog, Trigger
from ha_sync.node import Membership, Node
from ha_sync.pairing.gate import Gate
from ha_sync.service.merging import MergeCaller, MergeServicer
from ha_sync.service.peer import PeerLink

LINES = 1000
LINES_MAX = 100_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shown:
    lines: list[dict[str, str]]
    notes: list[str]


class Divergences:
    """Of one engine."""

    def __init__(
        self,
        node: Node,
        *,
        link: PeerLink,
        membership: Callable[[], Membership | None],
        runs: RunLog,
        report: Report,
    ) -> None:
        self._node = node
        self._archives = node.keeper.archives
        self._datasets = {item.name: item for item in node.settings.datasets}
        self._showing = asyncio.Lock()
        self._report = report
        self.merging = Merging(self._archives.folder)
        caller = MergeCaller(node, link, membership=membership)
        around = Around(
            role=lambda: node.role,
            send=caller.send,
            peer=lambda: link.address,
            cluster=lambda: found.cluster_id if (found := membership()) else "",
        )
        node.keeper.promoted = self._promoted
        node.keeper.leaving = self.merging.leave
        self.merger = Merger(
            node.settings, self._archives, self.merging, around=around, runs=runs, report=report
        )  # fmt: skip

    def handler(self, gate: Gate, *, membership: Callable[[], Membership | None]) -> grpc.GenericRpcHandler[Any, Any]:
        """What the other node asks of this one on the peer port."""
        return MergeServicer(self._node, gate, self.merging, membership=membership, report=self._report).handler()

    async def recover(self) -> None:
        """Before anything else of the engine: a mailbox must not stay locked."""
        await self.merger.recover()

    async def run(self) -> None:
        """Merges what can be merged, until cancelled."""
        await self.merger.run()

    async def _promoted(self) -> None:
        self.merging.arrive()
        await self.merger.promoted()

    def _behind(self, name: DatasetName) -> str:
        """Why this Standby's copy is not what the Active has; empty where it is."""
        for item in self._node.datasets():
            if item.settings.name != name:
                continue
            report = item.report
            if item.connected and report.consistent and report.state is DatasetState.STREAMING:
                if report.position.epoch == self._node.epoch:
                    return ""
                return "its first full sync is not complete"
            return f"the dataset is not in step with the active: {report.reason or report.state.value}"
        return "there is no such dataset"

    # ---- verbs

    async def listed(self, _request: pb.ListDivergencesRequest) -> pb.ListDivergencesResponse:
        """All archives."""
        found = await asyncio.to_thread(self._archives.listed)
        return pb.ListDivergencesResponse(archives=[self._told(item) for item in found])

    async def show(self, request: pb.ShowDivergenceRequest) -> pb.ShowDivergenceResponse:
        """What differs from what stands here now."""
        limit = request.limit or LINES
        if limit > LINES_MAX:
            raise ConfigFault("the call", (f"limit: {limit} is more than {LINES_MAX}",))
        archives = await asyncio.to_thread(self._archives.get, request.id, request.dataset)
        answer = pb.ShowDivergenceResponse(archives=[self._told(item) for item in archives])
        async with self._showing:
            for archive in archives:
                shown = await self._shown(archive, limit=limit + 1)
                answer.cut |= len(shown.lines) > limit
                answer.notes.extend(f"{archive.about.dataset}: {note}" for note in shown.notes)
                name = archive.about.dataset
                answer.differences.extend(
                    pb.DivergenceLine(dataset=name, **{key: _text(value) for key, value in line.items()})
                    for line in shown.lines[:limit]
                )
        return answer

    async def merge(self, request: pb.MergeDivergenceRequest) -> pb.MergeDivergenceResponse:
        """What can be merged of an archive. Raises where nothing of it could be."""
        archives = await asyncio.to_thread(self._archives.get, request.id, request.dataset)
        chosen = [item for item in archives if item.about.mergeable] or archives
        told, failures = [], []
        for archive in chosen:
            try:
                told.append(await self.merger.merge(archive, trigger=Trigger.MANUAL, force=request.force))
            except HaSyncError as error:
                failures.append(error)
                told.append(archive)
        if failures and (len(failures) == len(chosen) or request.dataset):
            raise failures[0]
        return pb.MergeDivergenceResponse(archives=[self._told(item) for item in told])

    async def discard(self, request: pb.DiscardDivergenceRequest) -> pb.DiscardDivergenceResponse:
        """For good."""
        archives = await asyncio.to_thread(self._archives.get, request.id, request.dataset)
        answer = pb.DiscardDivergenceResponse(archives=[self._told(item) for item in archives])
        for archive in archives:
            await self.merger.discard(archive)
        return answer

    # ---- telling

    async def _shown(self, archive: Archive, *, limit: int) -> _Shown:
        about = archive.about
        settings = self._datasets.get(about.dataset)
        notes = [f"not compared: {about.trouble}"] if about.trouble else []
        if settings is None:
            return _Shown(lines=[], notes=[*notes, "sync.toml has no such dataset any more"])
        if self._node.role is Role.STANDBY and (why := self._behind(about.dataset)):
            notes.append(f"compared with what stands on this node, which may not be what the active has: {why}")
        try:
            if isinstance(settings, TreeSettings):
                contents = os.path.join(archive.folder, CONTENTS)
                index = os.path.join(archive.folder, FILES)
                lines = await asyncio.to_thread(
                    differing_files, settings, index, contents, records=about.mergeable, limit=limit
                )
            else:
                lines = await self._rows(settings, archive, limit=limit)
        except (HaSyncError, OSError) as error:
            return _Shown(lines=[], notes=[*notes, f"not compared: {error}"])
        return _Shown(lines=lines, notes=notes)

    async def _rows(self, settings: SqliteSettings, archive: Archive, *, limit: int) -> list[dict[str, str]]:
        folder = os.path.join(self._archives.folder, f"{STAGING}show")
        image = os.path.join(folder, ROWS)

        def staged() -> None:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            shutil.copyfile(os.path.join(archive.folder, ROWS), image)

        if not await asyncio.to_thread(os.path.exists, os.path.join(archive.folder, ROWS)):
            return []
        await asyncio.to_thread(staged)
        try:
            order: dict[str, object] = {
                "job": "show",
                "settings": settings_out(settings),
                "image": image,
                "limit": limit,
                "records": archive.about.mergeable,
            }
            lines = (await run_apart(order))["lines"]
            assert isinstance(lines, list), lines
            return lines
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    def _told(self, archive: Archive) -> pb.DivergenceArchive:
        about, standing = archive.about, archive.standing
        return pb.DivergenceArchive(
            id=about.id,
            dataset=about.dataset,
            kind=about.kind,
            priority=about.priority,
            epoch=about.epoch,
            saved_unix_s=about.saved_unix_s,
            path=about.path,
            folder=archive.folder,
            state=standing.state.value,
            mergeable=about.mergeable,
            waiting=_text(self.merger.waiting(archive)),
            counts=about.counts,
            bytes=about.size,
            left_out=about.left_out_count,
            left_out_names=[_text(name) for name in about.left_out],
            trouble=_text(about.trouble),
            added=standing.added,
            present=standing.present,
            left=standing.left,
            reasons=[_text(reason) for reason in standing.reasons],
        )


def _text(value: str) -> str:
    """Names of files and values of columns need not be text."""
    return value.encode("utf-8", "backslashreplace").decode()
