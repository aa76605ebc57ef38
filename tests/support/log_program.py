"""A program with a write-ahead log that does what it is told, step by step, and says when it has done it.

One word a line on its standard input, "done" for each on its standard output. It writes with the system's SQLite and
keeps the account of ``pages_random_writer`` in every transaction, so that any mixture of two states shows. Run as
``python -m tests.support.log_program``.
"""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.pages_random_writer import WRAP, change, create


class Steps:
    """In the program: what it can be told. ``open`` comes first."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.rng = random.Random(1)
        self.db = sqlite3.connect(":memory:")

    def open(self) -> None:
        self.db = sqlite3.connect(self.path, isolation_level=None, timeout=5)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA cache_size=5")
        self.db.execute("PRAGMA synchronous=OFF")
        self.db.execute("PRAGMA wal_autocheckpoint=0")
        create(self.db)

    def begin(self) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        for _ in range(4):
            change(self.db, self.rng)

    def end(self) -> None:
        total = sum(n for (n,) in self.db.execute("SELECT n FROM item")) % WRAP
        rows = "(SELECT count(*) FROM item)"
        self.db.execute(f"UPDATE meta SET total = ?, number = number + 1, rows = {rows}", (total,))
        self.db.execute("COMMIT")

    def commit(self) -> None:
        self.begin()
        self.end()

    def rollback(self) -> None:
        self.begin()
        self.db.execute("ROLLBACK")

    def shrink(self) -> None:
        self.db.execute("BEGIN")
        self.db.execute("DELETE FROM item WHERE id % 3")
        self.end()
        self.db.execute("VACUUM")

    def checkpoint(self) -> None:
        self.db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def restart(self) -> None:
        """The next commit begins the log anew."""
        self.db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()

    def truncate(self) -> None:
        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        self.db.close()

    def no_log(self) -> None:
        """Back to a rollback journal."""
        (mode,) = self.db.execute("PRAGMA journal_mode=DELETE").fetchone()
        assert mode == "delete"

    def die(self) -> None:
        """As if killed, and started again."""
        print("done", flush=True)
        os.execv(sys.executable, [sys.executable, "-m", "tests.support.log_program", self.path])


class LogProgram:
    """The program, seen from a test."""

    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-m", "tests.support.log_program", str(path)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> None:
        if kind is not None:
            self._process.kill()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        assert kind is not None or self._process.returncode == 0

    def do(self, *steps: str) -> None:
        """One after another; each has been done at the return."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        for step in steps:
            self._process.stdin.write(step + "\n")
            self._process.stdin.flush()
            assert self._process.stdout.readline() == "done\n", step


def main() -> None:
    steps = Steps(sys.argv[1])
    # Byte by byte: what is read ahead would be lost when the program dies.
    while line := b"".join(iter(lambda: os.read(0, 1).replace(b"\n", b""), b"")):
        getattr(steps, line.decode())()
        print("done", flush=True)


if __name__ == "__main__":
    main()
