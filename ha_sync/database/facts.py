"""Reads what belongs to a database beside its rows: versions, journal mode, AUTOINCREMENT sequences."""

from __future__ import annotations

import apsw

from ha_sync.database.connection import number, one, run
from ha_sync.database.image import Facts
from ha_sync.database.locality import Locality
from ha_sync.database.names import is_ours


def read_facts(db: apsw.Connection, locality: Locality) -> Facts:
    """As seen by the caller's read transaction."""
    return Facts(
        user_version=number(db, "PRAGMA main.user_version"),
        application_id=number(db, "PRAGMA main.application_id"),
        journal="wal" if one(db, "PRAGMA main.journal_mode") == "wal" else "delete",
        page_size=number(db, "PRAGMA main.page_size"),
        auto_vacuum=number(db, "PRAGMA main.auto_vacuum"),
        sequences=read_sequences(db, locality),
    )


def read_sequences(db: apsw.Connection, locality: Locality) -> dict[str, int]:
    """The replicated rows of ``sqlite_sequence``."""
    try:
        rows = db.execute("SELECT name, seq FROM main.sqlite_sequence").fetchall()
    except apsw.SQLError:  # there is none before the first AUTOINCREMENT; asking the schema first costs more
        return {}
    return {
        str(name): seq
        for name, seq in rows
        if isinstance(seq, int) and not is_ours(str(name)) and not locality.is_local_table(str(name))
    }


def write_facts(db: apsw.Connection, facts: Facts, locality: Locality) -> None:
    """Makes the Standby's the same, within the caller's transaction (the journal mode cannot change there)."""
    if number(db, "PRAGMA main.user_version") != facts.user_version:
        run(db, f"PRAGMA main.user_version={facts.user_version}")
    if number(db, "PRAGMA main.application_id") != facts.application_id:
        run(db, f"PRAGMA main.application_id={facts.application_id}")
    have = read_sequences(db, locality)
    for name in have.keys() - facts.sequences.keys():
        run(db, "DELETE FROM main.sqlite_sequence WHERE name = ?", (name,))
    for name, seq in facts.sequences.items():
        if have.get(name) != seq:
            run(db, "DELETE FROM main.sqlite_sequence WHERE name = ?", (name,))
            run(db, "INSERT INTO main.sqlite_sequence(name, seq) VALUES(?, ?)", (name, seq))
