"""Counts the files that a change takes from the tree, so that a guard can tell a disaster from daily work.

What was moved to another name inside the tree is not lost: objects that appeared lately are remembered by inode, and a
path that is gone counts only if its object stands under none of them. A loss is counted once, however often it is
noticed until the Standby has it too: by its own event, with its directory, by a scan, when it is about to be sent.
Blocking; one thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable

from ha_sync.catalogue.tree import TYPE_FILE, TreeCatalogue, key_of

APPEARED_MAX = 50_000
"""Objects remembered; beyond it the oldest are forgotten, and a move of more files one by one counts as a loss."""

PROVED_MAX = 50_000
"""Files of one missing directory that are looked for one by one."""

COUNTED_MAX = 100_000
"""Losses remembered as counted; beyond it they count again when they are about to be sent, which only halts sooner."""

Status = Callable[[bytes], os.stat_result | None]


class Losses:
    """``status`` says what stands at a path now; ``counted`` is kept with the journal, which knows what was sent."""

    def __init__(self, catalogue: TreeCatalogue, counted: set[bytes], status: Status) -> None:
        self._catalogue = catalogue
        self._counted = counted
        self._status = status
        self._appeared: dict[int, bytes] = {}

    def stands(self, path: bytes, inode: int) -> None:
        """This object stands there now."""
        self.is_back(path)
        known = self._appeared
        known.pop(inode, None)
        known[inode] = path
        if len(known) > APPEARED_MAX:
            del known[next(iter(known))]

    def is_back(self, path: bytes) -> None:
        """Something stands there now: the next loss of it is another one."""
        self._counted.discard(path)

    def files(self, gone: Iterable[bytes]) -> int:
        """How many files were lost with these paths, which are gone with all below them; what was counted is not."""
        lost = 0
        for path in sorted(gone, key=key_of):  # a directory before what it held
            entry = self._catalogue.entry(path)
            if entry is None or self._is_counted(path):
                continue
            if not self._moved(path, entry.witness.inode, is_file=entry.type == TYPE_FILE):
                lost += 1 if entry.type == TYPE_FILE else self._below(path)
            if len(self._counted) < COUNTED_MAX:
                self._counted.add(path)
        return lost

    def _is_counted(self, path: bytes) -> bool:
        counted = self._counted
        while counted and path:
            if path in counted:
                return True
            path = path.rpartition(b"/")[0]
        return False

    def _below(self, path: bytes) -> int:
        files = self._catalogue.files_below(path)
        if not files or not (self._appeared or self._counted):
            return files
        inodes = self._catalogue.file_inodes_below(path, limit=PROVED_MAX)
        return files - sum(self._is_counted(p) or self._moved(p, inode, is_file=True) for p, inode in inodes)

    def _moved(self, path: bytes, inode: int, *, is_file: bool) -> bool:
        """Whether the object of that inode stands under another name now."""
        where = self._appeared.get(inode) if inode else None
        if where is None or where == path:
            return False
        status = self._status(where)
        if status is None or status.st_ino != inode:
            return False
        return stat.S_ISREG(status.st_mode) if is_file else stat.S_ISDIR(status.st_mode)
