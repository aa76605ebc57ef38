"""Proves from the ledger what is on a copy: what was acknowledged must be there, what was not is counted.

For every thing that the ledger knows, the copy must hold the version that was valid at ``acknowledged_until`` or a
later one; a version that was announced in a crash may be there or not. Later versions that the copy does not have are
*unacknowledged lost*. Besides, transactions must be whole, the rules that span rows must hold, databases must pass
their integrity check, and mailbox messages must not be mixed of two.

The copy should be quiet (its engine stopped, or caught up with nobody writing). Recordings in progress count under
their final names, as a promotion publishes them. Nothing is opened in place: databases are copied with their journals
to a temporary directory first, so that the check leaves no lock and no trace. Blocking.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Final

from ha_sync.sample import check_files
from ha_sync.sample import settings as names
from ha_sync.sample.configdb import is_local
from ha_sync.sample.history import ABSENT, History, RowPlace, Version, kind_of, replay
from ha_sync.sample.ledger import read_ledger
from ha_sync.sample.schema import broken_rules
from ha_sync.sample.tables import decode, plain_tables, row_digests
from ha_sync.sample.verdict import Tally, Verdict

__all__ = ["Verdict", "check"]

DATABASES: Final = (names.CONFIG_DB, names.CDR_DB, names.CEL_DB, names.ASTDB)


def check(ledger: str, copy_root: str, acknowledged_until: float) -> Verdict:
    """Compare the copy with the ledger.

    ``acknowledged_until`` is in seconds of CLOCK_MONOTONIC: the moment just before a barrier was called that returned.
    ``Verdict.ok`` is the whole answer; look at ``acknowledged_missing`` and ``faults`` for what is wrong.
    """
    history = replay(read_ledger(ledger))
    tally = Tally(acknowledged_until)
    for database in DATABASES:
        _check_database(history, copy_root, database, tally)
    check_files.check_files(history, copy_root, tally)
    check_files.check_growing(history, copy_root, tally)
    check_files.check_folders(history, copy_root, tally)
    return tally.verdict(held=history.held, rejected=history.rejected)


@dataclass(slots=True)
class _Transaction:
    """Whether its rows are on the copy: surely before it, surely with it."""

    before: list[RowPlace] = field(default_factory=list)
    after: list[RowPlace] = field(default_factory=list)


def _check_database(history: History, copy_root: str, database: str, tally: Tally) -> None:
    places = {place: versions for place, versions in history.rows.items() if place[0] == database}
    if not places:
        return
    found: dict[tuple[str, str], str] = {}
    if os.path.exists(os.path.join(copy_root, database)):
        try:
            with _opened_copy(copy_root, database) as connection:
                _look_inside(connection, database, tally)
                found = _digests(connection)
        except sqlite3.DatabaseError as error:
            tally.fault(f"{database}: cannot be read: {error}")
    _judge_rows(places, found, kind_of(database), tally)
    if database == names.CONFIG_DB:
        for table, key in found:
            if (database, table, key) not in places and not is_local(table, key):
                tally.fault(f"{database}: row {key} of {table} was never committed")


@contextmanager
def _opened_copy(copy_root: str, database: str) -> Iterator[sqlite3.Connection]:
    with tempfile.TemporaryDirectory(prefix="sample-check-") as directory:
        for suffix in ("", "-wal", "-journal"):
            source = os.path.join(copy_root, database + suffix)
            if os.path.exists(source):
                shutil.copyfile(source, os.path.join(directory, database + suffix))
        with closing(sqlite3.connect(os.path.join(directory, database), isolation_level=None)) as connection:
            connection.text_factory = decode
            yield connection


def _look_inside(connection: sqlite3.Connection, database: str, tally: Tally) -> None:
    answer = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    if answer != ["ok"]:
        tally.fault(f"{database}: integrity_check: {answer[:3]}")
    if database != names.CONFIG_DB:
        return
    for rule in broken_rules(connection):
        tally.fault(f"{database}: {rule}")
    try:
        # A guarded copy forbids writes by triggers on tables, not the index's own check.
        connection.execute("INSERT INTO phonebook_fts(phonebook_fts, rank) VALUES ('integrity-check', 1)")
    except sqlite3.DatabaseError as error:
        tally.fault(f"{database}: phonebook_fts differs from phonebook: {error}")


def _digests(connection: sqlite3.Connection) -> dict[tuple[str, str], str]:
    return {
        (table, key): row for table in plain_tables(connection) for key, row in row_digests(connection, table).items()
    }


def _judge_rows(
    places: dict[RowPlace, list[Version]], found: dict[tuple[str, str], str], kind: str, tally: Tally
) -> None:
    transactions: dict[int, _Transaction] = {}
    for place, versions in places.items():
        _, table, key = place
        here = found.get((table, key), ABSENT)
        tally.judge(kind, f"{place[0]}/{table} {key}", versions, here)
        _note_transactions(transactions, place, versions, here)
    for mark, transaction in transactions.items():
        if transaction.before and transaction.after:
            tally.fault(
                f"{kind}: transaction {mark} is split: {transaction.after[0][1:]} is there, "
                f"{transaction.before[0][1:]} is not"
            )


def _note_transactions(
    transactions: dict[int, _Transaction], place: RowPlace, versions: list[Version], here: str | None
) -> None:
    fits = [number for number, version in enumerate(versions) if version.digest == here]
    if not fits:
        return
    for number, version in enumerate(versions):
        if not version.transaction:
            continue
        transaction = transactions.setdefault(version.transaction, _Transaction())
        if fits[-1] < number:
            transaction.before.append(place)
        elif fits[0] >= number:
            transaction.after.append(place)
