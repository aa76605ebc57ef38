"""Hears from the kernel that files of a database were touched: inotify on their directory, read in the event loop.

A hint only: the truth is what a look finds. The listener gets the bare name, the mask and the monotonic second. What
was lost (overflow, the directory itself gone) is said by ``LOST``. The watch is on the directory because SQLite deletes
and creates the journal all the time. While nobody needs to hear, hearing can be paused: the kernel keeps and merges the
notices, and a busy program does not wake us at every write.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Callable, Iterator

from watchdog.observers.inotify_c import InotifyConstants, inotify_add_watch, inotify_init

MODIFY = int(InotifyConstants.IN_MODIFY)
OPENED = int(InotifyConstants.IN_OPEN)
VANISHED = int(InotifyConstants.IN_DELETE | InotifyConstants.IN_MOVED_FROM)
CHANGES = int(
    InotifyConstants.IN_MODIFY
    | InotifyConstants.IN_ATTRIB
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_CREATE
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_MOVE_SELF
)
CHANGES_AND_OPENS = CHANGES | OPENED
LOST = 0
"""Mask of a notice that says: something may have been missed, look at everything; the watch may be gone."""

Listener = Callable[[bytes, int, float], None]

_GONE = int(
    InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_MOVE_SELF
    | InotifyConstants.IN_UNMOUNT
    | InotifyConstants.IN_IGNORED
)
_OVERFLOW = int(InotifyConstants.IN_Q_OVERFLOW)
_READ_BYTES = 64 * 1024
_EVENT = struct.Struct("iIII")


class FolderNotice:
    """Watches one directory for a few names. The listener is called in the event loop that called ``hear``."""

    def __init__(self, folder: str, names: frozenset[bytes], listener: Listener, *, mask: int = CHANGES) -> None:
        self._folder = os.fsencode(folder)
        self._names = names
        self._listener = listener
        self._mask = mask
        self._fd = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._deaf_since: float | None = None
        self.alive = False

    def start(self) -> None:
        """Blocking. Raises OSError where the directory is missing, unreadable or the kernel's limits are reached."""
        self._fd = _new_inotify()
        try:
            _watch(self._fd, self._folder, self._mask)
        except OSError:
            self.stop()
            raise
        self.alive = True

    def hear(self) -> None:
        """Calls the listener from now on. What was heard during a pause is dated to the pause's beginning."""
        if self._fd < 0 or self._loop is not None:
            return
        self._drain()
        if self.alive:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._fd, self._drain)

    def pause(self) -> None:
        """Does not wake the loop until ``hear``."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop = None
            self._deaf_since = time.monotonic()

    def stop(self) -> None:
        """No notice comes after this."""
        self.pause()
        self.alive = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _drain(self) -> None:
        deaf_since, self._deaf_since = self._deaf_since, None
        try:
            data = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        at = time.monotonic() if deaf_since is None else deaf_since
        for mask, name in _events(data):
            if mask & _OVERFLOW:
                self._listener(b"", LOST, at)
            elif mask & _GONE and not name:
                self._gone(at)
                return
            elif name in self._names:
                self._listener(name, mask, at)

    def _gone(self, at: float) -> None:
        if self.alive:
            self.alive = False
            self.pause()
            self._listener(b"", LOST, at)


class WriteWitness:
    """Says whether anybody wrote to an open file since the last question; exact, whatever the clock's grain.

    The kernel queues the event inside the writer's system call, so a writer that has finished has been heard.
    """

    def __init__(self, fd: int) -> None:
        self._inotify = _new_inotify()
        try:
            # By descriptor: a name could already mean another file.
            _watch(self._inotify, b"/proc/self/fd/%d" % fd, MODIFY)
        except OSError:
            os.close(self._inotify)
            raise

    def heard(self) -> bool:
        """Whether there was a write since the last call."""
        try:
            return bool(os.read(self._inotify, _READ_BYTES))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Ends the watch."""
        os.close(self._inotify)


def _new_inotify() -> int:
    fd = inotify_init()
    if fd < 0:
        raise OSError("no inotify instance left: raise fs.inotify.max_user_instances")
    os.set_inheritable(fd, False)
    os.set_blocking(fd, False)
    return fd


def _watch(inotify: int, path: bytes, mask: int) -> None:
    os.stat(path)  # says by its exception what inotify_add_watch says by -1
    if inotify_add_watch(inotify, path, mask) < 0:
        raise OSError(f"{os.fsdecode(path)} cannot be watched: see its permissions and fs.inotify.max_user_watches")


def _events(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _EVENT.size <= len(data):
        _, mask, _, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        yield mask, data[at : at + length].rstrip(b"\x00")
        at += length
