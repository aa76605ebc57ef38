"""A source and a sink of one database joined in this process, as the stream joins them, without gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import apsw

from ha_sync.apply.rows import RowsSink
from ha_sync.capture.rows import RowsSource
from ha_sync.config import SqliteSettings
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.core.position import Answer, Epoch, Position
from ha_sync.errors import HaSyncError

EPOCH = Epoch(2)
ACTIVE_AT = "192.0.2.1"


class Events:
    """What was reported."""

    def __init__(self) -> None:
        self.all: list[tuple[str, str, dict[str, object]]] = []

    def __call__(self, severity: str, what: str, fields: dict[str, object]) -> None:
        self.all.append((severity, what, fields))


class RowsPair:
    """An Active's source and a Standby's sink. ``link`` moves frames until it is cancelled or something fails."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        base = SqliteSettings(
            name=DatasetName("config"), path=str(directory / "active.db"), priority=Priority.CONFIG, **settings
        )
        self.active = directory / "active.db"
        self.standby = directory / "standby.db"
        self.source_settings = base
        self.sink_settings = replace(base, path=str(self.standby))
        self.events = Events()
        self.failures: list[Exception] = []
        self.answers: list[Answer] = []
        self.groups = 0
        self.bytes = 0
        self.durable: list[Position] = []
        self.link: asyncio.Task[None] | None = None
        self.make()

    def make(self) -> None:
        self.source = RowsSource(
            self.source_settings, state_path=str(self.directory / "source.state"), report=self.events
        )
        self.sink = RowsSink(self.sink_settings, state_path=str(self.directory / "sink.state"), report=self.events)

    async def open(self, epoch: Epoch = EPOCH) -> None:
        await self.source.open(epoch)
        await self.sink.open(epoch, active_at=ACTIVE_AT)

    async def connect(self) -> None:
        """Subscribes and starts to move frames."""
        self.changed = asyncio.Event()
        self.link = asyncio.create_task(self._link())

    async def disconnect(self) -> None:
        if self.link is not None:
            self.link.cancel()
            with contextlib.suppress(asyncio.CancelledError, HaSyncError):
                await self.link
            self.link = None

    async def _link(self) -> None:
        """Reconnects for ever, as the stream layer does."""
        while True:
            try:
                await self._once()
            except HaSyncError as error:
                self.failures.append(error)
                await asyncio.sleep(0.02)

    async def _once(self) -> None:
        failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        session = await self.source.subscribe(self.sink.applied)
        self.answers.append(session.answer)

        def durable(position: Position) -> None:
            self.durable.append(position)
            session.acknowledge(position)
            self.changed.set()

        def failure(error: Exception) -> None:
            if not failed.done():
                failed.set_exception(error)

        self.sink.on_durable(durable)
        self.sink.on_failure(failure)
        self.sink.on_need(session.need)
        pump = asyncio.create_task(self._pump(session))
        try:
            await asyncio.wait((pump, failed), return_when=asyncio.FIRST_COMPLETED)
            for waited in (pump, failed):
                if waited.done():
                    waited.result()
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError, HaSyncError):
                await pump
            if failed.done() and not failed.cancelled():
                failed.exception()
            await session.close()

    async def _pump(self, session: Any) -> None:
        await self.sink.begin(session.answer, session.method)
        if session.answer is Answer.COMPARE:
            await session.compare(self.sink.inventory())
        frames = session.frames()
        try:
            async for frame in frames:
                self.bytes += frame.size
                self.groups += frame.group_end
                await self.sink.receive(frame)
        finally:
            await frames.aclose()

    async def settle(self, timeout: float = 20.0) -> Position:
        """Waits until everything that is committed now is durable on the Standby."""
        settling = asyncio.create_task(self._settle(timeout))
        waited = {settling, self.link} - {None}
        try:
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if settling.done():
                return settling.result()
            # The link only ends by an error that no layer has a remedy for: there is nothing to wait for.
            assert self.link is not None
            self.link.result()
            raise AssertionError("the link ended")
        except TimeoutError:
            state = (self.source.report(), self.sink.report(), self.failures[-3:], self.answers, self.link)
            raise AssertionError(f"not settled: {state}") from None
        finally:
            settling.cancel()

    async def _settle(self, timeout: float) -> Position:
        async with asyncio.timeout(timeout):
            while True:
                wanted = await self.source.settled()
                while not (self.sink.applied.resumes(wanted) and self.sink.applied.sequence >= wanted.sequence):
                    self.changed.clear()
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            await self.changed.wait()
                    if not self.sink.applied.resumes(wanted):
                        wanted = await self.source.settled()
                if (await self.source.settled()) == wanted:
                    return wanted

    async def crash(self) -> None:
        """Both ends lose what they had in memory (a kill, as far as files can tell, in this process)."""
        await self.disconnect()
        # A killed process saves nothing: only what was made durable before may be found again.
        self.source._capture.journal.save = lambda: None  # type: ignore[method-assign]
        await self.source.close()
        await self.sink.close()
        self.make()

    async def close(self) -> None:
        try:
            await self.disconnect()
        finally:
            await self.source.close()
            await self.sink.close()


@asynccontextmanager
async def rows_pair(directory: Path, **settings: Any) -> AsyncIterator[RowsPair]:
    """An open, connected pair."""
    pair = RowsPair(directory, **settings)
    await pair.open()
    await pair.connect()
    try:
        yield pair
    finally:
        await pair.close()


WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
db.execute("PRAGMA synchronous=OFF")
for line in sys.stdin.read().split("\\x00"):
    if line.strip():
        db.executescript(line)
"""


def write(path: Path, *scripts: str) -> None:
    """Runs SQL in another process through the system's SQLite."""
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(path)],
        input="\x00".join(scripts),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def content(path: Path) -> dict[str, Any]:
    """All that two nodes must have in common: schema, rows with types, sequences, versions."""
    if not os.path.exists(path):
        return {}
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    db.set_busy_timeout(10_000)
    try:
        db.execute("BEGIN")
        schema = [
            row
            for row in db.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema WHERE sql IS NOT NULL")
            if not str(row[1]).startswith(("_ha_", "sqlite_"))
        ]
        tables = {str(r[1]) for r in schema if r[0] == "table" and not str(r[3]).upper().startswith("CREATE VIRTUAL")}
        rows = {name: _rows(db, name) for name in sorted(tables)}
        sequences = []
        if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'sqlite_sequence'").fetchone():
            sequences = [r for r in db.execute("SELECT * FROM sqlite_sequence") if not str(r[0]).startswith("_ha_")]
        return {
            "schema": sorted(schema),
            "rows": rows,
            "sequences": sorted(sequences),
            "user_version": db.execute("PRAGMA user_version").fetchall(),
            "application_id": db.execute("PRAGMA application_id").fetchall(),
        }
    finally:
        if db.in_transaction:
            db.execute("COMMIT")
        db.close()


def _rows(db: apsw.Connection, table: str) -> list[Any]:
    name = '"' + table.replace('"', '""') + '"'
    info = db.execute("SELECT name FROM pragma_table_xinfo(?)", (table,)).fetchall()
    columns = ['"' + str(n).replace('"', '""') + '"' for (n,) in info]
    exact = [f"typeof({c}), hex({c})" for c in columns]
    taken = {str(n).lower() for (n,) in info}
    alias = next((a for a in ("rowid", "_rowid_", "oid") if a not in taken), None)
    if alias is not None:
        try:
            return sorted(db.execute(f"SELECT {alias}, {', '.join(exact)} FROM main.{name}").fetchall())
        except apsw.SQLError:
            pass
    return sorted(db.execute(f"SELECT {', '.join(exact)} FROM main.{name}").fetchall())
