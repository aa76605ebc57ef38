"""Makes many files durable at once.

``fsync`` of each is fastest for a few; from SYNCFS_FROM on one ``syncfs`` of the filesystem is, and since Linux 5.8 it
reports write errors like ``fsync`` does. Blocking.
"""

from __future__ import annotations

import ctypes
import os

SYNCFS_FROM = 16

_libc = ctypes.CDLL(None, use_errno=True)


def syncfs(fd: int) -> None:
    """Writes out the whole filesystem that ``fd`` is on; raises OSError for what could not be written."""
    if _libc.syncfs(ctypes.c_int(fd)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
