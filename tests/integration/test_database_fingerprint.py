"""The fingerprint of a database file sees every bit and lets go of no lock."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import apsw
import pytest

from ha_sync.database.fingerprint import fingerprint

OTHER = """
import sqlite3, sys
try:
    sqlite3.connect(sys.argv[1], timeout=0).execute("BEGIN IMMEDIATE")
    print("taken")
except sqlite3.OperationalError:
    print("held")
"""


def other_writer(path: Path) -> str:
    done = subprocess.run([sys.executable, "-c", OTHER, str(path)], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.req("R20")
@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_it_keeps_the_locks_of_this_process(tmp_path: Path, journal: str) -> None:
    path = tmp_path / "x.db"
    db = apsw.Connection(str(path))
    db.execute(f"PRAGMA journal_mode={journal}; CREATE TABLE t(v)").fetchall()
    db.execute("BEGIN IMMEDIATE")
    assert other_writer(path) == "held"
    fingerprint(str(path))
    assert other_writer(path) == "held"
    db.execute("COMMIT")
    assert other_writer(path) == "taken"


@pytest.mark.req("R23")
def test_every_byte_of_file_and_log_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    assert fingerprint(str(path)) == b""
    db = apsw.Connection(str(path))
    db.execute("PRAGMA journal_mode=wal; CREATE TABLE t(v)").fetchall()
    seen = [fingerprint(str(path))]
    db.execute("INSERT INTO t VALUES(zeroblob(3000000))")
    seen.append(fingerprint(str(path)))
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    seen.append(fingerprint(str(path)))
    db.close()
    content = bytearray(path.read_bytes())
    for place in (0, len(content) // 2, len(content) - 1):
        content[place] ^= 1
        path.write_bytes(content)
        seen.append(fingerprint(str(path)))
        content[place] ^= 1
        path.write_bytes(content)
    assert len(set(seen)) == len(seen)
    assert fingerprint(str(path)) == fingerprint(str(path)) == seen[2]
