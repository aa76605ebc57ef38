"""Questions to the kernel about the locks that other programs' SQLite holds. Asking takes no lock.

Offsets are SQLite's own (https://www.sqlite.org/src/file/src/os_unix.c): on the database file, and on the ``-shm``
file of a write-ahead log. The answers are of the moment of asking.
"""

from __future__ import annotations

import fcntl
import os
import struct
from dataclasses import dataclass

PENDING = 0x40000000
RESERVED = PENDING + 1
SHARED_FIRST = PENDING + 2
SHARED_BYTES = 510

LOG_WRITE = 120  # of -shm: held while a transaction writes to the log, until its commit is in the index
LOG_LIFE = 128  # of -shm: every connection to a log holds a read lock; the first one a write lock while it begins

_FLOCK = struct.Struct("@hhqqi0q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """A lock of another program."""

    process: int  # -1 where the kernel cannot say
    exclusive: bool


def lock_in_the_way(fd: int, start: int, length: int = 1, *, even_of_readers: bool = False) -> Lock | None:
    """A write lock that others hold on the range, or any lock at all."""
    kind = fcntl.F_WRLCK if even_of_readers else fcntl.F_RDLCK
    request = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    answer = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request))
    if answer[0] == fcntl.F_UNLCK:
        return None
    return Lock(process=int(answer[4]), exclusive=answer[0] == fcntl.F_WRLCK)
