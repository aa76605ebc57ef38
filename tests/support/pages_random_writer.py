"""A program that writes a database at random, in every journal mode, and can be killed at any moment.

Each transaction changes some rows and keeps, in the same transaction, their sum and its own number in ``meta``: so any
mixture of two states shows (``broken``). Caches are tiny, so transactions spill into the file before they commit; many
are rolled back, with savepoints too. Run as ``python -m tests.support.pages_random_writer``.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import time

ROWS = 400
WRAP = 2**62


def create(db: sqlite3.Connection) -> None:
    db.execute("CREATE TABLE IF NOT EXISTS item(id INTEGER PRIMARY KEY, n INTEGER NOT NULL, filler BLOB)")
    db.execute("CREATE INDEX IF NOT EXISTS item_n ON item(n)")
    db.execute("CREATE TABLE IF NOT EXISTS meta(one INTEGER PRIMARY KEY, total INTEGER, number INTEGER, rows INTEGER)")
    db.execute("INSERT OR IGNORE INTO meta VALUES(1, 0, 0, 0)")
    db.commit()


def broken(db: sqlite3.Connection) -> str:
    """What is wrong with a copy; empty when it is a committed state."""
    lines = [row[0] for row in db.execute("PRAGMA integrity_check")]
    if lines != ["ok"]:
        return "; ".join(lines[:3])
    rows = db.execute("SELECT n FROM item").fetchall()
    found = (sum(n for (n,) in rows) % WRAP, len(rows))
    kept = db.execute("SELECT total, rows FROM meta").fetchone()
    return "" if found == kept else f"{found} is not {kept}"


def transaction(db: sqlite3.Connection, rng: random.Random) -> None:
    db.execute("BEGIN" if rng.random() < 0.7 else rng.choice(["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"]))
    change(db, rng)
    if rng.random() < 0.3:
        db.execute("SAVEPOINT s")
        change(db, rng)
        db.execute(rng.choice(["ROLLBACK TO s", "RELEASE s"]))
    if rng.random() < 0.2:
        time.sleep(rng.random() * 0.02)
    if rng.random() < 0.3:
        db.execute("ROLLBACK")
        return
    total = sum(n for (n,) in db.execute("SELECT n FROM item")) % WRAP
    db.execute("UPDATE meta SET total = ?, number = number + 1, rows = (SELECT count(*) FROM item)", (total,))
    db.execute("COMMIT")


def change(db: sqlite3.Connection, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 1, 3, 10, 60, 200])):
        key = rng.randrange(ROWS)
        if rng.random() < 0.1:
            db.execute("DELETE FROM item WHERE id = ?", (key,))
        else:
            filler = rng.randbytes(rng.choice([0, 20, 900, 6000]))
            db.execute("INSERT OR REPLACE INTO item VALUES(?, ?, ?)", (key, rng.randrange(2**40), filler))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("db")
    parser.add_argument("mode")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--pause-ms", type=float, default=5)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    db = sqlite3.connect(options.db, isolation_level=None, timeout=5)
    db.execute(f"PRAGMA journal_mode={options.mode}")
    db.execute(f"PRAGMA cache_size={rng.choice([3, 10, 2000])}")
    db.execute(f"PRAGMA synchronous={rng.choice(['OFF', 'NORMAL', 'FULL'])}")
    create(db)
    print("ready", flush=True)
    end = time.monotonic() + options.seconds
    while time.monotonic() < end:
        transaction(db, rng)
        if rng.random() < 0.02 and options.mode != "WAL":
            db.execute("VACUUM")
        time.sleep(rng.random() * 2 * options.pause_ms / 1000)
    db.close()


if __name__ == "__main__":
    main()
