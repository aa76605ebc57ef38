"""``[[dataset]]``: one entry into ``SqliteSettings`` or ``TreeSettings``.

Defaults that follow from another key are decided here: the priority from the name (else config for a database and
recordings for a tree), ``quiet_ms`` 200 for a tree of config priority, ``mailboxes`` for a tree of voicemail priority.
Keys that contradict one another are faults, never settled silently.
"""

from __future__ import annotations

import os
from dataclasses import fields
from typing import Final

from ha_sync.config import place
from ha_sync.config.reading import Faults, Table, shown
from ha_sync.config.settings import (
    CaptureMode,
    DatasetSettings,
    Hold,
    Kind,
    NodeLocalRows,
    SqliteSettings,
    TreeSettings,
)
from ha_sync.config.where import where_problem
from ha_sync.core.dataset import DatasetName, Priority

CONFIG_QUIET_MS = 200
TABLE_NAME_CHARS_MAX = 256
LIST_MAX = 256

PRIORITIES: Final = {priority.name.lower(): priority for priority in Priority if priority is not Priority.STORAGE}

_PRIORITY_OF_NAME: Final = {
    "config": Priority.CONFIG,
    "config-files": Priority.CONFIG,
    "cdr": Priority.CDR,
    "voicemail": Priority.VOICEMAIL,
    "recordings": Priority.RECORDINGS,
}
_ONLY_SQLITE = {fact.name: 'belongs to kind = "sqlite" only' for fact in fields(SqliteSettings)}
_ONLY_TREE = {fact.name: 'belongs to kind = "tree" only' for fact in fields(TreeSettings) if fact.name != "storage"}


def parse_dataset(number: int, values: dict[str, object], faults: Faults) -> DatasetSettings | None:
    """The ``number``-th entry, counted from 1; None where it cannot even be said what it is."""
    given = values.get("name")
    label = given if isinstance(given, str) and not place.dataset_name(given) else str(number)
    table = Table(f"dataset[{label}]", values, faults)
    name = table.required_text("name", 'each dataset needs one, e.g. name = "cdr"', place.dataset_name)
    if not table.has("kind"):
        table.fault("kind", 'is missing: "sqlite" or "tree"')
    # Both are tried for an unknown kind, so that the faults of the rest are told in the same run.
    kind = table.choice("kind", Kind.SQLITE, Kind)
    known = values.get("kind") in [member.value for member in Kind]  # a list: the value may be unhashable
    check_path = place.tree_root if kind is Kind.TREE else place.absolute_path
    path = table.required_text("path", "where the database or folder is", check_path)
    path = os.path.normpath(path) if path else ""
    fallback = Priority.CONFIG if kind is Kind.SQLITE else Priority.RECORDINGS
    priority = table.choice("priority", _PRIORITY_OF_NAME.get(name, fallback), Priority, PRIORITIES)
    if not known:
        for key in _ONLY_SQLITE | _ONLY_TREE:
            table.raw(key)
        table.finish()
        return None
    parse = _parse_sqlite if kind is Kind.SQLITE else _parse_tree
    settings = parse(table, DatasetName(name), path, priority)
    return settings if name and path else None


def _parse_sqlite(table: Table, name: DatasetName, path: str, priority: Priority) -> SqliteSettings:
    plain = SqliteSettings(name=name, path=path, priority=priority)
    capture = table.choice("capture", plain.capture, CaptureMode)
    tables = table.texts("node_local_tables", _table_name_problem, most=LIST_MAX)
    settings = SqliteSettings(
        name=name,
        path=path,
        priority=priority,
        capture=capture,
        pages_max_mib=table.integer("pages_max_mib", plain.pages_max_mib, low=1, high=4096, unit="MiB"),
        writer_busy_timeout_ms=_busy_timeout(table),
        live_triggers=table.flag("live_triggers", default=plain.live_triggers),
        log_entries_max=table.integer(
            "log_entries_max", plain.log_entries_max, low=1_000_000, high=1_000_000_000, unit="entries"
        ),
        node_local_tables=tables,
        node_local_rows=_node_local_rows(table, tables),
    )
    _check_capture(table, settings)
    table.finish(_ONLY_TREE)
    return settings


def _busy_timeout(table: Table) -> int | None:
    if not table.has("writer_busy_timeout_ms"):
        table.raw("writer_busy_timeout_ms")
        return None
    return table.integer("writer_busy_timeout_ms", 0, low=0, high=600_000, unit="milliseconds")


def _check_capture(table: Table, settings: SqliteSettings) -> None:
    if settings.capture is CaptureMode.PAGES:
        if settings.live_triggers:
            table.fault(
                "live_triggers", 'contradicts capture = "pages", which installs no triggers: drop one of the two'
            )
        if table.has("log_entries_max"):
            table.fault("log_entries_max", 'contradicts capture = "pages", which keeps no log: drop one of the two')
    if settings.capture is CaptureMode.ROWS and table.has("pages_max_mib"):
        table.fault("pages_max_mib", 'contradicts capture = "rows", which copies no pages: drop one of the two')


def _node_local_rows(table: Table, whole_tables: tuple[str, ...]) -> tuple[NodeLocalRows, ...]:
    rows: list[NodeLocalRows] = []
    taken = {name.lower() for name in whole_tables}
    example = '[{ table = "sip_settings", where = "name = \'externhost\'" }]'
    for number, values in enumerate(table.tables("node_local_rows", example, most=LIST_MAX), start=1):
        entry = table.entry(f"node_local_rows[{number}]", values)
        name = entry.required_text("table", "the table whose rows they are", _table_name_problem)
        where = entry.required_text(
            "where", "which rows, as SQL over the table's columns", where_problem, many_lines=True
        )
        entry.finish()
        if name.lower() in taken:
            entry.fault("table", "stands there twice: join the clauses with OR, or keep the whole table node-local")
        elif name and where:
            rows.append(NodeLocalRows(table=name, where=where))
        taken.add(name.lower())
    return tuple(rows)


def _table_name_problem(name: str) -> str:
    if not 0 < len(name) <= TABLE_NAME_CHARS_MAX:
        return f"must be a table's name of 1 to {TABLE_NAME_CHARS_MAX} characters"
    if name.lower().startswith(("sqlite_", "_ha_")):
        return "is a table of SQLite or of the engine itself: name a table of the program"
    return ""


def _parse_tree(table: Table, name: DatasetName, path: str, priority: Priority) -> TreeSettings:
    plain = TreeSettings(name=name, path=path, priority=priority)
    growing = table.flag("growing", default=plain.growing)
    mailboxes = table.flag("mailboxes", default=priority is Priority.VOICEMAIL and not growing)
    rests = CONFIG_QUIET_MS if priority is Priority.CONFIG and not growing else plain.quiet_ms
    settings = TreeSettings(
        name=name,
        path=path,
        priority=priority,
        growing=growing,
        mailboxes=mailboxes,
        quiet_ms=table.integer("quiet_ms", rests, low=0, high=60_000, unit="milliseconds"),
        exclude=table.texts("exclude", pattern_problem, most=LIST_MAX),
        node_local=table.texts("node_local", pattern_problem, most=LIST_MAX),
        hold=table.texts("hold", pattern_problem, most=LIST_MAX),
        hold_at_promotion=table.choice("hold_at_promotion", plain.hold_at_promotion, Hold),
        mass_delete_percent=table.integer(
            "mass_delete_percent", plain.mass_delete_percent, low=1, high=100, unit="percent; 100: never halt"
        ),
        trash_mib=table.integer("trash_mib", plain.trash_mib, low=0, high=16 * 1024 * 1024, unit="MiB; 0: no trash"),
        poll_s=table.number("poll_s", 0.0, low=0.1, high=3600, unit="seconds") or None,
        reconcile_s=table.number("reconcile_s", plain.reconcile_s, low=1, high=86_400, unit="seconds"),
    )
    _check_tree(table, settings)
    table.finish(_ONLY_SQLITE)
    return settings


def _check_tree(table: Table, settings: TreeSettings) -> None:
    if settings.growing and settings.mailboxes:
        table.fault("growing", "contradicts mailboxes: a mailbox is read when it is unlocked, never while it grows")
    if settings.growing and settings.quiet_ms:
        table.fault("quiet_ms", "contradicts growing: a growing file is sent while it is written, not when it rests")
    if table.has("hold_at_promotion") and not settings.hold:
        table.fault("hold_at_promotion", 'has nothing to act on: name the held files, e.g. hold = ["outgoing/*"]')
    for key, other in (("node_local", settings.exclude), ("hold", settings.exclude), ("hold", settings.node_local)):
        for pattern in set(getattr(settings, key)) & set(other):
            table.fault(key, f"{shown(pattern)} stands in two lists that treat it differently: keep one")


def pattern_problem(pattern: str) -> str:
    """The fault's words, or nothing."""
    parts = pattern.removesuffix("/").split("/")
    if pattern.startswith("/"):
        return "must be relative to the dataset's path: no / in front"
    if any(part in {"", ".", ".."} for part in parts):
        return 'must not have empty, "." or ".." components'
    if len(os.fsencode(pattern)) > place.PATH_BYTES_MAX:
        return f"is longer than {place.PATH_BYTES_MAX} bytes"
    return ""
