"""Watches directories of a tree with inotify and hands what happened to an event loop, cheaply.

One instance per dataset, one watch per directory (not recursive). The library's reader thread appends to a bounded
buffer and calls ``wake`` once until the buffer is drained; of pure ``IN_MODIFY`` events it calls ``modified`` once, for
a file that is being written is looked at now and then. inotify is a hint: what is lost (overflow, a full buffer) is
said by ``Drained.lost``, and the caller rescans.

A watch is put on an open descriptor's ``/proc/self/fd`` path, so it watches the directory that is then scanned and no
other. Directory paths are relative bytes, ``b""`` is the root. ``add``, ``forget`` and ``close`` block (system calls);
``drain`` does not. Thread-safe as used: ``add`` and ``forget`` in one thread, ``drain`` in another.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)

BUFFER_MAX = 65_536
"""Events kept between two drains; beyond it they are dropped and ``lost`` is set: rescan."""

MODIFY = int(InotifyConstants.IN_MODIFY)
ATTRIB = int(InotifyConstants.IN_ATTRIB)
CLOSE_WRITE = int(InotifyConstants.IN_CLOSE_WRITE)
MOVED_FROM = int(InotifyConstants.IN_MOVED_FROM)
MOVED_TO = int(InotifyConstants.IN_MOVED_TO)
CREATE = int(InotifyConstants.IN_CREATE)
DELETE = int(InotifyConstants.IN_DELETE)
DELETE_SELF = int(InotifyConstants.IN_DELETE_SELF)
MOVE_SELF = int(InotifyConstants.IN_MOVE_SELF)
UNMOUNT = int(InotifyConstants.IN_UNMOUNT)
IS_DIRECTORY = int(InotifyConstants.IN_ISDIR)

_BELOW = MODIFY | ATTRIB | CLOSE_WRITE | MOVED_FROM | MOVED_TO | CREATE | DELETE
_FLAGS = int(InotifyConstants.IN_ONLYDIR) | int(InotifyConstants.IN_EXCL_UNLINK)
_SELF = DELETE_SELF | MOVE_SELF

POLLED_FILESYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "vfat", "msdos", "exfat", "9p", "afs", "ceph"})
"""Where other machines write, or where inode numbers do not last: inotify cannot be the front end there."""


Events = list[tuple[bytes, int, int, bytes]]
"""``(directory, mask, cookie, name)``: plain tuples, because this is the hot path."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What happened since the last drain, in order."""

    events: Events
    lost: bool  # some events are missing: everything may have changed


class Watcher:
    """See the module."""

    def __init__(
        self, wake: Callable[[], None], *, modified: Callable[[], None] = lambda: None, buffer_max: int = BUFFER_MAX
    ) -> None:
        self._wake = wake
        self._modified = modified
        self._buffer_max = buffer_max
        self._buffer: deque[tuple[bytes, int, int, bytes]] = deque()
        self._lost = False
        self._awake = False
        self._told_modified = False
        self._closed = False
        self._ids = 0
        self._directories: dict[int, bytes] = {}
        self._watches: dict[bytes, tuple[int, int, CallbackId]] = {}  # path: descriptor, inode, callback
        self._fence_path = b""
        self._fence_watch = -1
        self._fences: dict[bytes, Callable[[], None]] = {}
        self._lock = threading.Lock()
        self._inotify = InotifyFD()
        self._inotify.start()

    # ---- the library's thread

    def on_event(self, event: InotifyEvent) -> None:
        """Called by the library's thread for every event."""
        directory = self._directories.get(event.wd)
        if directory is None:
            if event.wd == self._fence_watch:
                self._pass_fence(event.name)
            return
        if len(self._buffer) >= self._buffer_max:
            self._lost = True
        else:
            self._buffer.append((directory, event.mask, event.cookie, event.name))
            if event.mask == MODIFY:
                if not (self._told_modified or self._awake or self._closed):
                    self._told_modified = True
                    self._modified()
                return
        self._rouse()

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Called by the library's thread: the directory is gone or its filesystem was unmounted."""
        with self._lock:
            directory = self._directories.pop(wd, None)
            if directory is not None and self._watches.get(directory, (-1,))[0] == wd:
                del self._watches[directory]

    def on_queue_overflow(self) -> None:
        """Called by the library's thread: the kernel dropped events."""
        self._lost = True
        self._rouse()

    def _rouse(self) -> None:
        if not self._awake and not self._closed:
            self._awake = True
            self._wake()

    # ---- the loop's side

    def drain(self) -> Drained:
        """Takes everything that happened; never blocks."""
        # Cleared first: an event that arrives from here on wakes again.
        self._awake = self._told_modified = False
        lost, self._lost = self._lost, False
        buffer = self._buffer
        events = [buffer.popleft() for _ in range(len(buffer))]
        return Drained(events=events, lost=lost)

    # ---- the scanner's side

    @property
    def count(self) -> int:
        """How many directories are watched."""
        return len(self._watches)

    def add(self, directory: bytes, fd: int, inode: int) -> bool:
        """Watches the open directory; False where the kernel has no watch left or refuses.

        To be called before the directory is listed: what is created in between would be lost otherwise.
        """
        known = self._watches.get(directory)
        if known is not None and known[1] == inode:
            return True
        mask = Mask(_BELOW | _FLAGS | (0 if directory else _SELF))
        self._ids += 1
        callback = CallbackId(self._ids)
        try:
            wd = self._inotify.add_callback(b"/proc/self/fd/%d" % fd, mask, self, callback)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.ENOENT, errno.ENOMEM, errno.ENOTDIR, errno.EACCES}:
                return False
            raise
        if wd < 0:
            return False
        self._keep(directory, wd, inode, callback)
        return True

    def _keep(self, directory: bytes, wd: int, inode: int, callback: CallbackId) -> None:
        with self._lock:
            replaced = self._watches.pop(directory, None)
            other = self._directories.get(wd)
            moved = self._watches.pop(other, None) if other is not None and other != directory else None
            self._directories[wd] = directory
            self._watches[directory] = (wd, inode, callback)
            if replaced is not None and replaced[0] != wd:
                self._directories.pop(replaced[0], None)
        # The same inode under another name has the same descriptor: only its older callback goes.
        stale = [(WatchDescriptor(w), c) for w, _, c in filter(None, (replaced, moved))]
        if stale:
            self._inotify.remove_callbacks(stale)

    def forget(self, directory: bytes) -> None:
        """Stops watching a directory and all below it: it was moved or removed."""
        below = directory + b"/"
        with self._lock:
            gone = [p for p in self._watches if p == directory or p.startswith(below) or not directory]
            stale = [self._watches.pop(path) for path in gone]
            for wd, _, _ in stale:
                self._directories.pop(wd, None)
        if stale:
            self._inotify.remove_callbacks([(WatchDescriptor(wd), callback) for wd, _, callback in stale])

    # ---- the fence

    def fence(self, place: bytes, passed: Callable[[], None]) -> None:
        """Calls ``passed`` (in the library's thread) when every event that happened before this call was buffered.

        ``place`` is a directory of our own; the queue of one inotify instance keeps its order.
        """
        if self._fence_watch < 0:
            os.makedirs(place, mode=0o700, exist_ok=True)
            self._ids += 1
            mask = Mask(CREATE | int(InotifyConstants.IN_ONLYDIR))
            self._fence_watch = self._inotify.add_callback(place, mask, self, CallbackId(self._ids))
            self._fence_path = place
        self._ids += 1
        name = b"fence-%d-%d" % (os.getpid(), self._ids)
        self._fences[name] = passed
        path = os.path.join(self._fence_path, name)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        os.unlink(path)

    def _pass_fence(self, name: bytes) -> None:
        passed = self._fences.pop(name, None)
        if passed is not None:
            passed()

    def close(self) -> None:
        """Removes all watches and ends the thread."""
        self._closed = True
        self._inotify.stop()
        self._inotify.join(timeout=5.0)
        self._directories.clear()
        self._watches.clear()


def filesystem_type(path: str, mountinfo: str = "/proc/self/mountinfo") -> str:
    """The type of the filesystem that holds ``path``, as the kernel names it; empty where it cannot be told."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    real = os.path.realpath(path)
    best, kind = -1, ""
    with open(mountinfo, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            fields, _, rest = line.partition(" - ")
            parts = fields.split(" ")
            place = parts[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
            below = real == place or real.startswith(place.rstrip("/") + "/")
            # btrfs and overlays show another device number in stat: then the longest mount point decides.
            score = len(place) + (1_000_000 if parts[2] == wanted else 0) if below else -1
            if score >= best and score >= 0:
                best, kind = score, rest.split(" ", 1)[0]
    return kind


def needs_polling(kind: str) -> bool:
    """Whether inotify cannot be relied on for this type of filesystem."""
    return kind in POLLED_FILESYSTEMS or kind.startswith("fuse")
