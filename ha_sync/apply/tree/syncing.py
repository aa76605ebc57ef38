"""Makes many files durable at once.

``fsync`` of each is fastest for a few; from SYNCFS_FROM on one ``syncfs`` of the filesystem is, and since Linux 5.8 it
reports write errors like ``fsync`` does. Blocking.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable

SYNCFS_FROM = 16

_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(fd: int) -> None:
    """Writes out the whole filesystem that ``fd`` is on; raises OSError for what could not be written."""
    if _libc.syncfs(ctypes.c_int(fd)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def syncfs_and_drop(fd: int, names: Iterable[bytes]) -> None:
    """The same, and drops what these files below ``fd`` hold from the page cache: nobody here reads them soon.

    What comes next is received into the same memory, which the kernel need not find and clear first, and what the
    programs of this node read stays cached. A name that is gone is passed over.
    """
    syncfs(fd)
    for name in names:
        with contextlib.suppress(OSError):
            file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            try:
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(file)
