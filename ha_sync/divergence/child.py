"""``python -m ha_sync.divergence.child``: the work on a live database that must not share a process with the engine.

One JSON object on standard input says what to do, one on standard output what came of it; standard input stays open
while the engine lives and wants the work: when it ends, so does the child, between two transactions.
"""

from __future__ import annotations

import dataclasses
import json
import os
import select
import sys
from collections.abc import Callable

from ha_sync.config import CaptureMode, NodeLocalRows, SqliteSettings
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.divergence.differing import differing_rows, missing_records
from ha_sync.divergence.merging_rows import RowsMerge
from ha_sync.errors import HaSyncError, WrongState

LINE_MAX = 1024 * 1024


def settings_out(settings: SqliteSettings) -> dict[str, object]:
    """What the child needs of the settings, as JSON."""
    return {
        "name": settings.name,
        "path": settings.path,
        "priority": settings.priority.name,
        "capture": settings.capture.value,
        "writer_busy_timeout_ms": settings.writer_busy_timeout_ms,
        "node_local_tables": list(settings.node_local_tables),
        "node_local_rows": [[rule.table, rule.where] for rule in settings.node_local_rows],
    }


def _settings_in(kept: dict[str, object]) -> SqliteSettings:
    tables, rows, timeout = kept["node_local_tables"], kept["node_local_rows"], kept["writer_busy_timeout_ms"]
    assert isinstance(tables, list), tables
    assert isinstance(rows, list), rows
    assert timeout is None or isinstance(timeout, int), timeout
    return SqliteSettings(
        name=DatasetName(str(kept["name"])),
        path=str(kept["path"]),
        priority=Priority[str(kept["priority"])],
        capture=CaptureMode(kept["capture"]),
        writer_busy_timeout_ms=timeout,
        node_local_tables=tuple(str(name) for name in tables),
        node_local_rows=tuple(NodeLocalRows(table=str(table), where=str(where)) for table, where in rows),
    )


def _merge(order: dict[str, object], goes_on: Callable[[], None]) -> dict[str, object]:
    settings = order["settings"]
    assert isinstance(settings, dict), settings
    merge = RowsMerge(_settings_in(settings), str(order["image"]), force=bool(order["force"]), goes_on=goes_on)
    return dataclasses.asdict(merge.run())


def _show(order: dict[str, object], goes_on: Callable[[], None]) -> dict[str, object]:
    settings, limit = order["settings"], order["limit"]
    assert isinstance(settings, dict), settings
    assert isinstance(limit, int), limit
    looks = missing_records if order["records"] else differing_rows
    return {"lines": looks(_settings_in(settings), str(order["image"]), limit=limit, goes_on=goes_on)}


def main() -> None:
    """Does the one thing that standard input asks for."""
    order = json.loads(sys.stdin.buffer.readline(LINE_MAX))

    def goes_on() -> None:
        ready, _, _ = select.select([sys.stdin.buffer], [], [], 0)
        if ready and not os.read(sys.stdin.fileno(), 1):
            raise SystemExit(1)

    job = {"merge": _merge, "show": _show}[str(order["job"])]
    try:
        answer = {"result": job(order, goes_on)}
    except HaSyncError as error:
        kind = "state" if isinstance(error, WrongState) else "failed"
        answer = {"error": {"kind": kind, "sentence": error.sentence()}}
    json.dump(answer, sys.stdout)


if __name__ == "__main__":
    main()
