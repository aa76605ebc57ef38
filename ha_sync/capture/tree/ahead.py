"""Has the kernel read the next small files of a group from the disk while this one is read and sent.

It reads ahead within a file by itself, but not from one file to the next: a tree that is not in the page cache would be
read with one request at a time. Files are asked for only while reading has to wait, because asking costs as much as
reading what is in the cache. Sizes in bytes. Blocking; the advice itself waits for nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ha_sync.errors import HaSyncError
from ha_sync.files.blocks import BLOCK_MIN, MIB

if TYPE_CHECKING:
    from ha_sync.capture.tree.reading import Item
    from ha_sync.files.confine import Root

WAITED_S = 0.0002
"""Reading a small file from the cache takes a fifth of this."""
COLD_ITEMS = 64
"""After a wait, so many more are taken to be on the disk."""
AHEAD_ITEMS = 32
AHEAD_BYTES = 4 * MIB


class Ahead:
    """Of the items of one group, in the order in which they are read."""

    def __init__(self, root: Root, items: Sequence[Item]) -> None:
        self._root = root
        self._items = items
        self._cold = 0
        self._asked = 0  # up to here

    def read(self, seconds: float) -> None:
        """Reading an item took so long."""
        if seconds > WAITED_S:
            self._cold = COLD_ITEMS

    def ask(self, at: int) -> None:
        """The item at this index is about to be read: asks for those that follow."""
        if not self._cold:
            return
        self._cold -= 1
        number, size = max(self._asked, at + 1), 0
        while number < min(at + 1 + AHEAD_ITEMS, len(self._items)) and size < AHEAD_BYTES:
            size += self._ask_for(self._items[number])
            number += 1
        self._asked = number

    def _ask_for(self, item: Item) -> int:
        status = item.status
        if status is None or not stat.S_ISREG(status.st_mode) or not 0 < status.st_size <= BLOCK_MIN:
            return 0
        try:
            fd = self._root.open(item.path, os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, HaSyncError):
            return 0  # whoever reads it will say so
        try:
            os.posix_fadvise(fd, 0, status.st_size, os.POSIX_FADV_WILLNEED)
        except OSError:
            return 0
        finally:
            os.close(fd)
        return status.st_size
