"""The upgrade window of this node: a file that is there while firmware may differ. Durable; blocking.

It holds the firmware from which the upgrade began, so that it can be told which node has the new one.
"""

from __future__ import annotations

import contextlib
import os

from ha_agent.errors import OperatorNeeded
from ha_agent.memory.book import write_whole

FILE_NAME = "upgrade-window"
FIRMWARE_MAX = 256


def opened_from(state_dir: str) -> str | None:
    """The firmware at its beginning; None: it is not open."""
    try:
        with open(os.path.join(state_dir, FILE_NAME), encoding="utf-8", errors="replace") as file:
            return file.read(FIRMWARE_MAX).strip()
    except FileNotFoundError:
        return None
    except OSError:
        return ""  # there, and unreadable: an administrator opened it


def open_from(state_dir: str, firmware: str) -> None:
    """Raises OperatorNeeded."""
    path = os.path.join(state_dir, FILE_NAME)
    try:
        write_whole(path, firmware[:FIRMWARE_MAX].encode() + b"\n")
    except OSError as failed:
        raise OperatorNeeded("cannot store", subject=path, reason=failed.strerror or str(failed)) from failed


def close(state_dir: str) -> None:
    """Raises OperatorNeeded."""
    path = os.path.join(state_dir, FILE_NAME)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    except OSError as failed:
        raise OperatorNeeded("cannot remove", subject=path, reason=failed.strerror or str(failed)) from failed
