"""The acceptance rule of a lock-free copy, point by point, beside programs that hold each of SQLite's locks."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_sync.database.header import block_size_fits, database_block_size, parse_header
from ha_sync.database.lockfree import MTIME_GRAIN_S, Copy, LockFreeReader, Refusal, Rejected, Unchanged

HOLD = (
    "import sqlite3,sys; db=sqlite3.connect(sys.argv[1],isolation_level=None);\n"
    "for sql in sys.argv[2:]: db.execute(sql).fetchall()\n"
    "print('held',flush=True); sys.stdin.read()"
)


@contextlib.contextmanager
def holding(path: Path, *statements: str) -> Iterator[None]:
    """Another program that has run the statements and keeps its locks."""
    command = [sys.executable, "-c", HOLD, str(path), *statements]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"held\n"
        yield
        assert program.stdin is not None
        program.stdin.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE t(a)")
        db.execute("INSERT INTO t VALUES(1)")
    return path


@pytest.fixture
def reader(path: Path) -> Iterator[LockFreeReader]:
    reader = LockFreeReader(str(path))
    yield reader
    reader.close()


def why(found: Copy | Rejected | Unchanged) -> Refusal | None:
    return found.why if isinstance(found, Rejected) else None


@pytest.mark.req("R25")
def test_a_reader_of_the_program_does_not_keep_us_out(path: Path, reader: LockFreeReader) -> None:
    with holding(path, "BEGIN", "SELECT * FROM t"):
        assert isinstance(reader.attempt(), Copy)


@pytest.mark.req("R25")
def test_an_open_transaction_is_waited_for_but_does_not_shut_us_out(path: Path, reader: LockFreeReader) -> None:
    before = path.read_bytes()
    with holding(path, "BEGIN IMMEDIATE", "INSERT INTO t VALUES(2)"):
        assert why(reader.attempt()) is Refusal.TRANSACTION
        copy = reader.attempt(patient=False, whole=True)
        assert isinstance(copy, Copy)
        assert copy.image == before


@pytest.mark.parametrize("statement", ["BEGIN EXCLUSIVE", "PRAGMA locking_mode=EXCLUSIVE; "])
def test_a_program_that_may_write_now_keeps_us_out(path: Path, reader: LockFreeReader, statement: str) -> None:
    statements = [statement, "INSERT INTO t VALUES(2)"]
    with holding(path, *statements):
        assert why(reader.attempt(patient=False)) is Refusal.WRITING


@pytest.mark.req("R25")
def test_we_hold_no_lock_while_and_after_reading(path: Path, reader: LockFreeReader) -> None:
    assert isinstance(reader.attempt(), Copy)
    inode = path.stat().st_ino
    assert f":{inode} " not in Path("/proc/locks").read_text()
    with contextlib.closing(sqlite3.connect(path, timeout=0)) as db, db:
        db.execute("INSERT INTO t VALUES(2)")


@pytest.mark.req("R22", "R25")
def test_a_journal_of_a_dead_program_is_rolled_back_in_our_own_place_only(
    path: Path, reader: LockFreeReader, tmp_path: Path
) -> None:
    program = (
        "import sqlite3,sys,os; d=sqlite3.connect(sys.argv[1]); d.execute('PRAGMA cache_size=2');"
        "d.execute('BEGIN'); d.executemany('INSERT INTO t VALUES(?)',(('x'*3000,) for n in range(200))); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    left = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    assert len(left["a.db"]) > 100_000
    assert left["a.db-journal"].startswith(b"\xd9\xd5\x05\xf9")
    found = reader.attempt(whole=True)
    assert isinstance(found, Copy)
    assert found.image is not None
    with contextlib.closing(sqlite3.connect(":memory:")) as db:
        db.deserialize(found.image)
        assert db.execute("SELECT * FROM t").fetchall() == [(1,)]
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == left


@pytest.mark.parametrize("content", [bytes(512), b""])
def test_a_finished_journal_that_is_kept_does_not_matter(path: Path, reader: LockFreeReader, content: bytes) -> None:
    Path(f"{path}-journal").write_bytes(content)
    found = reader.attempt(whole=True)
    assert isinstance(found, Copy)
    assert found.image == path.read_bytes()


def test_behind_a_link_the_journal_is_looked_for_beside_the_file(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link.db"
    link.symlink_to(path)
    Path(f"{path}-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    reader = LockFreeReader(str(link))
    assert reader._journal_is_hot()
    reader.close()


def test_a_write_during_the_read_is_noticed_even_when_every_number_stays(
    path: Path, reader: LockFreeReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    status = path.stat()
    original = os.preadv

    def disturbed(fd: int, buffers: list[memoryview], offset: int) -> int:
        with open(path, "r+b") as file:  # another descriptor: the reader's own event would count too
            file.seek(4096)
            byte = file.read(1)
            file.seek(4096)
            file.write(byte)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        return original(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", disturbed)
    found = reader.attempt()
    assert isinstance(found, Rejected)
    assert found.why is Refusal.CHANGED
    assert found.read_in_vain


def test_without_a_witness_a_fresh_mtime_is_not_trusted(path: Path) -> None:
    reader = LockFreeReader(str(path), with_witness=False)
    assert why(reader.attempt()) is Refusal.UNSETTLED
    found = reader.snapshot_to(f"{path}.copy", within_s=100 * MTIME_GRAIN_S)
    assert isinstance(found, Copy)
    reader.close()


def test_what_nobody_wrote_is_not_read_again(path: Path, reader: LockFreeReader) -> None:
    assert isinstance(reader.attempt(skip_unchanged=True), Copy)
    assert isinstance(reader.attempt(skip_unchanged=True), Unchanged)
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO t VALUES(2)")
    assert isinstance(reader.attempt(skip_unchanged=True), Copy)
    path.chmod(0o600)
    assert isinstance(reader.attempt(skip_unchanged=True), Copy)


def test_a_replaced_file_is_the_new_file(path: Path, reader: LockFreeReader, tmp_path: Path) -> None:
    assert isinstance(reader.attempt(), Copy)
    other = tmp_path / "other.db"
    with contextlib.closing(sqlite3.connect(other)) as db, db:
        db.execute("CREATE TABLE other(a)")
    other.rename(path)
    found = reader.attempt(whole=True)
    assert isinstance(found, Copy)
    assert found.image == path.read_bytes()


@pytest.mark.parametrize(
    ("content", "refusal"),
    [(None, Refusal.MISSING), (b"", Refusal.EMPTY), (b"x" * 5000, Refusal.NOT_A_DATABASE)],
)
def test_what_is_no_database_is_named(
    path: Path, reader: LockFreeReader, content: bytes | None, refusal: Refusal
) -> None:
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    assert why(reader.attempt()) is refusal


def test_a_pipe_in_its_place_does_not_hang(path: Path, reader: LockFreeReader) -> None:
    path.unlink()
    os.mkfifo(path)
    assert why(reader.attempt()) is Refusal.NOT_A_DATABASE


def test_a_file_beyond_the_bound_is_refused_before_it_is_read(path: Path) -> None:
    reader = LockFreeReader(str(path), bytes_max=4096)
    assert why(reader.attempt()) is Refusal.TOO_LARGE
    reader.close()


def test_a_snapshot_is_a_database_of_its_own(path: Path, reader: LockFreeReader) -> None:
    target = f"{path}.copy"
    found = reader.snapshot_to(target, within_s=5)
    assert isinstance(found, Copy)
    with contextlib.closing(sqlite3.connect(target)) as db:
        assert db.execute("SELECT * FROM t").fetchall() == [(1,)]


def test_no_snapshot_leaves_no_file(path: Path, reader: LockFreeReader) -> None:
    with holding(path, "BEGIN EXCLUSIVE"):
        assert isinstance(reader.snapshot_to(f"{path}.copy", within_s=0.01), Rejected)
    assert not Path(f"{path}.copy").exists()


def test_only_changed_blocks_are_kept(path: Path, reader: LockFreeReader) -> None:
    first = reader.attempt()
    assert isinstance(first, Copy)
    assert sorted(first.changed) == [0, 1]
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO t VALUES(2)")
    second = reader.attempt(block_size=first.block_size, known=first.hashes)
    assert isinstance(second, Copy)
    assert sorted(second.changed) == [0, 1]
    third = reader.attempt(block_size=second.block_size, known=second.hashes)
    assert isinstance(third, Copy)
    assert third.changed == {}


@pytest.mark.parametrize(("size", "page", "block"), [(0, 512, 4096), (10**6, 4096, 4096), (20 * 2**20, 4096, 16384)])
def test_blocks_hold_whole_pages(size: int, page: int, block: int) -> None:
    assert database_block_size(size, page) == block
    assert block_size_fits(block, size=size, page_size=page)
    assert not block_size_fits(block, size=size, page_size=2 * block)
    assert not block_size_fits(block + 1, size=size, page_size=page)


def test_a_header_of_something_else_is_none() -> None:
    assert parse_header(b"SQLite format 3\x00") is None
    assert parse_header(bytes(100)) is None
