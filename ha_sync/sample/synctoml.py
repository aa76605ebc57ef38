"""The ``sync.toml`` of a node that replicates the sample's tree. Keys are those of ``ha_sync.config``."""

from __future__ import annotations

import json
import os

from ha_sync.sample import settings as names
from ha_sync.sample.astdb import UUID_KEY
from ha_sync.sample.configdb import LOCAL_SETTINGS, LOCAL_TABLES

CDR_BUSY_TIMEOUT_MS = 1000  # what cdr_sqlite3_custom and cel_sqlite3_custom set


def sync_toml(
    *,
    root: str,
    state_dir: str,
    run_dir: str,
    listen: str | list[str],
    peer: str = "",
    name: str = "",
    active_at: str = "",
) -> str:
    """The text of the file. ``root`` is the node's own copy of the tree; paths must be absolute."""
    node: dict[str, str | list[str]] = {
        "name": name,
        "state_dir": state_dir,
        "run_dir": run_dir,
        "listen": listen,
        "peer": peer,
    }
    node["active_at"] = active_at
    lines = ["[node]", *(f"{key} = {json.dumps(value)}" for key, value in node.items() if value), ""]
    lines += ["[stream]", 'compression = "auto"', ""]
    for dataset in _datasets(root):
        lines += ["[[dataset]]", *(f"{key} = {value}" for key, value in dataset.items()), ""]
    return "\n".join(lines)


def _datasets(root: str) -> list[dict[str, str]]:
    local = ", ".join(f"'{name}'" for name in LOCAL_SETTINGS)
    busy = {"writer_busy_timeout_ms": str(CDR_BUSY_TIMEOUT_MS), "live_triggers": "true"}
    return [
        {
            **_sqlite("config", root, names.CONFIG_DB, "config"),
            "node_local_tables": json.dumps(list(LOCAL_TABLES)),
            "node_local_rows": _rows("sip_settings", f"name IN ({local})"),
        },
        {**_sqlite("cdr", root, names.CDR_DB, "cdr"), **busy},
        {**_sqlite("cel", root, names.CEL_DB, "cdr"), **busy},
        {
            **_sqlite("astdb", root, names.ASTDB, "config"),
            "capture": '"pages"',
            "node_local_rows": _rows("astdb", f"key = '{UUID_KEY}'"),
        },
        _tree("config-files", root, names.ETC_DIR, "config"),
        _tree("cdr-csv", root, names.CSV_DIR, "cdr"),
        {**_tree("voicemail", root, names.VOICEMAIL_DIR, "voicemail"), "mailboxes": "true"},
        {**_tree("recordings", root, names.MONITOR_DIR, "recordings"), "growing": "true"},
        {**_tree("spool", root, names.OUTGOING_DIR, "voicemail"), "hold": json.dumps(["*"])},
    ]


def _sqlite(name: str, root: str, path: str, priority: str) -> dict[str, str]:
    return _dataset(name, "sqlite", os.path.join(root, path), priority)


def _tree(name: str, root: str, path: str, priority: str) -> dict[str, str]:
    return _dataset(name, "tree", os.path.join(root, path), priority)


def _dataset(name: str, kind: str, path: str, priority: str) -> dict[str, str]:
    fields = {"name": name, "kind": kind, "path": path, "priority": priority}
    return {key: json.dumps(value) for key, value in fields.items()}


def _rows(table: str, where: str) -> str:
    return f"[{{ table = {json.dumps(table)}, where = {json.dumps(where)} }}]"
