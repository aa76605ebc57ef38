"""What is mounted where, from the kernel's own table, and whether a storage's path is a mount point now.

The table is read without touching any filesystem, so nothing here waits for a server that does not answer, but where a
function says so. Later lines lie over earlier ones: the last one at a place is what a path leads to. Blocking.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass

TABLE = "/proc/self/mountinfo"

LOST = frozenset({errno.EIO, errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN, errno.EHOSTDOWN, errno.ETIMEDOUT})
"""What a filesystem answers whose medium or server is gone: this says nothing of the object that was asked for."""

_ESCAPES = (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of the table: see ``proc_pid_mountinfo(5)``."""

    number: int
    device: str  # major:minor
    root: str  # what of the filesystem is mounted here
    place: str
    kind: str  # of the filesystem, as the kernel names it
    source: str  # a device or an export
    read_only: bool


def table() -> tuple[Mount, ...]:
    """All of them, in the kernel's order."""
    with open(TABLE, encoding="utf-8", errors="surrogateescape") as lines:
        return parsed(lines)


def parsed(lines: Iterable[str]) -> tuple[Mount, ...]:
    """A line that is none is left out."""
    return tuple(mount for line in lines if (mount := _mount(line)) is not None)


def _mount(line: str) -> Mount | None:
    head, dash, tail = line.rstrip("\n").partition(" - ")
    fields, kind = head.split(" "), tail.split(" ")
    if not dash or len(fields) < 6 or len(kind) < 2 or not fields[0].isdigit():
        return None
    options = {*fields[5].split(","), *(kind[2].split(",") if len(kind) > 2 else ())}
    return Mount(
        number=int(fields[0]),
        device=fields[2],
        root=_plain(fields[3]),
        place=_plain(fields[4]),
        kind=kind[0],
        source=_plain(kind[1]),
        read_only="ro" in options,
    )


def _plain(text: str) -> str:
    for escape, meant in _ESCAPES:
        text = text.replace(escape, meant)
    return text


def mounted_at(path: str, mounts: Iterable[Mount]) -> Mount | None:
    """What is mounted exactly there; ``autofs`` alone is a promise and no filesystem."""
    # Of the last component nothing is asked: on a server that does not answer that would not return.
    parent, name = os.path.split(os.path.normpath(path))
    place = os.path.join(os.path.realpath(parent), name)
    found = None
    for mount in mounts:
        if mount.place == place:
            found = mount
    return found if found is not None and found.kind != "autofs" else None


def not_mounted(path: str) -> str:
    """Why a storage's path must not be used; empty where a filesystem is mounted there."""
    if mounted_at(path, table()) is None:
        return f"nothing is mounted at {path}: an unmounted directory is not an empty disk"
    return ""
