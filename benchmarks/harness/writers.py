"""Programs that know nothing of the engine and write: rows, files, growing recordings, a legacy key-value store.

``python -m benchmarks.harness.writers KIND ...`` prints ``"ready"``, then takes one JSON order a line and answers each
with one JSON line. Times are seconds of CLOCK_MONOTONIC, taken right after the commit or close returned.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from ha_sync.sample.audio import PIECE_BYTES, PIECE_S, NoisePool
from ha_sync.sample.recordings import SoundFile

CDR_COLUMNS = 14
TEXTS = 997
TAG_BYTES = 16
"""The first bytes of a recording's sound name it, so that a copy can be recognized under any name."""

Order = dict[str, Any]


def paced(rate: float, seconds: float) -> Iterator[int]:
    """Counts at a rate; late steps follow at once, none is left out."""
    begun = time.monotonic()
    for number in range(int(rate * seconds)):
        wait_s = begun + number / rate - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)
        yield number


class Rows:
    """One table like that of call records: an integer key, 14 columns of text, one index."""

    def __init__(self, path: str, *, journal: str, synchronous: str) -> None:
        self._connection = sqlite3.connect(path, isolation_level=None, timeout=1.0)
        self._connection.execute(f"PRAGMA journal_mode={journal}")
        self._connection.execute(f"PRAGMA synchronous={synchronous}")
        names = ", ".join(f"c{number}" for number in range(CDR_COLUMNS))
        self._connection.execute(f"CREATE TABLE IF NOT EXISTS event (id INTEGER PRIMARY KEY, {names})")
        self._connection.execute("CREATE INDEX IF NOT EXISTS event_c0 ON event (c0)")
        marks = ", ".join("?" * CDR_COLUMNS)
        self._insert = f"INSERT INTO event ({names}) VALUES ({marks})"
        dice = self._dice = random.Random(7)
        self._number = 0
        self._texts = [
            [f"SIP/{dice.randrange(10**6):06}-{dice.getrandbits(32):08x}" for _ in range(CDR_COLUMNS - 4)]
            for _ in range(TEXTS)
        ]

    def _row(self) -> tuple[object, ...]:
        dice = self._dice
        self._number += 1
        stamp = f"2026-11-{self._number % 28 + 1:02} {dice.random() * 86_400:012.6f}"
        texts = self._texts[self._number % len(self._texts)]
        return (stamp, self._number % 3600, dice.random(), None, *texts)

    def paced(self, order: Order) -> list[tuple[int, float]]:
        """One-row commits at a rate: (key, time after the commit)."""
        done: list[tuple[int, float]] = []
        for _ in paced(order["rate"], order["seconds"]):
            key = self._connection.execute(self._insert, self._row()).lastrowid
            done.append((key or 0, time.monotonic()))
        return done

    def burst(self, order: Order) -> dict[str, float]:
        """Many one-row commits without a pause: microseconds a commit."""
        rows = [self._row() for _ in range(order["count"])]
        took: list[float] = []
        for row in rows:
            since = time.perf_counter()
            self._connection.execute(self._insert, row)
            took.append(time.perf_counter() - since)
        took.sort()
        return {"median_us": took[len(took) // 2] * 1e6, "mean_us": sum(took) / len(took) * 1e6}

    def transaction(self, order: Order) -> dict[str, float]:
        """One transaction of many rows: the last key and the time after its commit."""
        rows = [self._row() for _ in range(order["count"])]
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(self._insert, rows)
        last = self._connection.execute("SELECT max(id) FROM event").fetchone()[0]
        before = time.monotonic()
        self._connection.execute("COMMIT")
        return {"key": last, "t": time.monotonic(), "commit_s": time.monotonic() - before}


class Files:
    """Whole files."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._pool = NoisePool(7)
        self._number = 0

    def paced(self, order: Order) -> list[tuple[str, float]]:
        """Files written and closed at a rate: (name, time after the close)."""
        done: list[tuple[str, float]] = []
        for _ in paced(order["rate"], order["seconds"]):
            self._number += 1
            name = f"message-{self._number:06}.wav"
            data = self._pool.piece(self._number * 977, order["size"])
            with open(os.path.join(self._root, name), "wb", buffering=0) as file:
                file.write(data)
            done.append((name, time.monotonic()))
        return done


class Growing:
    """Recordings in progress, as MixMonitor writes them, their first bytes a tag."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._pool = NoisePool(7)

    def grow(self, order: Order) -> list[tuple[str, int, float]]:
        """``count`` recordings, a piece each every PIECE_S / speed: (tag, size, time after the append)."""
        count, every_s = order["count"], PIECE_S / order["speed"]
        tags = [f"{order['speed']:07.2f}/{number:08}" for number in range(count)]
        files = [SoundFile(os.path.join(self._root, tag.replace("/", "-") + ".wav")) for tag in tags]
        done: list[tuple[str, int, float]] = []
        fresh = set(range(count))
        for step in paced(count / every_s, order["seconds"]):
            number = step % count
            piece = self._pool.piece(step * 977, PIECE_BYTES)
            if number in fresh:
                fresh.remove(number)
                piece = tags[number].encode().ljust(TAG_BYTES)[:TAG_BYTES] + piece[TAG_BYTES:]
            files[number].append(piece)
            done.append((tags[number], files[number].size, time.monotonic()))
        for file in files:
            file.close()
        return done


class Legacy:
    """A key-value store as old programs keep it: rollback journal, ``sqlite3_prepare`` once, no busy timeout."""

    VALUE_BYTES = 200

    def __init__(self, path: str) -> None:
        library = ctypes.CDLL("libsqlite3.so.0")
        handle = ctypes.c_void_p
        library.sqlite3_open.argtypes = [ctypes.c_char_p, ctypes.POINTER(handle)]
        library.sqlite3_exec.argtypes = [handle, ctypes.c_char_p, handle, handle, handle]
        library.sqlite3_prepare.argtypes = [handle, ctypes.c_char_p, ctypes.c_int, ctypes.POINTER(handle), handle]
        library.sqlite3_bind_text.argtypes = [handle, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, handle]
        for name in ("step", "reset"):
            getattr(library, f"sqlite3_{name}").argtypes = [handle]
        self._library = library
        self._database = handle()
        assert library.sqlite3_open(os.fsencode(path), ctypes.byref(self._database)) == 0
        self._put = handle()
        sql = b"INSERT OR REPLACE INTO astdb (key, value) VALUES (?, ?)"
        assert library.sqlite3_prepare(self._database, sql, -1, ctypes.byref(self._put), None) == 0
        self._dice = random.Random(7)

    @classmethod
    def make(cls, path: str, size: int) -> int:
        """A database of about ``size`` bytes; returns its number of keys."""
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE astdb(key VARCHAR(256), value VARCHAR(256), PRIMARY KEY(key))")
        dice, keys = random.Random(7), size // (cls.VALUE_BYTES + 75)
        rows = (
            (f"/registrar/contact/{number:07}", dice.randbytes(cls.VALUE_BYTES // 2).hex()) for number in range(keys)
        )
        connection.executemany("INSERT INTO astdb VALUES (?, ?)", rows)
        connection.commit()
        connection.close()
        return keys

    def _execute(self, sql: bytes) -> bool:
        return bool(self._library.sqlite3_exec(self._database, sql, None, None, None) == 0)

    def paced(self, order: Order) -> dict[str, Any]:
        """One put a transaction at a rate: milliseconds of each, and how many were lost to a lock."""
        took: list[float] = []
        lost = 0
        for _ in paced(order["rate"], order["seconds"]):
            key = b"/registrar/contact/%07d" % self._dice.randrange(order["keys"])
            value = self._dice.randbytes(self.VALUE_BYTES // 2).hex().encode()
            since = time.perf_counter()
            good = self._execute(b"BEGIN")
            for place, text in enumerate((key, value), 1):
                self._library.sqlite3_bind_text(self._put, place, text, len(text), ctypes.c_void_p(-1))
            good &= self._library.sqlite3_step(self._put) == 101
            self._library.sqlite3_reset(self._put)
            good &= self._execute(b"COMMIT")
            took.append((time.perf_counter() - since) * 1000)
            if not good:
                lost += 1
                self._execute(b"ROLLBACK")
        return {"ms": took, "lost": lost, "t": time.monotonic()}


def _orders(parser: argparse.ArgumentParser) -> dict[str, Callable[[Order], Any]]:
    given = parser.parse_args()
    if given.kind == "rows":
        rows = Rows(given.path, journal=given.journal, synchronous=given.synchronous)
        return {"paced": rows.paced, "burst": rows.burst, "transaction": rows.transaction}
    if given.kind == "files":
        return {"paced": Files(given.path).paced}
    if given.kind == "growing":
        return {"grow": Growing(given.path).grow}
    return {"paced": Legacy(given.path).paced}


def serve() -> None:
    """Until the end of the input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["rows", "files", "growing", "legacy"])
    parser.add_argument("path")
    parser.add_argument("--journal", default="wal")
    parser.add_argument("--synchronous", default="full")
    orders = _orders(parser)
    print('"ready"', flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(orders[order.pop("work")](order)), flush=True)


if __name__ == "__main__":
    serve()
