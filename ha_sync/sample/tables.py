"""Tables as the ledger and the checker see them: every row's key and the digest of its values.

A table with a declared primary key is keyed by it; one without is a bag of rows, keyed by the rows' own digests, since
VACUUM may renumber its row ids. Hidden, generated and virtual columns do not count.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Final

from ha_sync.sample.ledger import row_digest

FTS_SUFFIXES: Final = ("_data", "_idx", "_content", "_docsize", "_config")


def decode(data: bytes) -> str:
    """For ``text_factory``: invalid UTF-8 is kept apart from valid text."""
    return data.decode("utf-8", "surrogateescape")


def key_text(key: Sequence[object]) -> str:
    """A key as a dictionary key that survives JSON."""
    return json.dumps(list(key), ensure_ascii=True)


def plain_tables(connection: sqlite3.Connection) -> list[str]:
    """The ordinary tables of the application: no virtual tables, no shadows of them, nothing of an engine."""
    rows = connection.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table' ORDER BY name").fetchall()
    virtual = [name for name, sql in rows if sql.upper().startswith("CREATE VIRTUAL")]
    shadows = {name + suffix for name in virtual for suffix in FTS_SUFFIXES}
    return [
        name
        for name, _ in rows
        if name not in virtual and name not in shadows and not name.startswith(("_ha_", "sqlite_stat"))
    ]


def quoted(name: str) -> str:
    """An identifier in SQL."""
    return '"' + name.replace('"', '""') + '"'


def row_digests(connection: sqlite3.Connection, table: str) -> dict[str, str]:
    """Key text to digest, of every row of the table. The connection's ``text_factory`` must be ``decode``."""
    if table == "sqlite_sequence":
        rows = connection.execute("SELECT name, seq FROM sqlite_sequence WHERE name NOT GLOB '_ha_*'")
        return {key_text([name]): row_digest((name, seq)) for name, seq in rows}
    columns = connection.execute(f"PRAGMA table_info({quoted(table)})").fetchall()
    keys = sorted((column[5], position) for position, column in enumerate(columns) if column[5])
    names = ", ".join(quoted(column[1]) for column in columns)
    found: dict[str, str] = {}
    for row in connection.execute(f"SELECT {names} FROM {quoted(table)}"):
        values = row_digest(row)
        found[key_text([row[position] for _, position in keys] if keys else [values])] = values
    return found
