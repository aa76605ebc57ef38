"""A dataset in memory: a source with a journal and a sink that keeps what it got, for tests of the stream alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from ha_sync.core.dataset import DatasetReport, DatasetState, Finished
from ha_sync.core.frame import Body, Frame
from ha_sync.core.position import NOWHERE, Answer, Epoch, Incarnation, Position, Sequence, answer_to

JOURNAL = Incarnation(b"memory-journal-1")


class MemorySource:
    """Each entry of the journal is one group of ``frames_per_group`` frames."""

    def __init__(self, *, epoch: int = 1, incarnation: Incarnation = JOURNAL, frames_per_group: int = 1) -> None:
        self.epoch = Epoch(epoch)
        self.incarnation = incarnation
        self.journal: list[bytes] = []
        self.frames_per_group = frames_per_group
        self.acknowledged = NOWHERE
        self.needed: list[bytes] = []
        self.partials: list[bytes] = []
        self.inventories: list[list[bytes]] = []
        self.more = asyncio.Condition()
        self.sessions = 0

    def at(self, sequence: int) -> Position:
        return Position(epoch=self.epoch, incarnation=self.incarnation, sequence=Sequence(sequence))

    async def write(self, payload: bytes) -> None:
        async with self.more:
            self.journal.append(payload)
            self.more.notify_all()

    async def open(self, epoch: Epoch) -> None:
        self.epoch = epoch

    async def subscribe(self, applied: Position) -> MemorySession:
        self.sessions += 1
        return MemorySession(self, applied)

    def report(self) -> DatasetReport:
        return DatasetReport(
            state=DatasetState.STREAMING, position=self.at(len(self.journal)), acknowledged=self.acknowledged
        )

    async def settled(self) -> Position:
        return self.at(len(self.journal))

    async def resume(self, *, accept_deletes: bool) -> None:
        raise AssertionError(accept_deletes)

    async def detach(self) -> tuple[str, ...]:
        return ()

    async def close(self) -> None:
        return


class MemorySession:
    def __init__(self, source: MemorySource, applied: Position) -> None:
        self._source = source
        captured = source.at(len(source.journal))
        self.answer = answer_to(applied=applied, captured=captured, oldest_kept=Sequence(0))
        self.method = "rows"
        self._next = applied.sequence if self.answer is Answer.RESUME else 0
        self.closed = False

    async def compare(self, inventory: AsyncIterator[bytes]) -> None:
        self._source.inventories.append([chunk async for chunk in inventory])

    async def frames(self) -> AsyncIterator[Frame]:
        source = self._source
        while True:
            async with source.more:
                while self._next >= len(source.journal):
                    await source.more.wait()
            payload = source.journal[self._next]
            self._next += 1
            for number in range(source.frames_per_group):
                yield Frame(
                    position=source.at(self._next),
                    kind=Body.ROWS,
                    body=b"",
                    payload=payload,
                    group_end=number == source.frames_per_group - 1,
                )

    def acknowledge(self, position: Position) -> None:
        assert not self.closed
        assert position.sequence <= self._next, "acknowledged what was never sent"
        self._source.acknowledged = position

    def need(self, paths: tuple[bytes, ...]) -> None:
        self._source.needed.extend(paths)

    def partials(self, partials: tuple[bytes, ...]) -> None:
        self._source.partials.extend(partials)

    async def close(self) -> None:
        self.closed = True


class MemorySink:
    """Groups become durable when ``release`` allows; a crash forgets what was not."""

    def __init__(self) -> None:
        self.applied = NOWHERE
        self.content: list[bytes] = []
        self.group: list[bytes] = []
        self.begun: list[tuple[Answer, str]] = []
        self.told: tuple[bytes, ...] = ()
        self.fail_next: Exception | None = None
        self.slow = asyncio.Event()
        self.slow.set()
        self.state = DatasetState.STREAMING
        self.changed = asyncio.Condition()
        self._durable: Callable[[Position], None] = lambda _position: None
        self._failure: Callable[[Exception], None] = lambda _error: None
        self._need: Callable[[tuple[bytes, ...]], None] = lambda _paths: None

    async def open(self, epoch: Epoch, *, active_at: str) -> None:
        raise AssertionError((epoch, active_at))

    async def partials(self) -> tuple[bytes, ...]:
        return self.told

    async def begin(self, answer: Answer, method: str) -> None:
        self.begun.append((answer, method))
        self.group = []
        if answer is Answer.COMPARE:
            self.content = []

    async def inventory(self) -> AsyncIterator[bytes]:
        yield b"one"
        yield b"two"

    async def receive(self, frame: Frame) -> None:
        await self.slow.wait()
        self.group.append(bytes(frame.payload))
        if not frame.group_end:
            return
        if self.fail_next is not None:
            error, self.fail_next = self.fail_next, None
            self.group = []
            raise error
        self.content.append(self.group[0])
        self.group = []
        self.applied = frame.position
        self._durable(frame.position)
        async with self.changed:
            self.changed.notify_all()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(20), self.changed:
            await self.changed.wait_for(lambda: len(self.content) >= count)

    def ask_for(self, *paths: bytes) -> None:
        self._need(paths)

    def on_durable(self, callback: Callable[[Position], None]) -> None:
        self._durable = callback

    def on_failure(self, callback: Callable[[Exception], None]) -> None:
        self._failure = callback

    def on_need(self, callback: Callable[[tuple[bytes, ...]], None]) -> None:
        self._need = callback

    def fail_later(self, error: Exception) -> None:
        self._failure(error)

    def report(self) -> DatasetReport:
        return DatasetReport(state=self.state, position=self.applied)

    async def promote(self) -> tuple[Finished, ...]:
        return ()

    async def detach(self) -> tuple[str, ...]:
        return ()

    async def resume(self, *, accept_deletes: bool) -> None:
        raise AssertionError(accept_deletes)

    async def close(self) -> None:
        return
