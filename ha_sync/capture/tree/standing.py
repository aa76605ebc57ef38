"""How the capture of a tree is doing, in one state and the reason for it. Reads plain fields; no I/O."""

from __future__ import annotations

from ha_sync.capture.tree.worker import TreeWorker
from ha_sync.core.dataset import DatasetState


def state_of(
    worker: TreeWorker, path: str, *, failed: str, started: bool, served: bool, absent: bool, polling: bool
) -> tuple[DatasetState, str]:
    """``started``: the whole tree was scanned once; ``served``: a Standby is there.

    ``absent``: the root was looked for in vain.
    """
    if worker.halted:
        return DatasetState.HALTED, worker.halted
    if failed:
        return DatasetState.FAILED, failed
    if refusal := worker.terms.refusal:
        return DatasetState.WAITING, refusal
    if worker.root is None and not absent:
        return DatasetState.STARTING, "looks for its root"
    if worker.root is None:
        if worker.terms.known:
            return DatasetState.FAILED, f"{path} does not exist any more: is its filesystem mounted?"
        return DatasetState.WAITING, f"{path} does not exist"
    if not started:
        return DatasetState.STARTING, "first scan"
    if not served:
        return DatasetState.WAITING, "no standby"
    if worker.journal.synced_at is None:
        return DatasetState.SYNCING, ""
    if worker.tally.unwatched and not polling:
        return DatasetState.DEGRADED, f"{worker.tally.unwatched} directories cannot be watched"
    return DatasetState.STREAMING, ""
