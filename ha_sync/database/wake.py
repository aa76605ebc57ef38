"""Tells that a database may have changed: inotify on its directory. Only a hint; the truth is asked of the database.

``Wake`` runs one kernel watch and one thread of watchdog's; ``wait`` returns at once when something was hinted since
the last call. Events of the ``-shm`` file and closings are left out, or our own reads would wake us. A rollback journal
that is made or written to tells of a transaction that goes on: a look would find nothing and would hold its lock when
the writer wants to commit. Every commit writes to the database itself, and most delete the journal.
"""

from __future__ import annotations

import asyncio
import os
import time

from watchdog.observers.inotify_c import CallbackId, InotifyConstants, InotifyEvent, InotifyFD, Mask, WatchDescriptor

_MASK = Mask(
    InotifyConstants.IN_MODIFY
    | InotifyConstants.IN_CREATE
    | InotifyConstants.IN_DELETE
    | InotifyConstants.IN_MOVED_TO
    | InotifyConstants.IN_MOVED_FROM
)


class Wake:
    """Hints for the database at ``path``; belongs to the running event loop."""

    def __init__(self, path: str) -> None:
        # SQLite keeps log and journal beside the file itself, not beside a link to it.
        self._directory, base = os.path.split(os.path.realpath(path))
        self._names = frozenset((os.fsencode(base), os.fsencode(base + "-wal")))
        self._journal = os.fsencode(base + "-journal")
        self._loop = asyncio.get_running_loop()
        self._hinted = asyncio.Event()
        self._pending = False
        self._inotify: InotifyFD | None = None
        self._blind = True
        self._hinted_at: float | None = None

    def start(self) -> None:
        """Begins to watch; a directory that is missing is tried again by ``revive``."""
        self.revive()

    def revive(self) -> None:
        """Watches again after the directory was missing or replaced, or inotify had no watch left."""
        if not self._blind:
            return
        self._stop_watch()
        try:
            inotify = InotifyFD()
            self._inotify = inotify
            inotify.start()
            inotify.add_callback(os.fsencode(self._directory), _MASK, self, CallbackId(1))
            self._blind = False
        except OSError:
            self._stop_watch()  # the slow tick goes on alone

    @property
    def blind(self) -> bool:
        """Whether nothing is watched now."""
        return self._blind

    async def wait(self, timeout_s: float) -> bool:
        """Waits for a hint, at most ``timeout_s``; says whether there was one."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._hinted.wait()
        except TimeoutError:
            return False
        self._hinted.clear()
        self._pending = False
        return True

    def take_hint(self) -> float | None:
        """The monotonic time of the first hint since the last call: as early as a change can be known."""
        hinted_at, self._hinted_at = self._hinted_at, None
        return hinted_at

    def give_back(self, hinted_at: float | None) -> None:
        """The look that took it failed; what was hinted meanwhile is younger."""
        if hinted_at is not None:
            self._hinted_at = hinted_at

    def close(self) -> None:
        """Stops watching."""
        self._stop_watch()

    def on_event(self, event: InotifyEvent) -> None:
        """Called in watchdog's thread."""
        if event.name in self._names or (event.name == self._journal and (event.is_delete or event.is_moved_from)):
            self._hint()

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:  # noqa: ARG002 - watchdog's signature
        """The directory is gone: called in watchdog's thread, and while closing."""
        self._blind = True
        self._hint()

    def on_queue_overflow(self) -> None:
        """Events were lost: called in watchdog's thread."""
        self._hint()

    def _hint(self) -> None:
        # One call into the loop for any number of events: a burst writes thousands of pages.
        if self._pending:
            return
        self._pending = True
        at = time.monotonic()
        try:
            self._loop.call_soon_threadsafe(self._wake, at)
        except RuntimeError:  # the loop is closed
            pass

    def _wake(self, at: float) -> None:
        if self._hinted_at is None:
            self._hinted_at = at
        self._hinted.set()

    def _stop_watch(self) -> None:
        inotify, self._inotify = self._inotify, None
        if inotify is not None:
            inotify.stop()
            inotify.join(timeout=2.0) if inotify.is_alive() else None
        self._blind = True
