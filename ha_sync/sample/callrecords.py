"""Call records as cdr_sqlite3_custom, cel_sqlite3_custom and cdr_csv write them.

A rollback-journal database, one INSERT a transaction at SQLite's default synchronous setting (FULL), a busy timeout of
one second: after that **the row is lost**, an error in the log and nothing else. The CSV lines follow the row in the
same thread: every file is opened, appended to and closed for every record, never synced. One object belongs to one
thread.
"""

from __future__ import annotations

import os
import sqlite3
from typing import Final

from ha_sync.sample.ledger import Ledger, digest, row_digest
from ha_sync.sample.settings import CSV_DIR
from ha_sync.sample.tables import decode, key_text

BUSY_TIMEOUT_S: Final = 1.0
CDR_COLUMNS: Final = (
    "calldate",
    "clid",
    "dcontext",
    "channel",
    "dstchannel",
    "lastapp",
    "lastdata",
    "duration",
    "billsec",
    "disposition",
    "amaflags",
    "accountcode",
    "uniqueid",
    "userfield",
)
CEL_COLUMNS: Final = (
    "eventtime",
    "eventtype",
    "cidname",
    "cidnum",
    "exten",
    "context",
    "channame",
    "appname",
    "uniqueid",
    "linkedid",
)


class CallRecords:
    """One of the two databases, kept open."""

    def __init__(self, root: str, database: str, table: str, columns: tuple[str, ...], ledger: Ledger) -> None:
        self._database = database
        self._table = table
        self._ledger = ledger
        self._connection = sqlite3.connect(
            os.path.join(root, database), timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
        )
        self._connection.text_factory = decode
        names = ", ".join(f'"{name}"' for name in columns)
        self._connection.execute(f'CREATE TABLE IF NOT EXISTS "{table}" (AcctId INTEGER PRIMARY KEY, {names})')
        marks = ", ".join("?" * len(columns))
        self._insert = f'INSERT INTO "{table}" ({names}) VALUES ({marks})'

    def add(self, values: tuple[str, ...]) -> bool:
        """One row, committed when this returns; False: the PBX has lost it."""
        try:
            key = self._connection.execute(self._insert, values).lastrowid
        except sqlite3.DatabaseError as error:  # locked, or refused by somebody's trigger: an error in the log
            what = f"{self._database}/{self._table}/{values[0]}"
            self._ledger.write("lost", what=what, why=str(error))
            return False
        row = row_digest((key, *values))
        self._ledger.write("row", db=self._database, table=self._table, key=key_text([key]), d=row)
        return True

    def close(self) -> None:
        """At a clean stop."""
        self._connection.close()


class CallCsv:
    """``Master.csv``, ``Custom.csv`` and one file for each account."""

    def __init__(self, root: str, ledger: Ledger) -> None:
        self._root = root
        self._ledger = ledger
        os.makedirs(os.path.join(root, CSV_DIR), exist_ok=True)

    def add(self, values: tuple[str, ...], account: str) -> None:
        """One line in each of the files."""
        line = (",".join('"' + value.replace('"', '""') + '"' for value in values) + "\n").encode()
        names = ["Master.csv", "Custom.csv", *([f"{account}.csv"] if account else [])]
        for name in names:
            self._append(f"{CSV_DIR}/{name}", line)

    def rotate(self, suffix: str) -> None:
        """What logrotate does to ``Master.csv``: a rename; the next record makes a new file."""
        path, moved = f"{CSV_DIR}/Master.csv", f"{CSV_DIR}/Master.csv.{suffix}"
        if not os.path.exists(os.path.join(self._root, path)):
            return
        mark = self._ledger.announce("try", paths=[path, moved])
        os.rename(os.path.join(self._root, path), os.path.join(self._root, moved))
        self._ledger.write("move", p=path, to=moved, id=mark)

    def _append(self, path: str, line: bytes) -> None:
        file = os.open(os.path.join(self._root, path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(file, line)
            end = os.lseek(file, 0, os.SEEK_CUR)
        finally:
            os.close(file)
        self._ledger.write("append", p=path, o=end - len(line), n=len(line), d=digest(line))
