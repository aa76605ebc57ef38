"""One Standby's stream from a tree."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from functools import partial
from typing import TYPE_CHECKING

from ha_sync.capture.tree.told import Told
from ha_sync.core.frame import Frame
from ha_sync.core.position import Answer, Position

if TYPE_CHECKING:
    from ha_sync.capture.tree.source import TreeSource

Produced = tuple[list[Frame], Told]


class TreeSession:
    """See ``core.dataset.Session``. One group is produced ahead while another is being sent."""

    def __init__(self, source: TreeSource, answer: Answer) -> None:
        self._source = source
        self._answer = answer
        self._roused = asyncio.Event()
        self._closed = False
        self._ready = answer is Answer.RESUME
        self._ahead: asyncio.Future[Produced] | None = None

    @property
    def answer(self) -> Answer:
        """Resume, or compare."""
        return self._answer

    @property
    def method(self) -> str:
        """Always ``tree``."""
        return "tree"

    def rouse(self) -> None:
        """There may be something to send."""
        self._roused.set()

    async def compare(self, inventory: AsyncIterator[bytes]) -> None:
        """Takes the Standby's inventory."""
        worker = self._source.worker
        await self._source.run(worker.begin_compare)
        async for chunk in inventory:
            await self._source.run(partial(worker.feed, chunk))
        await self._source.run(worker.end_compare)
        self._source.tell(await self._source.run(worker.take_told))
        self._ready = True
        self.rouse()

    def _produce(self) -> Produced:
        worker = self._source.worker
        return worker.produce(), worker.take_told()

    async def frames(self) -> AsyncIterator[Frame]:
        """Frames for ever."""
        while not self._closed:
            self._roused.clear()
            if not self._ready:
                await self._roused.wait()
                continue
            # What was produced ahead may be older than a call of rouse that was just cleared.
            fresh = self._ahead is None
            if self._ahead is None:
                self._ahead = asyncio.ensure_future(self._source.run(self._produce))
            frames, told = await asyncio.shield(self._ahead)
            self._ahead = None
            self._source.tell(told)
            if self._closed:
                return
            if not frames:
                if fresh:
                    await self._roused.wait()
                continue
            self._ahead = asyncio.ensure_future(self._source.run(self._produce))
            for frame in frames:
                yield frame
                if (pause_s := self._source.pause_after(frame.size)) > 0:
                    await asyncio.sleep(pause_s)

    def acknowledge(self, position: Position) -> None:
        """Everything up to ``position`` is durable on the Standby."""
        if not self._closed and self._source.worker.journal.captured.resumes(position):
            self._source.note_acknowledged(position.sequence)

    def need(self, paths: tuple[bytes, ...]) -> None:
        """The Standby cannot use these."""
        if not self._closed:
            self._source.need(paths)

    def partials(self, partials: tuple[bytes, ...]) -> None:
        """The Standby has these of files that go in parts."""
        if not self._closed:
            self._source.queue(lambda worker: worker.parts.standby_has(partials))

    async def close(self) -> None:
        """Ends the session."""
        if self._closed:
            return
        self._closed = True
        self.rouse()
        if self._ahead is not None:
            with contextlib.suppress(Exception):
                await self._source.in_time(self._ahead)
        self._source.ended(self)
        await self._source.in_time(asyncio.ensure_future(self._source.run(self._source.worker.end)))
