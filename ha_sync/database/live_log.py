"""The write-ahead log that running programs share, read beside them without a lock and without a connection.

A connection of ours would be harmless while it reads, but not while the program closes: SQLite moves the log into the
file only when the last connection goes, so a program that closes during our read leaves its log behind, and whoever
comes next reads it by its checksums. SQLite before 3.50 writes checksums that are wrong after a ROLLBACK TO in a
transaction that outgrew its cache: all commits behind that point are then lost (seen with 3.40.1, a sixth of random
workloads). What the index names as committed is right in any case: living programs go by it and so do we.

How a copy comes to be one committed state (https://www.sqlite.org/walformat.html). The caller

1. reads the index: its salt;
2. reads the file. A checkpoint may write to it meanwhile, but only what is committed in the log;
3. reads the index again: the number of frames. Whatever a checkpoint had written to the file by then is among them;
4. lays those frames over the file, in order. Committed frames do not change before the log is begun anew;
5. reads the index once more: with the salt of 1 the log was not begun anew since, and the names must still mean the
   files that are open here, or the last program had closed and others may have written to the file by any rule.

Danger: closing these files drops the POSIX locks that this process has on them (lockfree.py). Sizes in bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from ha_sync.database.locks import LOG_LIFE, LOG_WRITE, lock_in_the_way

INDEX_BYTES = 48
PIECE_BYTES = 4 * 1024 * 1024

_INDEX = struct.Struct("=IIIBBHII8s8s8s")  # the machine's byte order, but for the salt
_VERSION = 3_007_000
_LOG_HEADER_BYTES = 32
_LOG_MAGICS = {0x377F0682, 0x377F0683}
_FRAME_HEADER_BYTES = 24
_TRIES = 5


class LogBusy(Exception):
    """The log cannot be read now."""


class LogMoved(Exception):
    """The log was begun anew, or went away, while it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogIndex:
    """What the header of the index says: the newest commit."""

    frames: int  # committed ones, in the log's present life
    page_size: int
    pages: int  # of the database at that commit; 0: as many as the file has
    salt: bytes  # another one each time that the log is begun anew
    raw: bytes  # the same bytes: nothing was committed between


def parse_index(data: bytes) -> LogIndex | None:
    """None where the two copies are not one whole header: a program is writing it, or has yet to."""
    head = data[:INDEX_BYTES]
    if len(data) < 2 * INDEX_BYTES or head != data[INDEX_BYTES : 2 * INDEX_BYTES]:
        return None
    version, _, _, initialised, _, page_size, frames, pages, _, salt, checksum = _INDEX.unpack(head)
    if version != _VERSION or not initialised or checksum != _checksum(head[:-8]):
        return None
    return LogIndex(frames=frames, page_size=65_536 if page_size == 1 else page_size, pages=pages, salt=salt, raw=head)


def log_is_in_use(path: str) -> bool:
    """Whether a program has the log of the database at ``path`` open."""
    try:
        shared = _open(f"{path}-shm")
    except OSError:
        return False
    try:
        return lock_in_the_way(shared, LOG_LIFE, even_of_readers=True) is not None
    finally:
        os.close(shared)


class LiveLog:
    """Log and index of one look. Raises OSError where one of them cannot be read."""

    def __init__(self, path: str) -> None:
        self._names = (f"{path}-shm", f"{path}-wal")
        self._shared = _open(self._names[0])
        try:
            self._log = _open(self._names[1])
        except OSError:
            os.close(self._shared)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._log)
        os.close(self._shared)

    def require_in_use(self) -> None:
        """Without a living program the index says nothing. Raises LogBusy."""
        lock = lock_in_the_way(self._shared, LOG_LIFE, even_of_readers=True)
        if lock is None:
            raise LogBusy("its last program has just closed it")
        if lock.exclusive:
            raise LogBusy("a program is opening it")

    def transaction_is_open(self) -> bool:
        """Whether somebody writes to the log: the commit that may follow is not seen as a write to any file."""
        return lock_in_the_way(self._shared, LOG_WRITE) is not None

    def index(self, since: LogIndex | None = None) -> LogIndex:
        """The newest commit, of the same life of the log as ``since``. Raises LogBusy, LogMoved."""
        for _ in range(_TRIES):
            found = parse_index(os.pread(self._shared, 2 * INDEX_BYTES, 0))
            if found is None:
                continue
            if since is not None and (found.salt != since.salt or found.frames < since.frames):
                raise LogMoved("it was begun anew")
            return found
        raise LogBusy("its index is being written")

    def require_same_files(self) -> None:
        """Raises LogMoved where the names have come to mean other files, or none."""
        for name, fd in zip(self._names, (self._shared, self._log), strict=True):
            mine = os.fstat(fd)
            try:
                named = os.stat(name)
            except OSError as error:
                raise LogMoved("it was closed") from error
            if (named.st_dev, named.st_ino) != (mine.st_dev, mine.st_ino):
                raise LogMoved("it was closed and opened again")

    def lay_over(self, index: LogIndex, put: Callable[[int, memoryview], object]) -> None:
        """Gives ``put`` offset and content of every page of the committed frames; the last one counts."""
        if index.frames == 0:
            return
        self._require_header(index)
        frame_bytes = _FRAME_HEADER_BYTES + index.page_size
        at_once = max(1, PIECE_BYTES // frame_bytes)
        buffer = memoryview(bytearray(min(at_once, index.frames) * frame_bytes))
        for first in range(0, index.frames, at_once):
            piece = buffer[: min(at_once, index.frames - first) * frame_bytes]
            if _filled(self._log, piece, _LOG_HEADER_BYTES + first * frame_bytes) < len(piece):
                raise LogMoved("it is shorter than its index says")
            for start in range(0, len(piece), frame_bytes):
                page = int.from_bytes(piece[start : start + 4], "big")
                # Beyond the end: of a commit before the database became shorter.
                if 1 <= page <= index.pages:
                    content = piece[start + _FRAME_HEADER_BYTES : start + frame_bytes]
                    put((page - 1) * index.page_size, content)

    def _require_header(self, index: LogIndex) -> None:
        """Index and log belong together. (The frames' own salts and checksums may be wrong, see above.)"""
        header = os.pread(self._log, _LOG_HEADER_BYTES, 0)
        magic, page_size = int.from_bytes(header[:4], "big"), int.from_bytes(header[8:12], "big")
        if magic not in _LOG_MAGICS or page_size != index.page_size or header[16:24] != index.salt:
            raise LogMoved("its index belongs to another one")


def _open(name: str) -> int:
    return os.open(name, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)


def _filled(fd: int, view: memoryview, offset: int) -> int:
    filled = 0
    while filled < len(view):
        got = os.preadv(fd, [view[filled:]], offset + filled)
        if got == 0:
            break
        filled += got
    return filled


def _checksum(data: bytes) -> bytes:
    one = two = 0
    words = struct.unpack(f"={len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) & 0xFFFFFFFF
        two = (two + odd + one) & 0xFFFFFFFF
    return struct.pack("=II", one, two)
