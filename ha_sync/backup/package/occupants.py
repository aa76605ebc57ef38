"""Which other programs have the data of a node open: the last question before its names are changed.

Of a database nobody may have it open at all, nor its companions; of a tree nobody may have a file open for writing.
Processes of other users are seen by root only. Blocking: walks ``/proc``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from ha_sync.backup.package.plan import DatasetPlan
from ha_sync.database.holders import holders

NAMED_MAX: Final = 5


def occupants(plans: Iterable[DatasetPlan]) -> tuple[str, ...]:
    """In words, the first few; empty: nobody."""
    found: list[str] = []
    roots: list[str] = []
    for plan in plans:
        path = os.path.realpath(plan.path)
        if plan.kind == "tree":
            roots.append(path)
        else:
            found += [f"{holder} has {plan.path} open" for holder in holders(path)]
    found += _writers(tuple(roots))
    return tuple(found[:NAMED_MAX])


def _writers(roots: tuple[str, ...]) -> list[str]:
    found = []
    for entry in os.listdir("/proc") if roots else ():
        if entry.isdigit() and int(entry) != os.getpid():
            path = _written_below(f"/proc/{entry}", roots)
            if path:
                found.append(f"{_command(entry)} (pid {entry}) writes to {path}")
    return found


def _written_below(process: str, roots: tuple[str, ...]) -> str:
    try:
        descriptors = os.listdir(f"{process}/fd")
    except OSError:  # it ended, or is another user's
        return ""
    for descriptor in descriptors:
        try:
            target = os.readlink(f"{process}/fd/{descriptor}")
        except OSError:
            continue
        inside = any(target.startswith(f"{root}/") for root in roots) and not target.endswith(" (deleted)")
        if inside and _is_writing(f"{process}/fdinfo/{descriptor}"):
            return target
    return ""


def _is_writing(fdinfo: str) -> bool:
    try:
        with open(fdinfo, encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("flags:"):
                    return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    except (OSError, ValueError):
        pass
    return False


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "a process"
