"""The upgrade window of this node: a file that is there while firmware may differ. Durable; blocking."""

from __future__ import annotations

import contextlib
import os

from ha_agent.errors import OperatorNeeded
from ha_agent.memory.book import write_whole

FILE_NAME = "upgrade-window"


def is_open(state_dir: str) -> bool:
    """Whether an administrator opened it and has not closed it."""
    return os.path.exists(os.path.join(state_dir, FILE_NAME))


def set_open(state_dir: str, *, open_now: bool) -> None:
    """Raises OperatorNeeded."""
    path = os.path.join(state_dir, FILE_NAME)
    try:
        if open_now:
            write_whole(path, b"firmware of the two nodes may differ\n")
            return
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as failed:
        raise OperatorNeeded("cannot store", subject=path, reason=failed.strerror or str(failed)) from failed
