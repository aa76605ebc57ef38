"""Merges one archive into this node's dataset, wherever the archive lies: the Active's part, of every kind.

``Source`` gives the archive: its index as a file that may be written to, and contents on demand. One merge a dataset at
a time; none while this node leaves its role: what is cut off then is made again. Runs in the event loop; what blocks is
done in a thread or in a process of its own. Seconds are monotonic.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Protocol

from ha_sync.config import DatasetSettings, SqliteSettings, TreeSettings
from ha_sync.divergence.apart import run_apart
from ha_sync.divergence.archive import CONTENTS, FILES, MERGEABLE, ROWS, STAGING, Archive
from ha_sync.divergence.child import settings_out
from ha_sync.divergence.mailbox_lock import release_left
from ha_sync.divergence.merging_rows import require_harmless
from ha_sync.divergence.merging_tree import TreeMerge, Unit
from ha_sync.divergence.outcome import Outcome
from ha_sync.divergence.placing import FOLDER
from ha_sync.divergence.tree_index import Object, content_path
from ha_sync.errors import HaSyncError, Refused, WrongState

BATCH_BYTES = 16 * 1024 * 1024
BATCH_UNITS = 64
"""So much content is asked for at once."""

HOLD_S = 30.0
"""After this node began to leave its role it takes no merge for so long, or until it has a role again."""


class Source(Protocol):
    """An archive, here or at the other node."""

    async def index(self, folder: str) -> str:
        """A copy of the index in ``folder``; its path."""

    async def contents(self, items: tuple[Object, ...], folder: str) -> dict[int, str]:
        """Paths of the contents by number; those in ``folder`` are removed when they were placed."""


class Local:
    """An archive of this node."""

    def __init__(self, archive: Archive) -> None:
        self._archive = archive

    async def index(self, folder: str) -> str:
        """See Source."""
        name = FILES if self._archive.about.kind == "tree" else ROWS
        target = os.path.join(folder, name)
        await asyncio.to_thread(shutil.copyfile, os.path.join(self._archive.folder, name), target)
        return target

    async def contents(self, items: tuple[Object, ...], folder: str) -> dict[int, str]:  # noqa: ARG002 - the protocol's
        """See Source."""
        kept = os.path.join(self._archive.folder, CONTENTS)
        return {item.number: content_path(kept, item.number) for item in items}


class Merging:
    """See the module."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._note = os.path.join(folder, "mailbox-lock.json")
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._mailbox = asyncio.Lock()  # of all trees: there is one note of a lock
        self._going: set[asyncio.Task[Outcome]] = set()
        self._held_until = float("-inf")

    def recover(self, datasets: tuple[DatasetSettings, ...]) -> str:
        """Blocking, before anything is merged: what a crash left goes; the mailbox folder that is free again."""
        freed = release_left(self._note)
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._folder):
                if name.startswith(STAGING):
                    shutil.rmtree(os.path.join(self._folder, name), ignore_errors=True)
        for settings in datasets:
            if isinstance(settings, TreeSettings):
                shutil.rmtree(os.path.join(settings.path, os.fsdecode(FOLDER)), ignore_errors=True)
        return freed

    @staticmethod
    async def require(settings: DatasetSettings, *, force: bool) -> None:
        """Raises where a merge into the dataset is not possible now, before anything is sent."""
        if settings.priority not in MERGEABLE:
            raise Refused("will not merge into", subject=settings.name, reason="configuration is left to a person")
        if not await asyncio.to_thread(os.path.lexists, settings.path):
            raise WrongState("puts off merging into", subject=settings.path, reason="it does not exist on this node")
        if isinstance(settings, SqliteSettings):
            await asyncio.to_thread(require_harmless, settings, force=force)

    async def leave(self) -> None:
        """The role of this node changes: nothing of a merge writes any more when this returns."""
        self._held_until = time.monotonic() + HOLD_S
        for task in self._going:
            task.cancel()
        if self._going:
            await asyncio.wait(self._going)

    def arrive(self) -> None:
        """This node has a role again."""
        self._held_until = float("-inf")

    async def merge(self, settings: DatasetSettings, source: Source, *, force: bool) -> Outcome:
        """Returns when all that was inserted is durable. Raises WrongState where it is put off."""
        if time.monotonic() < self._held_until:
            raise _leaving(settings)
        task = asyncio.create_task(self._merged(settings, source, force=force), name=f"merge {settings.name}")
        self._going.add(task)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise _leaving(settings) from None
            task.cancel()
            await asyncio.wait([task])
            raise
        finally:
            self._going.discard(task)

    async def _merged(self, settings: DatasetSettings, source: Source, *, force: bool) -> Outcome:
        async with self._locks[settings.name]:
            await self.require(settings, force=force)
            folder = os.path.join(self._folder, f"{STAGING}merge-{settings.name}")
            await asyncio.to_thread(_emptied, folder)
            try:
                index = await source.index(folder)
                if isinstance(settings, SqliteSettings):
                    order = {"job": "merge", "settings": settings_out(settings), "image": index, "force": force}
                    return _outcome(await run_apart(order))
                async with self._mailbox:
                    merge = await asyncio.to_thread(TreeMerge, settings, index, note=self._note)
                    try:
                        await self._tree(merge, source, folder)
                    finally:
                        await asyncio.to_thread(merge.close)
                    return merge.outcome
            except OSError as error:
                raise WrongState("puts off merging into", subject=settings.path, reason=str(error)) from error
            finally:
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    @staticmethod
    async def _tree(merge: TreeMerge, source: Source, folder: str) -> None:
        units = merge.units()
        while batch := await asyncio.to_thread(_next_batch, units):
            contents = await source.contents(tuple(item for unit in batch for item in unit.files), folder)

            def place(batch: list[Unit] = batch, contents: dict[int, str] = contents) -> None:
                for unit in batch:
                    merge.place(unit, contents)
                    for item in unit.files:
                        if contents[item.number].startswith(folder):
                            os.unlink(contents[item.number])

            placing = asyncio.ensure_future(asyncio.to_thread(place))
            try:
                await asyncio.shield(placing)
            except asyncio.CancelledError:
                await placing  # a mailbox must not stay locked
                raise


def _leaving(settings: DatasetSettings) -> WrongState:
    return WrongState("puts off merging into", subject=settings.name, reason="the role of this node changes")


def _next_batch(units: Iterator[Unit]) -> list[Unit]:
    batch: list[Unit] = []
    size = 0
    for unit in units:
        batch.append(unit)
        size += unit.size
        if size >= BATCH_BYTES or len(batch) >= BATCH_UNITS:
            break
    return batch


def _emptied(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder, mode=0o700)


def _outcome(result: dict[str, object]) -> Outcome:
    reasons = result["reasons"]
    if not isinstance(reasons, list):
        raise HaSyncError("the process of a merge failed", reason="its answer makes no sense")
    added, present, left = (int(str(result[key])) for key in ("added", "present", "left"))
    return Outcome(added=added, present=present, left=left, reasons=[str(reason) for reason in reasons])
