"""The full backup of a database captured as pages: rot on either node is told from a program's writing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from ha_sync.apply.pages import PagesSink
from ha_sync.backup.full import pages as pages_module
from ha_sync.backup.full.pages import PagesExaminer, PagesWitness
from ha_sync.capture.pages import PagesSource
from ha_sync.core.examine import Examined, Fault, Side
from ha_sync.core.position import Epoch
from ha_sync.database import lockfree
from ha_sync.errors import ProtocolFault
from tests.support.pages_pipe import Events, Pipe, astdb, flowing, put, rows_of, settings_of
from tests.support.rows_examined import LocalPeer, LocalRun

pytestmark = pytest.mark.req("R23", "R13")

ROWS = {f"key{number:04}": "value" * 20 for number in range(300)}


class Pair:
    """A source, a sink, and a full backup of what they hold."""

    def __init__(self, folder: Path) -> None:
        self.active = folder / "a" / "astdb.sqlite3"
        self.standby = folder / "b" / "astdb.sqlite3"
        for path in (self.active, self.standby):
            path.parent.mkdir()
        astdb(self.active, ROWS)
        self.settings = settings_of(self.active)
        self.source = PagesSource(self.settings, state_path=folder / "source.json", report=Events())
        self.sink = PagesSink(settings_of(self.standby), state_path=folder / "sink.json", report=Events())

    async def examined(self) -> tuple[Examined, set[tuple[Fault, Side, bool]]]:
        witness = PagesWitness(self.settings, self.sink, asyncio.get_running_loop())
        peer = LocalPeer(witness)  # type: ignore[arg-type]
        run = LocalRun(SimpleNamespace(source=self.source))  # type: ignore[arg-type]
        try:
            found = await PagesExaminer(self.settings, self.source).examine(peer, run)
        finally:
            peer.close()
        assert all(finding.subject == str(self.active) for finding in run.findings)
        return found, {(finding.fault, finding.side, finding.repaired) for finding in run.findings}

    async def without_guard(self) -> None:
        """What is changed now is seen by nobody but a full backup."""
        await self.sink._stop_guard()
        os.chmod(self.standby, 0o644)


@contextlib.asynccontextmanager
async def joined(tmp_path: Path) -> AsyncIterator[tuple[Pair, Pipe]]:
    pair = Pair(tmp_path)
    await pair.source.open(Epoch(2))
    await pair.sink.open(Epoch(2), active_at="192.0.2.53")
    try:
        async with flowing(pair.source, pair.sink) as pipe:
            await pipe.caught_up()
            yield pair, pipe
    finally:
        await pair.sink.close()
        await pair.source.close()


def flip(path: Path, *, at: int = 9000) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x04]))


async def test_equal_files_are_equal(tmp_path: Path) -> None:
    async with joined(tmp_path) as (pair, _):
        found, told = await pair.examined()
    assert told == set()
    assert (found.objects, found.differing, found.unverified, found.in_motion) == (1, 0, 0, 0)
    assert found.content_bytes == pair.active.stat().st_size


async def test_a_bit_that_rotted_on_the_standby_is_found_and_the_file_sent_whole(tmp_path: Path) -> None:
    async with joined(tmp_path) as (pair, _):
        await pair.without_guard()
        flip(pair.standby)
        assert (await pair.examined())[1] == {(Fault.ROTTEN, Side.STANDBY, True)}
        assert pair.standby.read_bytes() == pair.active.read_bytes()
        assert (await pair.examined())[1] == set()


async def test_a_copy_that_is_gone_or_shorter_is_sent_whole(tmp_path: Path) -> None:
    async with joined(tmp_path) as (pair, _):
        await pair.without_guard()
        os.unlink(pair.standby)
        assert (await pair.examined())[1] == {(Fault.MISSING, Side.STANDBY, True)}
        await pair.without_guard()
        os.truncate(pair.standby, 8192)
        assert (await pair.examined())[1] == {(Fault.CONTENT, Side.STANDBY, True)}
        assert rows_of(pair.standby) == ROWS


async def test_a_mode_that_was_changed_is_put_right(tmp_path: Path) -> None:
    async with joined(tmp_path) as (pair, _):
        await pair.without_guard()
        os.chmod(pair.standby, 0o600)
        assert (await pair.examined())[1] == {(Fault.METADATA, Side.STANDBY, True)}
        assert pair.standby.stat().st_mode & 0o777 == pair.active.stat().st_mode & 0o777 & ~0o222


async def test_what_rots_on_the_active_is_told_and_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with joined(tmp_path) as (pair, pipe):
        good = pair.standby.read_bytes()
        sent = pipe.payload_bytes
        plain = lockfree._read_exactly

        def as_a_bad_disk_reads(fd: int, target: memoryview, offset: int) -> None:
            plain(fd, target, offset)
            if offset <= 9000 < offset + len(target):
                target[9000 - offset] ^= 0x04

        monkeypatch.setattr(lockfree, "_read_exactly", as_a_bad_disk_reads)
        found, told = await pair.examined()
        assert told == {(Fault.ROTTEN, Side.ACTIVE, False)}
        assert (found.differing, found.repaired) == (1, 0)
        assert pipe.payload_bytes == sent
        assert pair.standby.read_bytes() == good


async def test_a_program_that_writes_all_the_time_is_no_fault(tmp_path: Path) -> None:
    async with joined(tmp_path) as (pair, _):
        with contextlib.closing(sqlite3.connect(pair.active)) as db:
            for number in range(3):
                put(db, {"a": str(number)})
                found, told = await pair.examined()
                assert told == set()
                assert found.differing == 0


async def test_a_file_that_cannot_be_copied_is_not_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages_module, "COPY_S", 0.05)

    async def cannot(self: PagesSource, *, within_s: float) -> tuple[lockfree.Rejected, bool]:
        del self, within_s
        return lockfree.Rejected(why=lockfree.Refusal.WRITING), False

    monkeypatch.setattr(PagesSource, "fresh", cannot)
    async with joined(tmp_path) as (pair, _):
        found, told = await pair.examined()
    assert told == {(Fault.UNVERIFIED, Side.ACTIVE, False)}
    assert found.unverified == 1


async def test_a_locked_file_gives_no_copy_and_is_not_locked_by_us(tmp_path: Path) -> None:
    async with joined(tmp_path) as (pair, _):
        with contextlib.closing(sqlite3.connect(pair.active, isolation_level=None)) as db:
            db.execute("BEGIN EXCLUSIVE")
            copy, rotten = await pair.source.fresh(within_s=0.05)
            assert isinstance(copy, lockfree.Rejected)
            assert not rotten
            db.execute("INSERT INTO astdb VALUES ('x', 'y')")
            db.execute("COMMIT")
        copy, rotten = await pair.source.fresh(within_s=20)
        assert isinstance(copy, lockfree.Copy)
        assert not rotten


async def test_a_question_that_makes_no_sense_is_refused(tmp_path: Path) -> None:
    witness = PagesWitness(settings_of(tmp_path), None, asyncio.get_running_loop())  # type: ignore[arg-type]
    for question in (b"\xff\xff", b""):
        with pytest.raises(ProtocolFault):
            next(witness.answer(question))
