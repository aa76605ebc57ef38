"""A full backup of one database of a pair in this process: the peer's channel and the run, without the runner."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

import apsw

from ha_sync.backup.rows import RowsExaminer, RowsWitness
from ha_sync.core.examine import Depth, Examined, Fault, Finding, Side
from ha_sync.core.position import Position
from tests.support.rows_pipe import RowsPair


class LocalPeer:
    """Asks a witness in a thread, as the other node would; counts what would be on the wire."""

    def __init__(self, witness: RowsWitness) -> None:
        self._witness = witness
        self.thread = ThreadPoolExecutor(1)
        self.bytes = 0
        self.questions = 0

    async def ask(self, question: bytes) -> AsyncIterator[bytes]:
        self.questions += 1
        chunks = await asyncio.get_running_loop().run_in_executor(
            self.thread, lambda: list(self._witness.answer(question))
        )
        self.bytes += len(question) + sum(map(len, chunks))
        for chunk in chunks:
            yield chunk

    def close(self) -> None:
        self.thread.shutdown()


class LocalRun:
    """What the runner offers an examiner."""

    def __init__(self, pair: RowsPair, *, depth: Depth = Depth.CONTENT, cursor: bytes = b"") -> None:
        self._pair = pair
        self.depth = depth
        self.cursor = cursor
        self.cursors: list[bytes] = []
        self.findings: list[Finding] = []
        self.spent = 0
        self.objects = 0
        self.content_bytes = 0
        self.barriers = 0
        self.expected = (0, 0)
        self.equal_until_unix_s: float | None = 12.0

    async def spend(self, content_bytes: int) -> None:
        self.spent += content_bytes

    def advance(self, *, objects: int, content_bytes: int) -> None:
        self.objects += objects
        self.content_bytes += content_bytes

    def expect(self, *, objects: int, content_bytes: int) -> None:
        self.expected = (objects, content_bytes)

    def found(self, finding: Finding) -> None:
        self.findings.append(finding)

    async def replicated(self) -> None:
        """As the node's own barrier: by what the source knows to be acknowledged."""
        self.barriers += 1
        target = await self._pair.source.settled()
        async with asyncio.timeout(60):
            while not _covers(self._pair.source.report().acknowledged, target):
                await asyncio.sleep(0.005)

    async def reached(self, cursor: bytes) -> None:
        self.cursors.append(cursor)
        self.cursor = cursor

    def told(self) -> set[tuple[str, Fault, Side, bool]]:
        return {(f.subject, f.fault, f.side, f.repaired) for f in self.findings}


def _covers(acknowledged: Position | None, target: Position) -> bool:
    if target.sequence == 0:
        return True
    return acknowledged is not None and acknowledged.resumes(target) and acknowledged.sequence >= target.sequence


class Examination:
    """The two halves of a pair's full backup."""

    def __init__(self, pair: RowsPair) -> None:
        self.pair = pair
        self.peer = LocalPeer(RowsWitness(pair.sink_settings, pair.sink))
        self.examiner = RowsExaminer(pair.source_settings, pair.source)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.peer.close()

    async def run(self, *, depth: Depth = Depth.CONTENT, cursor: bytes = b"") -> tuple[Examined, LocalRun]:
        run = LocalRun(self.pair, depth=depth, cursor=cursor)
        return await self.examiner.examine(self.peer, run), run


def behind_our_back(path: Path, *statements: str) -> None:
    """A change that fires no trigger, by a program that knows how; in another process."""
    code = (
        "import apsw, sys\n"
        "db = apsw.Connection(sys.argv[1], flags=apsw.SQLITE_OPEN_READWRITE)\n"
        "db.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)\n"
        "db.config(apsw.SQLITE_DBCONFIG_DEFENSIVE, 0)\n"
        "db.set_busy_timeout(20_000)\n"
        "for statement in sys.argv[2:]:\n"
        "    db.execute(statement).fetchall()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path), *statements], check=True)


def table_page(page: bytes) -> bool:
    """A leaf of a table."""
    return page[0] == 0x0D


def index_page(page: bytes) -> bool:
    """A leaf of an index."""
    return page[0] == 0x0A


def flip_bit(path: Path, needle: bytes, kind: Callable[[bytes], bool]) -> None:
    """One bit of the last byte but one of ``needle``, on a page of that kind, in the file on disk."""

    def flip(page: bytearray) -> None:
        page[page.index(needle) + len(needle) - 2] ^= 1

    _edit(path, needle, kind, flip)


def tear_page(path: Path, needle: bytes) -> None:
    """The table's page with ``needle`` on it loses its first half."""

    def tear(page: bytearray) -> None:
        page[: len(page) // 2] = os.urandom(len(page) // 2)

    _edit(path, needle, table_page, tear)


def emptied_log(path: Path) -> int:
    """Everything stands in the file itself; returns the size of its pages."""
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    db.set_busy_timeout(20_000)
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    (size,) = db.execute("PRAGMA page_size").fetchall()[0]
    db.close()
    assert isinstance(size, int)
    return size


def _edit(path: Path, needle: bytes, kind: Callable[[bytes], bool], edit: Callable[[bytearray], None]) -> None:
    size = emptied_log(path)
    # In another process: closing the file here would drop this process's locks on it.
    code = "import sys; f = open(sys.argv[1], 'r+b'); f.seek(int(sys.argv[2])); f.write(sys.stdin.buffer.read())"
    content = subprocess.run(["cat", str(path)], capture_output=True, check=True).stdout
    for start in range(0, len(content), size):
        page = bytearray(content[start : start + size])
        if needle in page and kind(bytes(page)):
            edit(page)
            subprocess.run([sys.executable, "-c", code, str(path), str(start)], input=bytes(page), check=True)
            return
    raise AssertionError(f"{needle!r} is not there")
