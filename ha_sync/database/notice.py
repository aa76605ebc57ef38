"""Hears from the kernel that files of a database were touched: inotify on their directory.

A hint only: the truth is what a look finds. Events come in the watching thread; the listener gets the bare name, the
mask and the monotonic second, and must be quick. What was lost (overflow, the directory itself gone) is said by
``LOST``. The watch is on the directory because SQLite deletes and creates the journal all the time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
    inotify_add_watch,
    inotify_init,
)

MODIFY = int(InotifyConstants.IN_MODIFY)
OPENED = int(InotifyConstants.IN_OPEN)
VANISHED = int(InotifyConstants.IN_DELETE | InotifyConstants.IN_MOVED_FROM)
CHANGES = Mask(
    InotifyConstants.IN_MODIFY
    | InotifyConstants.IN_ATTRIB
    | InotifyConstants.IN_MOVED_FROM
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_CREATE
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_DELETE_SELF
    | InotifyConstants.IN_MOVE_SELF
)
CHANGES_AND_OPENS = Mask(CHANGES | InotifyConstants.IN_OPEN)
LOST = 0
"""Mask of a notice that says: something may have been missed, look at everything; the watch may be gone."""

Listener = Callable[[bytes, int, float], None]

_ONLY = CallbackId(1)


class FolderNotice:
    """Watches one directory for a few names. Start and stop block briefly; the rest runs in its own thread."""

    def __init__(self, folder: str, names: frozenset[bytes], listener: Listener, *, mask: Mask = CHANGES) -> None:
        self._folder = os.fsencode(folder)
        self._names = names
        self._listener = listener
        self._mask = mask
        self._inotify: InotifyFD | None = None
        self.alive = False

    def start(self) -> None:
        """Raises OSError where the directory is missing or the kernel's limits are reached."""
        os.stat(self._folder)  # watchdog keeps silent about EACCES and gives a watch that never fires
        if not os.access(self._folder, os.R_OK):
            raise PermissionError(13, "cannot be watched", os.fsdecode(self._folder))
        inotify = InotifyFD()
        inotify.daemon = True
        inotify.start()
        try:
            inotify.add_callback(self._folder, self._mask, self, _ONLY)
        except OSError:
            inotify.stop()
            inotify.join()
            raise
        self._inotify = inotify
        self.alive = True

    def stop(self) -> None:
        """No notice comes after this."""
        self.alive = False
        if self._inotify is not None:
            self._inotify.stop()
            self._inotify.join()
            self._inotify = None

    def on_event(self, event: InotifyEvent) -> None:
        """Called by watchdog in its thread."""
        if event.name in self._names:
            self._listener(event.name, int(event.mask), time.monotonic())
        elif event.is_move_self or event.is_delete_self:
            self.on_watch_deleted(event.wd)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:  # noqa: ARG002 - watchdog's protocol
        """The directory went away."""
        if self.alive:
            self.alive = False
            self._listener(b"", LOST, time.monotonic())

    def on_queue_overflow(self) -> None:
        """Events were lost."""
        self._listener(b"", LOST, time.monotonic())


class WriteWitness:
    """Says whether anybody wrote to an open file since the last question; exact, whatever the clock's grain.

    The kernel queues the event inside the writer's system call, so a writer that has finished has been heard.
    """

    def __init__(self, fd: int) -> None:
        self._inotify = inotify_init()
        if self._inotify < 0:
            raise OSError("no inotify instance left")
        os.set_inheritable(self._inotify, False)
        os.set_blocking(self._inotify, False)
        # By descriptor: a name could already mean another file.
        if inotify_add_watch(self._inotify, b"/proc/self/fd/%d" % fd, MODIFY) < 0:
            os.close(self._inotify)
            raise OSError("the file cannot be watched")

    def heard(self) -> bool:
        """Whether there was a write since the last call."""
        try:
            return bool(os.read(self._inotify, 65_536))
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Ends the watch."""
        os.close(self._inotify)
