"""What a full backup asks of a tree's capture: what is in motion, and to send again what the Standby lacks.

Blocking; belongs to the dataset's thread.
"""

from __future__ import annotations

from dataclasses import replace

from ha_sync.capture.tree.told import RESUME_HINT
from ha_sync.capture.tree.worker import TreeWorker
from ha_sync.errors import HaSyncError, OperatorNeeded

NEVER_NS = -1
"""A time that no object has: whatever the Standby's has is stated anew."""


def moving(worker: TreeWorker, paths: tuple[bytes, ...]) -> frozenset[bytes]:
    """Which of these are being written, or on their way, so that a difference says nothing."""
    journal, growing = worker.journal, worker.appending.files
    return frozenset(
        path
        for path in paths
        if worker.is_open(path)
        or path in growing
        or path in journal.live
        or path in journal.held
        or journal.flies(path)
    )


def resend(worker: TreeWorker, paths: tuple[bytes, ...], *, now: float) -> None:
    """Sends these whole, deletes on the Standby what is not here.

    The guards judge the loss of what was known, as in any other way. What only the Standby has was never lost here.
    Raises OperatorNeeded where a guard halts the dataset.
    """
    gone = [path for path in paths if not _stands(worker, path)]
    if gone and worker.guard is not None and not worker.halted:
        reason = worker.guard.look()
        if not reason and (lost := len(worker.catalogue.entries_of(gone))):
            reason = worker.guard.deleting(lost, now=now)
        if reason:
            worker.halt(reason)
    if worker.halted:
        subject = worker.root.path if worker.root is not None else ""
        raise OperatorNeeded("cannot replicate", subject=subject, reason=worker.halted, hint=RESUME_HINT)
    worker.need(paths)


def restate(worker: TreeWorker, paths: tuple[bytes, ...]) -> None:
    """The content stays: only the metadata that is noted as the Standby's is made such that it differs."""
    known = worker.catalogue.entries_of(paths)
    with worker.catalogue.transaction(durable=False):
        worker.catalogue.put_entries(replace(entry, mtime_ns=NEVER_NS) for entry in known.values())
        worker.journal.mark_bulk(paths)


def _stands(worker: TreeWorker, path: bytes) -> bool:
    if worker.root is None:
        return False
    try:
        worker.root.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, HaSyncError):
        return True  # it is there, whatever it is
    return True
