"""The Standby's copy over crashes: at each step of a publication, and by SIGKILL at random moments."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ha_sync.apply.pages import PagesSink
from ha_sync.apply.pages.judge import by_remedy
from ha_sync.apply.pages.ledger import Ledger
from ha_sync.apply.pages.publish import Draft, Place
from ha_sync.capture.pages import PagesSource
from ha_sync.core.position import Epoch
from ha_sync.errors import OperatorNeeded, ProtocolFault, RepairNeeded, Retryable
from tests.support.pages_pipe import Events, Pipe, astdb, flowing, put, rows_of, settings_of
from tests.support.pages_random_writer import broken

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "4"))


class Crash(Exception):
    """The process ends here."""


def crashing(call: Callable[..., object], *, after: bool) -> Callable[..., object]:
    def crashed(*arguments: object, **named: object) -> object:
        if after:
            call(*arguments, **named)
        raise Crash

    return crashed


STEPS = [
    (Draft, "finish"),
    (Ledger, "store"),
    (Place, "remove_companions"),
    (Place, "take_place"),
    (PagesSink, "_hold"),
]


async def abandon(sink: PagesSink) -> None:
    """What a kill leaves: threads and descriptors gone, files as they are."""
    await sink._stop_guard()
    assert sink._executor is not None
    sink._executor.shutdown()


@pytest.mark.req("R22")
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("step", range(len(STEPS)))
async def test_a_crash_at_any_step_of_a_publication_leaves_a_whole_state(
    tmp_path: Path, step: int, after: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    active, standby = tmp_path / "a.db", tmp_path / "b" / "a.db"
    astdb(active, {"a": "1"})
    astdb(standby, {"own": "1"})
    # The Standby's own file has a hot journal: in no case may it meet the new file.
    program = (
        "import sqlite3,sys,os; d=sqlite3.connect(sys.argv[1]); d.execute('PRAGMA cache_size=2');"
        "d.execute('BEGIN'); d.executemany('INSERT INTO astdb VALUES(?,?)',((str(n),'x'*3000) for n in range(200)));"
        "os._exit(0)"
    )
    dead = await asyncio.create_subprocess_exec(sys.executable, "-c", program, str(standby))
    await dead.wait()
    assert "a.db-journal" in os.listdir(standby.parent)
    source = PagesSource(settings_of(active), state_path=tmp_path / "source", report=Events())
    sink = PagesSink(settings_of(standby), state_path=tmp_path / "sink", report=Events())
    await source.open(Epoch(2))
    await sink.open(Epoch(2), active_at="")
    owner, name = STEPS[step]
    with monkeypatch.context() as patched:
        patched.setattr(owner, name, crashing(getattr(owner, name), after=after))
        with pytest.raises(Crash):
            await Pipe(source, sink).run()
    await abandon(sink)
    again = PagesSink(settings_of(standby), state_path=tmp_path / "sink", report=Events())
    await again.open(Epoch(2), active_at="")
    with contextlib.closing(sqlite3.connect(standby)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert dict(db.execute("SELECT * FROM astdb")) in ({"own": "1"}, {"a": "1"})
    async with flowing(source, again) as pipe:
        await pipe.caught_up()
        assert active.read_bytes() == standby.read_bytes()
    await again.close()
    await source.close()
    assert [n for n in os.listdir(standby.parent) if n.startswith(".ha-")] == []


@pytest.mark.req("R22")
def test_killed_engines_lose_nothing_acknowledged_and_never_publish_a_half(tmp_path: Path) -> None:
    rng = random.Random(5)
    standby = tmp_path / "b" / "a.db"
    standby.parent.mkdir()
    command = [sys.executable, "-m", "tests.support.pages_random_writer", str(tmp_path / "a.db"), "DELETE"]
    writer = subprocess.Popen([*command, "--seconds", str(2.0 * ROUNDS)], stdout=subprocess.PIPE)
    assert writer.stdout is not None
    writer.stdout.readline()
    number = acknowledged = 0
    for _ in range(ROUNDS):
        command = [sys.executable, "-m", "tests.support.pages_engine", str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as engine:
            assert engine.stdout is not None
            first = engine.stdout.readline()
            time.sleep(rng.random() * 0.5)
            engine.kill()
            said = [int(line) for line in (first + engine.stdout.read()).split()]
        acknowledged = max(acknowledged, *said)
        with contextlib.closing(sqlite3.connect(f"file:{standby}?immutable=1", uri=True)) as db:
            assert broken(db) == ""
            (found,) = db.execute("SELECT number FROM meta").fetchone()
        assert found >= number
        number = found
        ledger = Ledger.load(str(tmp_path / "sink"))
        assert max(ledger.position.sequence, ledger.intent.content.position.sequence if ledger.intent else 0) >= (
            acknowledged
        )
    writer.kill()
    writer.wait()
    writer.stdout.close()
    assert number > 0


async def test_a_full_disk_loses_nothing_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    active, standby = tmp_path / "a.db", tmp_path / "b" / "a.db"
    standby.parent.mkdir()
    astdb(active, {"a": "1"})
    source = PagesSource(settings_of(active), state_path=tmp_path / "source", report=Events())
    sink = PagesSink(settings_of(standby), state_path=tmp_path / "sink", report=Events())
    await source.open(Epoch(2))
    await sink.open(Epoch(2), active_at="")
    async with flowing(source, sink) as pipe:
        await pipe.caught_up()
    full = OSError(28, "No space left on device")

    def no_room(*_: object) -> int:
        raise full

    with contextlib.closing(sqlite3.connect(active)) as db:
        put(db, {"a": "2"})
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", no_room)
        session = await source.subscribe(sink.applied)
        await sink.begin(session.answer, session.method)
        async for frame in session.frames():
            with pytest.raises(Retryable):
                await sink.receive(frame)
            break
        await session.close()
    assert "No space" in sink.report().reason
    assert rows_of(standby) == {"a": "1"}
    assert os.listdir(standby.parent) == ["a.db"]
    async with flowing(source, sink) as pipe:
        await pipe.caught_up()
        assert rows_of(standby) == {"a": "2"}
        assert sink.report().reason == ""
    await sink.close()
    await source.close()


async def test_wrong_content_is_never_published(tmp_path: Path) -> None:
    from dataclasses import replace

    active, standby = tmp_path / "a.db", tmp_path / "b" / "a.db"
    standby.parent.mkdir()
    astdb(active, {"a": "1"})
    source = PagesSource(settings_of(active), state_path=tmp_path / "source", report=Events())
    sink = PagesSink(settings_of(standby), state_path=tmp_path / "sink", report=Events())
    needed: list[tuple[bytes, ...]] = []
    sink.on_need(needed.append)
    await source.open(Epoch(2))
    await sink.open(Epoch(2), active_at="")
    session = await source.subscribe(sink.applied)
    await sink.begin(session.answer, session.method)
    async for frame in session.frames():
        flipped = bytes(frame.payload[:-1]) + b"\x01"
        with pytest.raises(RepairNeeded):
            await sink.receive(replace(frame, payload=flipped))
        for fault in (b"", frame.payload[:-1], bytes(frame.payload) + b"x"):
            with pytest.raises(ProtocolFault):
                await sink.receive(replace(frame, payload=fault))
        with pytest.raises(ProtocolFault):
            await sink.receive(replace(frame, body=b"\xff\xff"))
        break
    assert needed == [(b"",)]
    assert os.listdir(standby.parent) == []
    await session.close()
    await sink.close()
    await source.close()


async def test_a_folder_without_permission_needs_an_operator(tmp_path: Path) -> None:
    error = by_remedy(PermissionError(13, "Permission denied"), "/x")
    assert isinstance(error, OperatorNeeded)
