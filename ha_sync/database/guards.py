"""The Standby's guards: triggers that refuse a write with a message that names the Active (R15).

Every table is guarded but the node-local ones; of a table with node-local rows the rows that fulfil the clause stay
editable. The applier runs with triggers switched off and passes.
"""

from __future__ import annotations

import apsw

from ha_sync.database.connection import run
from ha_sync.database.locality import Locality
from ha_sync.database.names import GUARD, literal, quoted
from ha_sync.database.schema import Schema, Table
from ha_sync.database.triggers import Trigger, our_triggers

_EVENTS = {"INSERT": ("NEW",), "UPDATE": ("OLD", "NEW"), "DELETE": ("OLD",)}


def guard_triggers(schema: Schema, locality: Locality, *, active_at: str) -> tuple[Trigger, ...]:
    """All guards that the database needs."""
    tables = [t for name, t in sorted(schema.tables.items()) if not locality.is_local_table(name)]
    return tuple(
        _guard(f"{GUARD}{number}_{event[0].lower()}", table, event, locality, active_at)
        for number, table in enumerate(tables, 1)
        for event in _EVENTS
    )


def _guard(name: str, table: Table, event: str, locality: Locality, active_at: str) -> Trigger:
    message = literal(f"standby: write to the active at {active_at}")
    when = _when(table, _EVENTS[event], locality.clause(table.name))
    sql = (
        f"CREATE TRIGGER {quoted(name)} BEFORE {event} ON {quoted(table.name)}{when} "
        f"BEGIN SELECT RAISE(ABORT, {message}); END"
    )
    return Trigger(name=name, table=table.name, sql=sql)


def _when(table: Table, rows: tuple[str, ...], clause: str) -> str:
    if not clause:
        return ""
    return " WHEN NOT (" + " AND ".join(_is_local(table, row, clause) for row in rows) + ")"


def _is_local(table: Table, row: str, clause: str) -> str:
    values = ", ".join(f"{row}.{quoted(c.name)} AS {quoted(c.name)}" for c in table.columns)
    return f"EXISTS (SELECT 1 FROM (SELECT {values}) AS {quoted(table.name)} WHERE ({clause}\n))"


def install_guards(db: apsw.Connection, schema: Schema, locality: Locality, *, active_at: str) -> bool:
    """Makes the guards what they should be, within the caller's transaction. Returns whether any was changed."""
    wanted = {t.name: t for t in guard_triggers(schema, locality, active_at=active_at)}
    have = {n: found for n, found in our_triggers(db).items() if n.startswith(GUARD)}
    stale = [n for n, found in have.items() if n not in wanted or (wanted[n].table, wanted[n].sql) != found]
    for name in stale:
        run(db, f"DROP TRIGGER main.{quoted(name)}")
    missing = [t for n, t in wanted.items() if n not in have or n in stale]
    for trigger in missing:
        run(db, trigger.sql)
    return bool(stale or missing)


def unguarded(db: apsw.Connection, schema: Schema, locality: Locality, *, active_at: str) -> tuple[str, ...]:
    """The tables that lack a guard, or have one that somebody changed."""
    have = our_triggers(db)
    wanted = guard_triggers(schema, locality, active_at=active_at)
    return tuple(sorted({t.table for t in wanted if have.get(t.name) != (t.table, t.sql)}))


def remove_guards(db: apsw.Connection) -> tuple[str, ...]:
    """Drops the guards, within the caller's transaction. Returns their names."""
    names = [n for n in our_triggers(db) if n.startswith(GUARD)]
    for name in names:
        run(db, f"DROP TRIGGER main.{quoted(name)}")
    return tuple(names)
