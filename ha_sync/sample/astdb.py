"""``astdb.sqlite3`` as Asterisk's main/db.c handles it, through the system's SQLite library and not through Python's.

Faithful in what makes it fragile: statements prepared **once** with the legacy ``sqlite3_prepare``, so that a schema
change kills them until a restart; no busy timeout, so that any lock of another process at the wrong moment loses what
was already answered with success; a thread that commits at most once a second; always inside a transaction, so that
one read leaves a SHARED lock behind.

``put`` and ``delete`` answer at once; the ledger hears of them when their transaction is committed. ``/pbx/UUID`` is
the node's own. Safe from several threads: one lock, as there.
"""

from __future__ import annotations

import ctypes
import os
import threading
import uuid
from typing import Final

from ha_sync.sample.ledger import Ledger, row_digest
from ha_sync.sample.settings import ASTDB
from ha_sync.sample.tables import key_text

LIBRARY: Final = "libsqlite3.so.0"
SQLITE_OK: Final = 0
SQLITE_ROW: Final = 100
SQLITE_DONE: Final = 101
TRANSIENT: Final = ctypes.c_void_p(-1)
COMMIT_EVERY_S: Final = 1.0
UUID_KEY: Final = "/pbx/UUID"
TABLE: Final = "astdb"
STATEMENTS: Final = {
    "get": "SELECT value FROM astdb WHERE key=?",
    "put": "INSERT OR REPLACE INTO astdb (key, value) VALUES (?, ?)",
    "delete": "DELETE FROM astdb WHERE key=?",
}


class AstDbBroken(Exception):
    """The database cannot be opened, or a statement cannot be prepared."""


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(LIBRARY)
    handle, text = ctypes.c_void_p, ctypes.c_char_p
    library.sqlite3_open.argtypes = [text, ctypes.POINTER(handle)]
    library.sqlite3_prepare.argtypes = [handle, text, ctypes.c_int, ctypes.POINTER(handle), ctypes.c_void_p]
    library.sqlite3_exec.argtypes = [handle, text, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
    library.sqlite3_bind_text.argtypes = [handle, ctypes.c_int, text, ctypes.c_int, ctypes.c_void_p]
    library.sqlite3_column_text.argtypes = [handle, ctypes.c_int]
    library.sqlite3_column_text.restype = text
    library.sqlite3_errmsg.argtypes = [handle]
    library.sqlite3_errmsg.restype = text
    for name in ("step", "reset", "finalize", "changes", "close", "errcode"):
        getattr(library, f"sqlite3_{name}").argtypes = [handle]
    return library


class AstDb:
    """The key-value store and its commit thread."""

    def __init__(self, root: str, ledger: Ledger) -> None:
        self._ledger = ledger
        self._library = _library()
        self._database = ctypes.c_void_p()
        path = os.path.join(root, ASTDB).encode()
        if self._library.sqlite3_open(path, ctypes.byref(self._database)) != SQLITE_OK:
            raise AstDbBroken(f"cannot open {ASTDB}: {self._message()}")
        schema = b"CREATE TABLE IF NOT EXISTS astdb(key VARCHAR(256), value VARCHAR(256), PRIMARY KEY(key))"
        if self._execute(schema) != SQLITE_OK:
            raise AstDbBroken(f"cannot make the table in {ASTDB}: {self._message()}")
        self._statements = {name: self._prepare(sql) for name, sql in STATEMENTS.items()}
        self._lock = threading.Lock()
        self._wanted = threading.Condition(self._lock)
        self._sync = False  # something was written since the last commit
        self._leaving = threading.Event()
        self._pending: dict[str, str | None] = {}  # answered with success, not committed
        self._thread = threading.Thread(target=self._commits, name="astdb-commit", daemon=True)
        self._thread.start()
        if self.get(UUID_KEY) is None:
            self.put(UUID_KEY, str(uuid.uuid4()))

    def put(self, key: str, value: str) -> bool:
        """Answers at once; the commit thread makes it last. False: the write failed, and is lost."""
        with self._lock:
            return self._write("put", (key, value), key, row_digest((key, value)))

    def delete(self, key: str) -> bool:
        """As ``put``. A key that is not there counts as success here, as nothing is lost."""
        with self._lock:
            return self._write("delete", (key,), key, None)

    def get(self, key: str) -> str | None:
        """The value, or None. Takes a SHARED lock that stays until the next commit."""
        with self._lock:
            statement = self._bound("get", (key,))
            code = self._library.sqlite3_step(statement)
            found = self._library.sqlite3_column_text(statement, 0) if code == SQLITE_ROW else None
            if code not in {SQLITE_ROW, SQLITE_DONE}:
                self._lost(f"get {key}")
            self._library.sqlite3_reset(statement)
            return None if found is None else found.decode("utf-8", "surrogateescape")

    def close(self) -> None:
        """Commits what is pending, ends the thread and closes the database."""
        self._leaving.set()
        with self._wanted:
            self._sync = True
            self._wanted.notify()
        self._thread.join()
        for statement in self._statements.values():
            self._library.sqlite3_finalize(statement)
        self._library.sqlite3_close(self._database)

    def _write(self, name: str, values: tuple[str, ...], key: str, row: str | None) -> bool:
        statement = self._bound(name, values)
        code = self._library.sqlite3_step(statement)
        if code == SQLITE_DONE:
            self._pending[key] = row
        else:
            self._lost(f"{name} {key}")
        self._library.sqlite3_reset(statement)
        self._sync = True
        self._wanted.notify()
        return bool(code == SQLITE_DONE)

    def _commits(self) -> None:
        self._lock.acquire()
        self._begin()
        while True:
            while not self._sync:
                self._wanted.wait()
            self._sync = False
            last = self._leaving.is_set()
            self._commit()
            if not last:
                self._begin()
            self._lock.release()
            if last:
                return
            self._leaving.wait(COMMIT_EVERY_S)
            self._lock.acquire()

    def _commit(self) -> None:
        rows = [(TABLE, key_text([key]), row) for key, row in self._pending.items() if key != UUID_KEY]
        mark = self._ledger.announce("tx", db=ASTDB, rows=rows) if rows else None
        self._pending = {}
        if self._execute(b"COMMIT") == SQLITE_OK:
            if mark is not None:
                self._ledger.write("done", id=mark)
            return
        why = self._message()
        self._execute(b"ROLLBACK")  # puts that were answered with success are gone now
        if mark is not None:
            self._ledger.write("undone", id=mark, why=why)
            for _, key, _ in rows:
                self._ledger.write("lost", what=f"{ASTDB}{key}", why=why)

    def _begin(self) -> None:
        if self._execute(b"BEGIN") != SQLITE_OK:
            self._lost("begin")

    def _bound(self, name: str, values: tuple[str, ...]) -> ctypes.c_void_p:
        statement = self._statements[name]
        for position, value in enumerate(values, 1):
            data = value.encode("utf-8", "surrogateescape")
            self._library.sqlite3_bind_text(statement, position, data, len(data), TRANSIENT)
        return statement

    def _prepare(self, sql: str) -> ctypes.c_void_p:
        statement = ctypes.c_void_p()
        data = sql.encode()
        if self._library.sqlite3_prepare(self._database, data, -1, ctypes.byref(statement), None) != SQLITE_OK:
            raise AstDbBroken(f"cannot prepare {sql!r}: {self._message()}")
        return statement

    def _execute(self, sql: bytes) -> int:
        return int(self._library.sqlite3_exec(self._database, sql, None, None, None))

    def _message(self) -> str:
        found: bytes = self._library.sqlite3_errmsg(self._database)
        return found.decode("utf-8", "replace")

    def _lost(self, what: str) -> None:
        self._ledger.write("lost", what=f"{ASTDB} {what}", why=self._message())
