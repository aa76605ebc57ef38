"""The engine beside programs that behave exactly as PBX.md says: they lose nothing, see no error and no stale value.

``HA_SYNC_HARMLESS_S`` makes the campaign as long as wished; 12 seconds a program otherwise. The control at the end
shows that the same programs do lose data beside a reader that takes ordinary locks, so the tests can fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ha_sync.apply.pages import PagesSink
from ha_sync.capture.pages import PagesSource
from ha_sync.core.position import Epoch
from tests.support.pages_pipe import Events, flowing, settings_of

SECONDS = float(os.environ.get("HA_SYNC_HARMLESS_S", "12"))


class Program:
    """The writer's process, and what it said at its end."""

    def __init__(self, kind: str, folder: Path, *options: str) -> None:
        self.db = folder / f"{kind}.db"
        self.ledger = folder / f"{kind}.ledger"
        self.command = [sys.executable, "-m", "tests.support.legacy_writer", kind, str(self.db), str(self.ledger)]
        self.command += ["--seconds", str(SECONDS), *options]
        self.said: dict[str, object] = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.subprocess.Process]:
        process = await asyncio.create_subprocess_exec(*self.command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        try:
            yield process
            self.said = json.loads(await process.stdout.readline())
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.wait()

    def lost(self) -> list[str]:
        """Acknowledged and not in the database."""
        lines = self.ledger.read_text().splitlines()
        with contextlib.closing(sqlite3.connect(self.db)) as db:
            if self.db.name.startswith("astdb"):
                expected = dict(line.split(" ") for line in lines)
                found = dict(db.execute("SELECT key, value FROM astdb"))
                return [key for key, value in expected.items() if found.get(key) != value]
            rows = {unique for (unique,) in db.execute("SELECT uniqueid FROM cdr")}
            return [line for line in lines if line not in rows]


def lockers(path: Path) -> set[int]:
    """Processes that the kernel names as holders of a lock on the file."""
    try:
        place = f":{path.stat().st_ino}"
    except FileNotFoundError:
        return set()
    lines = [line.replace("-> ", "").split() for line in Path("/proc/locks").read_text().splitlines()]
    return {int(fields[4]) for fields in lines if fields[5].endswith(place)}


async def locks_seen(path: Path, ended: asyncio.Event) -> set[int]:
    """Sampled all the time."""
    pids: set[int] = set()
    while not ended.is_set():
        pids |= lockers(path)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), 0.01)
    return pids


def same(one: str, other: str) -> bool:
    return Path(one).read_bytes() == Path(other).read_bytes()


@contextlib.asynccontextmanager
async def engine_beside(path: Path, folder: Path) -> AsyncIterator[tuple[PagesSource, set[int]]]:
    """Source and sink of the database; afterwards every change has arrived and the set holds who held locks."""
    source = PagesSource(settings_of(path), state_path=folder / f"{path.name}.source", report=Events())
    copy = settings_of(folder / "standby" / path.name)
    sink = PagesSink(copy, state_path=folder / f"{path.name}.sink", report=Events())
    (folder / "standby").mkdir(exist_ok=True)
    holders: set[int] = set()
    ended = asyncio.Event()
    await source.open(Epoch(2))
    await sink.open(Epoch(2), active_at="127.0.0.1")
    watching = asyncio.create_task(locks_seen(path, ended))
    try:
        async with flowing(source, sink) as pipe:
            yield source, holders
            await pipe.caught_up()
            assert same(str(path), copy.path)
    finally:
        ended.set()
        holders |= await watching
        await sink.close()
        await source.close()


@pytest.mark.req("R25")
async def test_astdb_loses_nothing_beside_the_engine(tmp_path: Path) -> None:
    program = Program("astdb", tmp_path, "--per-second", "40")
    async with engine_beside(program.db, tmp_path) as (source, holders):
        async with program.running() as process:
            pid = process.pid
        accepted = dict(source.report().counts)["copies_accepted"]
    assert program.said["errors"] == []
    assert program.said["lost_commits"] == 0
    assert program.said["stale"] == 0
    assert program.lost() == []
    assert accepted > SECONDS / 4
    assert holders <= {pid}
    assert os.getpid() not in holders


@pytest.mark.req("R25")
async def test_call_records_lose_no_row_beside_the_engine(tmp_path: Path) -> None:
    program = Program("cdr", tmp_path, "--per-second", "38", "--fill-mib", "4")
    async with engine_beside(program.db, tmp_path) as (source, holders):
        async with program.running():
            pass
        accepted = dict(source.report().counts)["copies_accepted"]
    assert program.said["errors"] == []
    assert program.lost() == []
    assert accepted > SECONDS / 4
    assert os.getpid() not in holders


@pytest.mark.req("R25")
async def test_a_reader_with_ordinary_locks_does_lose_the_same_programs_data(tmp_path: Path) -> None:
    """The control: SELECTs that hold their SHARED lock for a moment, over and over, as a naive poller's."""
    program = Program("astdb", tmp_path, "--per-second", "40")
    stop = asyncio.Event()

    def read_once() -> None:
        with contextlib.closing(sqlite3.connect(program.db, timeout=0)) as db:
            slow = db.execute("SELECT count(*) FROM astdb a, astdb b WHERE a.value < b.value")
            slow.fetchall()

    async def poll() -> None:
        while not stop.is_set():
            with contextlib.suppress(sqlite3.OperationalError):
                await asyncio.to_thread(read_once)
            await asyncio.sleep(0.002)

    async with program.running():
        polling = asyncio.create_task(poll())
        await asyncio.sleep(min(SECONDS, 60) - 1)
        stop.set()
        await polling
    assert program.said["lost_commits"] != 0
    assert program.lost() != []
