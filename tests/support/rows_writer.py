"""A program that writes to a database through the system's SQLite and knows every state that it committed.

Run as a process: one JSON line in (a list of statements: one transaction), one JSON line out: the number of the
transaction and the digest of everything that is in the database once it is committed. A statement that fails is
skipped, as a program would that handles its errors; the last word may be ROLLBACK.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
import sys
from collections.abc import Callable, Iterable
from typing import Any


def digest(query: Callable[[str], Iterable[tuple[Any, ...]]]) -> str:
    """A hash over all rows of all tables but ours; ``query`` runs one SELECT."""
    found = hashlib.sha256()
    names = [
        str(name)
        for name, sql in query("SELECT name, sql FROM sqlite_master WHERE type = 'table' ORDER BY name")
        if not str(name).startswith(("_ha_", "sqlite_")) and not str(sql).upper().startswith("CREATE VIRTUAL")
    ]
    for name in names:
        quoted = '"' + name.replace('"', '""') + '"'
        literal = name.replace("'", "''")
        columns = [str(c) for (c,) in query(f"SELECT name FROM pragma_table_xinfo('{literal}')")]
        # A real number as it is: versions of SQLite differ in how many digits they print.
        values = ", ".join(
            f"""typeof("{c}"), CASE typeof("{c}") WHEN 'real' THEN "{c}" ELSE hex("{c}") END""" for c in columns
        )
        rows = sorted(query(f"SELECT {values} FROM {quoted}"))
        found.update(repr((name, columns, rows)).encode())
    return found.hexdigest()


def main() -> None:
    db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
    db.execute("PRAGMA synchronous=OFF")
    db.execute(f"PRAGMA foreign_keys={sys.argv[2]}")

    def query(sql: str) -> list[tuple[Any, ...]]:
        return db.execute(sql).fetchall()

    for line in sys.stdin:
        statements = json.loads(line)
        if statements == ["VACUUM"]:
            db.execute("VACUUM")
        else:
            db.execute("BEGIN IMMEDIATE")
            for statement in statements[:-1]:
                try:
                    db.execute(statement)
                except sqlite3.Error:
                    pass
            if db.in_transaction:
                db.execute("UPDATE ledger SET n = n + 1")
                db.execute(statements[-1])
        # Nobody else writes, so what is read now is what was committed.
        number = db.execute("SELECT n FROM ledger").fetchone()[0]
        print(json.dumps([number, digest(query)]), flush=True)


if __name__ == "__main__":
    main()
