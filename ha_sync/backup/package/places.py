"""Where a restore keeps what is to come and what was: beside the data, on its filesystem, under hidden names of ours.

Of a tree ``<root>/.ha-restore/new`` and ``/old``; of a database ``.ha-restore.<name>.new`` and ``.old`` beside it.
Nobody captures, ships or lists names that begin with ``.ha-``. Paths are bytes. Blocking.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ha_sync.backup.package.plan import DatasetPlan
from ha_sync.errors import OperatorNeeded

HIDDEN: Final = b".ha-restore"
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

    def clear(self) -> None:
        """Removes all of it; what is not there is no fault."""
        if self.tree:
            remove_tree(self.hidden)
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


def remove_tree(path: bytes) -> None:
    """A folder with all below it; symlinks are removed, never followed."""
    if os.path.lexists(path):
        shutil.rmtree(path, onerror=_give_permission)


def _give_permission(function: Callable[..., Any], path: Any, failed: Any) -> None:
    """A folder without permission for its owner, where this is not root: it is given, and the removal tried again."""
    if not isinstance(failed[1], PermissionError):
        raise failed[1]
    folder = os.path.dirname(path)
    os.chmod(folder, stat.S_IRWXU)
    if function is os.open or function is os.scandir:
        os.chmod(path, stat.S_IRWXU)
        shutil.rmtree(path)
        return
    function(path)
