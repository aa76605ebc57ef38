"""Where long reads of a rollback-journal database happen: on a private copy, with no lock held (DESIGN 4.3, 4.12).

A ``Snapshot`` writes a copy that is one committed state to ``target``. It is called only while this process has no
SQLite connection to the database (POSIX locks). It raises ``Retryable`` where none can be had now.
"""

from __future__ import annotations

from collections.abc import Callable

from ha_sync.database.lockfree import Copy, LockFreeReader
from ha_sync.errors import Retryable

WITHIN_S = 10.0

Snapshot = Callable[[str, str], None]
"""``snapshot(path, target)``."""


def lock_free_snapshot(path: str, target: str) -> None:
    """The lock-free copy."""
    reader = LockFreeReader(path)
    try:
        result = reader.snapshot_to(target, within_s=WITHIN_S)
    finally:
        reader.close()
    if not isinstance(result, Copy):
        raise Retryable(
            "cannot copy the database without locks",
            subject=path,
            reason=f"{result.why.value} {result.detail}".strip(),
            hint="a busy rollback-journal database needs a pause, or WAL mode",
        )
