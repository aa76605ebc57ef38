"""A source and a sink of a database joined directly in one process, and small databases to feed them."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from ha_sync.config import CaptureMode, NodeLocalRows, SqliteSettings
from ha_sync.core.dataset import DatasetName, Priority, Session, Sink, Source
from ha_sync.core.position import Answer
from ha_sync.errors import RepairNeeded, Retryable


class Events:
    """Collects what is reported."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, dict[str, object]]] = []

    def __call__(self, severity: str, what: str, fields: dict[str, object]) -> None:
        self.all.append((severity, what, fields))

    def whats(self) -> list[str]:
        return [what for _, what, _ in self.all]


def settings_of(path: Path, **changes: object) -> SqliteSettings:
    values: dict[str, object] = {"capture": CaptureMode.PAGES, **changes}
    return SqliteSettings(name=DatasetName("astdb"), path=str(path), priority=Priority.CONFIG, **values)  # type: ignore[arg-type]


def uuid_rows() -> tuple[NodeLocalRows, ...]:
    return (NodeLocalRows(table="astdb", where="key = '/pbx/UUID'"),)


class Pipe:
    """What the stream does, without a wire: one session after another, needs handed on, RepairNeeded reconnects."""

    def __init__(self, source: Source, sink: Sink) -> None:
        self.source = source
        self.sink = sink
        self.answers: list[Answer] = []
        self.frames = 0
        self.payload_bytes = 0
        self._session: Session | None = None
        self._needs: set[bytes] = set()
        self._moved = asyncio.Event()
        sink.on_durable(self._on_durable)
        sink.on_need(self._on_need)

    async def run(self) -> None:
        while True:
            session = await self.source.subscribe(self.sink.applied)
            self._session = session
            self.answers.append(session.answer)
            await self.sink.begin(session.answer, session.method)
            if session.answer is Answer.COMPARE:
                await session.compare(self.sink.inventory())
            if self._needs:
                session.need(tuple(self._needs))
                self._needs.clear()
            with contextlib.suppress(RepairNeeded, Retryable):
                async for frame in session.frames():
                    self.frames += 1
                    self.payload_bytes += len(frame.payload)
                    await self.sink.receive(frame)
            self._session = None
            await session.close()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), 0.05)
            self._moved.clear()

    async def caught_up(self) -> None:
        position = await self.source.settled()
        await self.until(
            lambda: self.sink.applied.resumes(position) and self.sink.applied.sequence >= position.sequence
        )

    def _on_durable(self, position: object) -> None:
        self._moved.set()
        if self._session is not None:
            self._session.acknowledge(position)  # type: ignore[arg-type]

    def _on_need(self, paths: tuple[bytes, ...]) -> None:
        if self._session is not None:
            self._session.need(paths)
        self._needs.update(paths)


@contextlib.asynccontextmanager
async def flowing(source: Source, sink: Sink) -> AsyncIterator[Pipe]:
    """A pipe that runs; what it dies of is raised at the end."""
    pipe = Pipe(source, sink)
    task = asyncio.create_task(pipe.run())
    try:
        yield pipe
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def astdb(path: Path, rows: dict[str, str], *, journal_mode: str = "DELETE") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode={journal_mode}")
        db.execute("CREATE TABLE IF NOT EXISTS astdb(key VARCHAR(256), value VARCHAR(256), PRIMARY KEY(key))")
        put(db, rows)


def put(db: sqlite3.Connection, rows: dict[str, str]) -> None:
    with db:
        db.executemany("INSERT OR REPLACE INTO astdb VALUES(?, ?)", rows.items())


def rows_of(path: Path) -> dict[str, str]:
    """Read from a copy: the file itself may be a live one."""
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        image = bytearray(path.read_bytes())
        image[18:20] = b"\x01\x01"
        db.deserialize(bytes(image))
        return dict(db.execute("SELECT key, value FROM astdb"))
