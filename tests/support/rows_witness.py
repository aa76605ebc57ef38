# ruff: noqa: E501 - statements of SQL read better in one line
"""What the tests of rows datasets look with, and the programs that they run beside the engine."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import apsw

from tests.support.rows_pipe import RowsPair, content

SIMPLE = "PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, v)"


async def eventually(check: Callable[[], bool], timeout: float = 20.0) -> None:
    async with asyncio.timeout(timeout):
        while not check():
            await asyncio.sleep(0.01)


async def equal(pair: RowsPair) -> None:
    await pair.settle()
    assert content(pair.standby) == content(pair.active)


@contextlib.contextmanager
def another_process_has_open(path: Path, script: str = "") -> Iterator[subprocess.Popen[str]]:
    """A program with the database open; it runs each line that it is sent."""
    code = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=10)\n"
        "db.execute('SELECT count(*) FROM sqlite_master').fetchall()\n"
        "print('ready', flush=True)\n"
        "for line in sys.stdin:\n"
        "    try: (db.executescript if ';' in line else db.execute)(line); print('done', flush=True)\n"
        "    except Exception as e: print('error', e, flush=True)\n"
    )
    program = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert program.stdout is not None
    assert program.stdin is not None
    try:
        assert program.stdout.readline() == "ready\n"
        yield program
    finally:
        program.stdin.close()
        program.wait(10)
        program.stdout.close()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[apsw.Connection]:
    """A connection of this process, through the same SQLite as the engine's: two libraries would drop each other's locks."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    db.set_busy_timeout(10_000)
    try:
        yield db
    finally:
        db.close()


def say(program: subprocess.Popen[str], line: str) -> None:
    assert program.stdin is not None
    assert program.stdout is not None
    program.stdin.write(line + "\n")
    program.stdin.flush()
    assert program.stdout.readline() == "done\n"


def raw_schema(path: Path) -> list[tuple[str, ...]]:
    with opened(path) as db:
        return db.execute("SELECT type, name FROM sqlite_master").fetchall()


async def run(*command: str) -> int:
    return await (await asyncio.create_subprocess_exec(*command)).wait()
