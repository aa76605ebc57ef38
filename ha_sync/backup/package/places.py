"""Where a restore keeps what is to come and what was: beside the data, on its filesystem, under hidden names of ours.

Of a tree ``<root>/.ha-restore/new`` and ``/old``; of a database ``.ha-restore.<name>.new`` and ``.old`` beside it.
Nobody captures, ships or lists names that begin with ``.ha-``. Paths are bytes. Blocking.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ha_sync.backup.package.plan import DatasetPlan
from ha_sync.errors import OperatorNeeded

HIDDEN: Final = b".ha-restore"
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
COMPANIONS: Final = (b"-wal", b"-shm", b"-journal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Of one dataset."""

    tree: bool
    path: bytes  # of the data itself; no symlink
    hidden: bytes  # the folder of a tree; of a database the beginning of both names
    new: bytes
    old: bytes

    def existing_folder(self) -> str:
        """A folder on the filesystem that takes the data. Raises OperatorNeeded."""
        folder = self.path if self.tree and os.path.isdir(self.path) else os.path.dirname(self.path)
        if not os.path.isdir(folder):
            raise OperatorNeeded(
                "cannot restore", subject=os.fsdecode(self.path), reason="its folder does not exist",
                hint="make the folder, or correct the path in sync.toml",
            )  # fmt: skip
        return os.fsdecode(folder)

    def clear(self, stop: Callable[[], bool]) -> None:
        """Removes all of it; what is not there is no fault. Raises ``Stopped``."""
        if self.tree:
            remove_tree(self.hidden, stop)
            return
        for path in (self.new, self.old):
            for end in (b"", *COMPANIONS):
                if os.path.lexists(path + end):
                    os.unlink(path + end)


def place_of(plan: DatasetPlan) -> Place:
    """Follows symlinks to the data itself: what is beside it must be on its filesystem."""
    path = os.path.realpath(os.fsencode(plan.path))
    if plan.kind == "tree":
        hidden = os.path.join(path, HIDDEN)
        return Place(
            tree=True, path=path, hidden=hidden, new=os.path.join(hidden, b"new"), old=os.path.join(hidden, b"old")
        )  # fmt: skip
    folder, name = os.path.split(path)
    hidden = os.path.join(folder, HIDDEN + b"." + name)
    return Place(tree=False, path=path, hidden=hidden, new=hidden + b".new", old=hidden + b".old")


@contextlib.contextmanager
def times_kept(folder: bytes) -> Iterator[None]:
    """What is done in the folder leaves no trace in its times."""
    before = os.stat(folder)
    yield
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))


class Stopped(Exception):
    """A removal was told to stop; it goes on where it was when it is called again."""


def remove_tree(path: bytes, stop: Callable[[], bool]) -> None:
    """A folder with all below it; symlinks are removed, never followed. What is not there is no fault."""
    parent = os.open(os.path.dirname(path), _DIRECTORY)
    try:
        _remove(parent, os.path.basename(path), stop)
    except FileNotFoundError:
        pass
    finally:
        os.close(parent)


def _remove(parent: int, name: bytes, stop: Callable[[], bool]) -> None:
    if stop():
        raise Stopped
    try:
        os.unlink(name, dir_fd=parent)
    except (IsADirectoryError, PermissionError):
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            os.fchmod(fd, stat.S_IRWXU)  # where this is not root, its owner may have had no permission
            for each in os.listdir(fd):
                _remove(fd, os.fsencode(each), stop)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
