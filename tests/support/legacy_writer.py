"""Programs that write SQLite exactly as PBX.md says Asterisk does, through the system's own library by ctypes.

``astdb``: statements prepared once with the old ``sqlite3_prepare``, no busy timeout, a transaction that is always open
(so a read keeps its SHARED lock until the next commit), a thread that commits at most once a second and rolls back
what it cannot commit although it was answered with success. ``cdr``: one transaction a row, a busy timeout of one
second, the row lost on busy. Each writes what it acknowledged to a ledger of its own, and says at the end, as JSON,
what it saw go wrong. Run as ``python -m tests.support.legacy_writer``; ends by itself after ``--seconds``.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import sys
import threading
import time

OK, ROW, DONE = 0, 100, 101
TRANSIENT = ctypes.c_void_p(-1)


def library() -> ctypes.CDLL:
    lib = ctypes.CDLL("libsqlite3.so.0")
    lib.sqlite3_column_text.restype = ctypes.c_char_p
    for name in ("sqlite3_exec", "sqlite3_prepare", "sqlite3_step", "sqlite3_reset", "sqlite3_bind_text"):
        getattr(lib, name).restype = ctypes.c_int
    return lib


class Astdb:
    """main/db.c of Asterisk."""

    def __init__(self, path: str, ledger: str) -> None:
        self.lib = library()
        self.db = ctypes.c_void_p()
        self.errors: list[str] = []
        self.stale = 0
        self.lost_commits = 0
        self.puts = 0
        self.commit_s: list[float] = []
        assert self.lib.sqlite3_open(path.encode(), ctypes.byref(self.db)) == OK
        self._exec("CREATE TABLE IF NOT EXISTS astdb(key VARCHAR(256), value VARCHAR(256), PRIMARY KEY(key))")
        self.put_statement = self._prepare("INSERT OR REPLACE INTO astdb (key, value) VALUES (?, ?)")
        self.get_statement = self._prepare("SELECT value FROM astdb WHERE key=?")
        self.ledger = open(ledger, "w", encoding="ascii", buffering=1)  # noqa: SIM115
        self.lock = threading.Lock()
        self.condition = threading.Condition(self.lock)
        self.dosync = False
        self.doexit = False
        self.thread = threading.Thread(target=self._commit_thread)
        self.thread.start()

    def put(self, key: str, value: str) -> None:
        with self.lock:
            self._bind(self.put_statement, 1, key)
            self._bind(self.put_statement, 2, value)
            result = self.lib.sqlite3_step(self.put_statement)
            self.lib.sqlite3_reset(self.put_statement)
            if result != DONE:
                self.errors.append(f"put: {result}")
                return
            # Answered with success, as Asterisk does before the commit.
            self.ledger.write(f"{key} {value}\n")
            self.puts += 1
            self.dosync = True
            self.condition.notify()

    def get(self, key: str, expected: str | None) -> None:
        with self.lock:
            self._bind(self.get_statement, 1, key)
            result = self.lib.sqlite3_step(self.get_statement)
            found = self.lib.sqlite3_column_text(self.get_statement, 0) if result == ROW else None
            self.lib.sqlite3_reset(self.get_statement)
            if result not in {ROW, DONE}:
                self.errors.append(f"get: {result}")
            elif (None if found is None else found.decode()) != expected:
                self.stale += 1

    def close(self) -> None:
        with self.lock:
            self.doexit = True
            self.dosync = True
            self.condition.notify()
        self.thread.join()
        self.lib.sqlite3_finalize(self.put_statement)
        self.lib.sqlite3_finalize(self.get_statement)
        self.lib.sqlite3_close(self.db)

    def _commit_thread(self) -> None:
        with self.lock:
            self._exec("BEGIN TRANSACTION")
            while True:
                while not self.dosync:
                    self.condition.wait()
                self.dosync = False
                began = time.monotonic()
                if self._exec("COMMIT", quietly=True) != OK:
                    self.lost_commits += 1
                    self._exec("ROLLBACK")
                self.commit_s.append(time.monotonic() - began)
                if self.doexit:
                    return
                self._exec("BEGIN TRANSACTION")
                self.lock.release()
                time.sleep(1)
                self.lock.acquire()

    def _exec(self, sql: str, *, quietly: bool = False) -> int:
        result = int(self.lib.sqlite3_exec(self.db, sql.encode(), None, None, None))
        if result != OK and not quietly:
            self.errors.append(f"{sql}: {result}")
        return result

    def _prepare(self, sql: str) -> ctypes.c_void_p:
        statement = ctypes.c_void_p()
        assert self.lib.sqlite3_prepare(self.db, sql.encode(), -1, ctypes.byref(statement), None) == OK
        return statement

    def _bind(self, statement: ctypes.c_void_p, index: int, text: str) -> None:
        data = text.encode()
        self.lib.sqlite3_bind_text(statement, index, data, len(data), TRANSIENT)


class Cdr:
    """cdr_sqlite3_custom: a row is one transaction; what is still busy after a second is lost."""

    def __init__(self, path: str, ledger: str, *, fill_mib: int, busy_ms: int = 1000) -> None:
        self.lib = library()
        self.db = ctypes.c_void_p()
        self.errors: list[str] = []
        self.rows = 0
        self.commit_s: list[float] = []
        assert self.lib.sqlite3_open(path.encode(), ctypes.byref(self.db)) == OK
        self.lib.sqlite3_busy_timeout(self.db, busy_ms)
        self._exec("CREATE TABLE IF NOT EXISTS cdr(AcctId INTEGER PRIMARY KEY, calldate, src, dst, uniqueid)")
        if fill_mib:
            self._exec(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < "
                f"{fill_mib * 1024}) INSERT INTO cdr(calldate, src) SELECT 'filler', hex(randomblob(490)) FROM n"
            )
        self.ledger = open(ledger, "w", encoding="ascii", buffering=1)  # noqa: SIM115

    def write(self, number: int) -> None:
        began = time.monotonic()
        sql = f"INSERT INTO cdr(calldate, src, dst, uniqueid) VALUES('now', '100', '200', 'u{number}')"
        if self._exec(sql) == OK:
            self.rows += 1
            self.ledger.write(f"u{number}\n")
        self.commit_s.append(time.monotonic() - began)

    def close(self) -> None:
        self.lib.sqlite3_close(self.db)

    def _exec(self, sql: str) -> int:
        result = int(self.lib.sqlite3_exec(self.db, sql.encode(), None, None, None))
        if result != OK:
            self.errors.append(f"{sql[:40]}: {result}")
        return result


def run_astdb(options: argparse.Namespace) -> dict[str, object]:
    rng = random.Random(options.seed)
    program = Astdb(options.db, options.ledger)
    last: dict[str, str] = {}
    print("ready", flush=True)
    end = time.monotonic() + options.seconds
    number = 0
    while time.monotonic() < end:
        number += 1
        key = f"/pbx/device/{rng.randrange(400)}"
        program.put(key, str(number))
        last[key] = str(number)
        if rng.random() < 0.5:
            seen = rng.choice(list(last))
            program.get(seen, last[seen])
        time.sleep(rng.expovariate(options.per_second))
    program.close()
    return {
        "acknowledged": program.puts,
        "errors": program.errors[:20],
        "stale": program.stale,
        "lost_commits": program.lost_commits,
        "commits": len(program.commit_s),
        "commit_ms": 1000 * statistics.median(program.commit_s),
    }


def run_cdr(options: argparse.Namespace) -> dict[str, object]:
    program = Cdr(options.db, options.ledger, fill_mib=options.fill_mib)
    print("ready", flush=True)
    began = time.monotonic()
    number = 0
    while (now := time.monotonic()) < began + options.seconds:
        number += 1
        program.write(number)
        time.sleep(max(0.0, began + number / options.per_second - now))
    program.close()
    return {
        "acknowledged": program.rows,
        "errors": program.errors[:20],
        "commit_ms": 1000 * statistics.median(program.commit_s),
        "commit_mean_ms": 1000 * statistics.fmean(program.commit_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["astdb", "cdr"])
    parser.add_argument("db")
    parser.add_argument("ledger")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--per-second", type=float, default=10)
    parser.add_argument("--fill-mib", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    result = run_astdb(options) if options.kind == "astdb" else run_cdr(options)
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    sys.exit(main())
