"""A tree's two ends in one process: the source's frames go straight into the sink, as the stream would carry them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from ha_sync.apply.tree import TreeSink
from ha_sync.capture.tree import TreeSource
from ha_sync.config import TreeSettings
from ha_sync.core.frame import Frame
from ha_sync.core.position import Answer, Epoch, Position
from tests.support.tree_apply_feed import settings, tree_of

EPOCH = Epoch(4)


@dataclass
class TreePair:
    """``active`` and ``standby`` are the roots."""

    base: str
    more: dict[str, object]
    events: list[tuple[str, str, dict[str, object]]] = field(default_factory=list)
    restarts: int = 0
    payload_bytes: int = 0
    answers: list[Answer] = field(default_factory=list)

    @property
    def active(self) -> str:
        return os.path.join(self.base, "active")

    @property
    def standby(self) -> str:
        return os.path.join(self.base, "standby")

    def _settings(self, path: str) -> TreeSettings:
        return settings(path, **self.more)

    async def __aenter__(self) -> Self:
        os.makedirs(self.active, exist_ok=True)
        await self.open_source()
        await self.open_sink()
        return self

    async def open_source(self) -> None:
        self.source = TreeSource(
            self._settings(self.active), catalogue_path=f"{self.base}/a/catalogue.db", report=lambda *_: None
        )
        await self.source.open(EPOCH)

    async def open_sink(self) -> None:
        self.sink = TreeSink(
            self._settings(self.standby),
            catalogue_path=f"{self.base}/s/catalogue.db",
            report=lambda *event: self.events.append(event),
        )
        await self.sink.open(EPOCH, active_at="192.0.2.1")
        self._pump = asyncio.create_task(self._stream())

    async def __aexit__(self, *_: object) -> None:
        await self.close_sink()
        await self.source.close()

    async def close_sink(self) -> None:
        self._pump.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._pump
        await self.sink.close()

    async def _stream(self) -> None:
        needs: list[bytes] = []
        failed = asyncio.Event()
        session = None

        def need(paths: tuple[bytes, ...]) -> None:
            needs.extend(paths)
            if session is not None:
                session.need(tuple(needs))
                needs.clear()

        self.sink.on_need(need)
        self.sink.on_failure(lambda _: failed.set())
        self.sink.on_durable(lambda position: session.acknowledge(position) if session else None)
        while True:
            failed.clear()
            partials = await self.sink.partials()
            session = await self.source.subscribe(self.sink.applied)
            try:
                session.partials(partials)
                self.answers.append(session.answer)
                await self.sink.begin(session.answer, session.method)
                if session.answer is Answer.COMPARE:
                    await session.compare(self.sink.inventory())
                if needs:
                    need(())
                await self._carry(session.frames(), failed)
            finally:
                closing, session = session, None
                await closing.close()
            self.restarts += 1

    async def _carry(self, frames: object, failed: asyncio.Event) -> None:
        async def feed() -> None:
            async for frame in frames:  # type: ignore[attr-defined]
                assert isinstance(frame, Frame)
                self.payload_bytes += len(frame.payload)
                await self.sink.receive(frame)

        parts = [asyncio.create_task(feed()), asyncio.create_task(failed.wait())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def caught_up(self) -> None:
        """Everything written before the call is on the Standby."""
        async with asyncio.timeout(20):
            wanted = await self.source.settled()
        await self.until(lambda: self._has(wanted))

    def _has(self, wanted: Position) -> bool:
        reached = self.source.report().acknowledged
        return reached is not None and reached.resumes(wanted) and reached.sequence >= wanted.sequence

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(40):
            while not condition():
                if self._pump.done():
                    self._pump.result()
                await asyncio.sleep(0.01)

    def assert_equal(self) -> None:
        """Content, modes and times, those of the directories and of the root included."""
        assert tree_of(self.standby) == tree_of(self.active)
        assert times_of(self.standby) == times_of(self.active)


def times_of(root: str) -> dict[str, int]:
    """When each object below the root, and the root itself, was modified."""
    times: dict[str, int] = {}
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".ha-")]
        for full in (folder, *(os.path.join(folder, name) for name in files + folders if not name.startswith(".ha-"))):
            times[os.path.relpath(full, root)] = os.lstat(full).st_mtime_ns
    return times
