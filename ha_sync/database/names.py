"""Names inside a replicated database: quoting, and which objects are ours.

Everything that the engine puts into a database starts with ``_ha_``; nothing that does is ever compared or shipped.
Pure: no I/O.
"""

from __future__ import annotations

OURS = "_ha_"
CHANGE = "_ha_change"  # the log of dirty keys
TABLE = "_ha_table"  # numbers of the logged tables and indexes
INDEX = "_ha_index "  # prefix of an index's name there
META = "_ha_meta"  # the log's identity
POSITION = "_ha_position"  # the Standby's durable position
GUARD = "_ha_guard_"  # prefix of the guards' triggers
LOG = "_ha_log_"  # prefix of the capture triggers
TRIM = "_ha_trim"  # the trigger that keeps the log bounded

ROWID_ALIASES = ("rowid", "_rowid_", "oid")


def quoted(name: str) -> str:
    """An SQL identifier, whatever characters it holds."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """An SQL string literal."""
    return "'" + text.replace("'", "''") + "'"


def is_ours(name: str) -> bool:
    """Whether an object was made by the engine (also the automatic indexes of its tables)."""
    lowered = name.lower()
    return lowered.startswith((OURS, f"sqlite_autoindex_{OURS}"))


def folded(name: str) -> str:
    """The form in which SQLite compares names: ASCII letters only are folded."""
    return "".join(c.lower() if c.isascii() else c for c in name)
