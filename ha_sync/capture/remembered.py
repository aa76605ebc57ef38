"""Reads what a database's capture remembered of the other node, while no capture runs. Blocking."""

from __future__ import annotations

import os

from ha_sync.capture.pages.journal import read_standby
from ha_sync.capture.rows.journal import Journal
from ha_sync.core.acknowledged import Acknowledged, PagesAcknowledged, RowsAcknowledged


def acknowledged(state_dir: str) -> Acknowledged | None:
    """What the other node has of the database whose state is in ``state_dir``; None where nothing is known."""
    try:
        with open(os.path.join(state_dir, "source.method"), encoding="ascii") as file:
            method = file.read().strip()
    except (OSError, ValueError):
        return None
    path = os.path.join(state_dir, f"source-{method}")
    if not os.path.exists(path):
        return None
    return _rows(path) if method == "rows" else _pages(path)


def _rows(path: str) -> RowsAcknowledged | None:
    journal = Journal(path)
    journal.open()
    try:
        epoch = journal.captured.epoch
        if not epoch:
            return None
        identity = journal.identity
        return RowsAcknowledged(
            epoch=epoch,
            device=identity.device,
            inode=identity.inode,
            log=identity.log,
            logged=max(0, journal.acknowledged - journal.extra),
            anything=journal.answered,
            whole=journal.whole_after(journal.acknowledged),
        )
    finally:
        journal.close()


def _pages(path: str) -> PagesAcknowledged | None:
    known = read_standby(path)
    if known is None:
        return None
    return PagesAcknowledged(size=known.size, block_size=known.block_size, hashes=known.hashes)
