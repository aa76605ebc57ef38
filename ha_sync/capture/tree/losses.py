"""Counts the files that a change takes from the tree, so that a guard can tell a disaster from daily work.

What was moved to another name inside the tree is not lost: objects that appeared lately are remembered by inode, and a
path that is gone counts only if its object stands under none of them. Blocking; one thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable

from ha_sync.catalogue.tree import TYPE_FILE, TreeCatalogue

APPEARED_MAX = 50_000
"""Objects remembered; beyond it the oldest are forgotten, and a move of more files one by one counts as a loss."""

PROVED_MAX = 50_000
"""Files of one missing directory that are looked for one by one."""

Status = Callable[[bytes], os.stat_result | None]


class Losses:
    """``status`` says what stands at a path now."""

    def __init__(self, catalogue: TreeCatalogue, status: Status) -> None:
        self._catalogue = catalogue
        self._status = status
        self._appeared: dict[int, bytes] = {}

    def appeared(self, path: bytes, inode: int) -> None:
        """This object stands there now."""
        known = self._appeared
        known.pop(inode, None)
        known[inode] = path
        if len(known) > APPEARED_MAX:
            del known[next(iter(known))]

    def files(self, gone: Iterable[bytes]) -> int:
        """How many files were lost with these paths, which are gone with all below them."""
        return sum(self._lost_with(path) for path in gone)

    def _lost_with(self, path: bytes) -> int:
        entry = self._catalogue.entry(path)
        if entry is None or self._stands(path, entry.witness.inode, stat.S_ISDIR if entry.type != TYPE_FILE else None):
            return 0
        if entry.type == TYPE_FILE:
            return 1
        files = self._catalogue.files_below(path)
        if not files or not self._appeared:
            return files
        inodes = self._catalogue.file_inodes_below(path, limit=PROVED_MAX)
        return files - sum(self._stands(below, inode, None) for below, inode in inodes)

    def _stands(self, path: bytes, inode: int, is_kind: Callable[[int], bool] | None) -> bool:
        """Whether the object of that inode stands under another name now."""
        where = self._appeared.get(inode) if inode else None
        if where is None or where == path:
            return False
        status = self._status(where)
        if status is None or status.st_ino != inode:
            return False
        return is_kind(status.st_mode) if is_kind is not None else stat.S_ISREG(status.st_mode)
