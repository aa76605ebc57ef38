"""Whatever a writer does, an accepted copy is one committed state: random writers in their own process, killed too."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_sync.database.lockfree import Copy, LockFreeReader, Refusal, Rejected
from tests.support.pages_random_writer import broken

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "1"))
SECONDS = 2.5
KILLABLE = {"DELETE", "TRUNCATE", "PERSIST", "WAL"}
"""A program killed in the middle of a commit with its journal in memory, or none, leaves a broken file behind: that is
its own doing (https://www.sqlite.org/pragma.html#pragma_journal_mode), no copy can mend it."""


def opened(image: bytes) -> sqlite3.Connection:
    plain = bytearray(image)
    plain[18:20] = b"\x01\x01"
    db = sqlite3.connect(":memory:")
    db.deserialize(bytes(plain))
    return db


def left_by_the_dead(path: Path, place: Path) -> int:
    """The last transaction that SQLite itself finds in a file and its log, tried on copies."""
    place.mkdir()
    for end in ("", "-wal"):
        if os.path.exists(f"{path}{end}"):
            shutil.copy(f"{path}{end}", place / f"copy{end}")
    with contextlib.closing(sqlite3.connect(place / "copy")) as db:
        return int(db.execute("SELECT number FROM meta").fetchone()[0])


@contextlib.contextmanager
def running(path: Path, mode: str, seed: int, *, pause_ms: float = 5) -> Iterator[subprocess.Popen[bytes]]:
    """A writer that has begun; it does not outlive the block."""
    command = [sys.executable, "-m", "tests.support.pages_random_writer", str(path), mode]
    arguments = ["--seed", str(seed), "--seconds", str(SECONDS), "--pause-ms", str(pause_ms)]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == b"ready\n"
            yield program
        finally:
            program.kill()


class Reader:
    """Takes copies as they come and checks each; the transactions' numbers never go back."""

    def __init__(self, path: Path, *, with_witness: bool) -> None:
        self.reader = LockFreeReader(str(path), with_witness=with_witness)
        self.accepted = 0
        self.rejected = 0
        self.number = 0
        self.rng = random.Random(1)

    def look(self) -> None:
        found = self.reader.attempt(whole=True, patient=self.rng.random() < 0.5)
        if not isinstance(found, Copy):
            assert isinstance(found, Rejected)
            self.rejected += 1
            time.sleep(self.rng.random() * 0.003)
            return
        assert found.image is not None
        self.accepted += 1
        with contextlib.closing(opened(found.image)) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_schema")}
            if "meta" not in tables or not db.execute("SELECT 1 FROM meta").fetchone():
                return
            assert broken(db) == ""
            (number,) = db.execute("SELECT number FROM meta").fetchone()
            assert number >= self.number
            self.number = number

    def look_until_ended(self, program: subprocess.Popen[bytes]) -> None:
        while program.poll() is None:
            self.look()


@pytest.mark.req("R22", "R25")
@pytest.mark.parametrize("with_witness", [True, False])
@pytest.mark.parametrize("mode", ["DELETE", "TRUNCATE", "PERSIST", "MEMORY", "WAL"])
def test_an_accepted_copy_is_one_committed_state(tmp_path: Path, mode: str, with_witness: bool) -> None:
    for round_ in range(ROUNDS):
        path = tmp_path / f"{round_}.db"
        reader = Reader(path, with_witness=with_witness)
        # Without a witness a look needs 20 ms of peace.
        with running(path, mode, seed=round_, pause_ms=5 if with_witness else 60) as program:
            reader.look_until_ended(program)
        assert program.returncode == 0
        assert reader.accepted > 0
        time.sleep(0.03 if not with_witness else 0)  # the grain, not an event
        reader.look()
        reader.look()
        with contextlib.closing(sqlite3.connect(path)) as db:
            assert db.execute("SELECT number FROM meta").fetchone() == (reader.number,)
        reader.reader.close()


@pytest.mark.req("R22")
@pytest.mark.parametrize("mode", sorted(KILLABLE))
def test_a_killed_writer_never_leaves_an_accepted_half(tmp_path: Path, mode: str) -> None:
    rng = random.Random(7)
    path = tmp_path / "killed.db"
    reader = Reader(path, with_witness=True)
    for round_ in range(4 * ROUNDS):
        with running(path, mode, seed=round_, pause_ms=0.5):
            until = time.monotonic() + rng.random() * 0.5
            while time.monotonic() < until:
                reader.look()
        if mode == "WAL":
            left = left_by_the_dead(path, tmp_path / f"left{round_}")
            # Older ones write logs of which they cannot read all again (live_log.py): the program's own loss.
            assert left >= reader.number or sqlite3.sqlite_version_info < (3, 50)
            reader.number = left
        for _ in range(5):
            reader.look()
        if mode == "WAL":
            assert reader.number == left
    assert reader.accepted > 0
    reader.reader.close()


def test_a_spilled_transaction_with_its_journal_in_memory_is_never_copied(tmp_path: Path) -> None:
    path = tmp_path / "spill.db"
    hold = (
        "import sqlite3,sys; db=sqlite3.connect(sys.argv[1],isolation_level=None);"
        "db.execute('PRAGMA journal_mode=MEMORY'); db.execute('PRAGMA cache_size=2');"
        "db.execute('CREATE TABLE t(a)'); db.execute('BEGIN');"
        "[db.execute('INSERT INTO t VALUES(randomblob(3000))') for _ in range(300)];"
        "print('spilled',flush=True); sys.stdin.readline(); db.execute('ROLLBACK'); print('done',flush=True);"
        "sys.stdin.readline()"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", hold, str(path)], text=True, **pipes) as program:  # type: ignore[call-overload]
        program.stdout.readline()
        reader = LockFreeReader(str(path))
        for patient in (True, False):
            found = reader.attempt(patient=patient)
            assert isinstance(found, Rejected)
            assert found.why is Refusal.WRITING
            assert str(program.pid) in found.detail
        program.stdin.write("\n")
        program.stdin.flush()
        program.stdout.readline()
        copy = reader.attempt(whole=True)
        assert isinstance(copy, Copy)
        assert copy.image is not None
        with contextlib.closing(opened(copy.image)) as db:
            assert db.execute("SELECT count(*) FROM t").fetchone() == (0,)
        reader.close()
        program.stdin.write("\n")


@pytest.mark.parametrize("mode", ["MEMORY", "DELETE"])
def test_the_same_writers_do_tear_the_copies_of_a_careless_reader(
    tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shows that the tests above can fail: without the rule a broken copy turns up."""
    monkeypatch.setattr(LockFreeReader, "_require_no_writer", lambda *_, **__: None)
    monkeypatch.setattr(LockFreeReader, "_journal_is_hot", lambda *_: False)
    monkeypatch.setattr(LockFreeReader, "_after", lambda *_, **__: None)
    monkeypatch.setattr(LockFreeReader, "_listen", lambda *_, **__: None)
    path = tmp_path / "torn.db"
    reader = Reader(path, with_witness=True)
    with (
        contextlib.closing(reader.reader),
        running(path, mode, seed=3, pause_ms=0.5) as program,
        pytest.raises((AssertionError, sqlite3.DatabaseError)),
    ):
        reader.look_until_ended(program)
