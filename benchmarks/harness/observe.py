"""Eyes on the Standby's disk from outside: what became visible there, and when.

Watches by inotify (system calls through ctypes: no delay of a library is in a figure) and by reading rows. Times are
seconds of CLOCK_MONOTONIC. One thread each.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import sqlite3
import struct
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

IN_MODIFY = 0x2
IN_CLOSE_WRITE = 0x8
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
_HEADER = struct.Struct("iIII")
_LIBC = ctypes.CDLL(None, use_errno=True)

POLL_S = 0.0005
"""Between two looks at a row's table: what is seen is at most so much late."""

Seen = Callable[[str, str, float], None]
"""``seen(directory, name, at)``."""


class Watch:
    """A thread that calls ``seen`` for every event in the given directories."""

    def __init__(self, directories: list[str], mask: int, seen: Seen) -> None:
        self._descriptor = _LIBC.inotify_init1(os.O_CLOEXEC)
        assert self._descriptor >= 0, os.strerror(ctypes.get_errno())
        self._seen = seen
        self._places: dict[int, str] = {}
        for directory in directories:
            number = _LIBC.inotify_add_watch(self._descriptor, os.fsencode(directory), mask)
            if number < 0:
                raise OSError(ctypes.get_errno(), f"cannot watch {directory}")
            self._places[number] = directory
        self._leaving = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="watch")

    def _run(self) -> None:
        try:
            while not self._leaving.is_set():
                if select.select([self._descriptor], [], [], 0.1)[0]:
                    self._take(os.read(self._descriptor, 1 << 16), time.monotonic())
        except BaseException as error:  # noqa: BLE001 - raised where the watch is left
            self._failure = error

    def _take(self, data: bytes, at: float) -> None:
        start = 0
        while start < len(data):
            number, _, _, size = _HEADER.unpack_from(data, start)
            start += _HEADER.size
            name = os.fsdecode(data[start : start + size].rstrip(b"\0"))
            start += size
            if number < 0:
                raise AssertionError("the observer's queue overflowed")
            self._seen(self._places[number], name, at)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leaving.set()
        self._thread.join()
        os.close(self._descriptor)
        if self._failure is not None and error is None:
            raise self._failure


class RowsObserver:
    """The largest key of ``event`` on the Standby, and when it was first seen."""

    def __init__(self, path: str) -> None:
        self._connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None, timeout=5.0)
        self.seen: list[tuple[int, float]] = []  # (largest key, time), growing

    def largest(self) -> int:
        """Now; 0 for an empty table."""
        row = self._connection.execute("SELECT max(id) FROM event").fetchone()
        return int(row[0] or 0)

    def follow(self, until: Callable[[int], bool], *, timeout_s: float) -> None:
        """Looks again and again until ``until(largest)``."""
        deadline = time.monotonic() + timeout_s
        last = -1
        while True:
            found = self.largest()
            now = time.monotonic()
            if found != last:
                self.seen.append((found, now))
                last = found
            if until(found):
                return
            if now > deadline:
                raise TimeoutError(f"the standby has rows up to {found} after {timeout_s:g} s")
            time.sleep(POLL_S)

    def close(self) -> None:
        """Leaves the database."""
        self._connection.close()


class GrowingObserver:
    """How long the partial copies of growing recordings are, over time. A tag in a copy's first bytes names it."""

    def __init__(self, root: str, *, tag_at: int, tag_bytes: int) -> None:
        self._tag_at = tag_at
        self._tag_bytes = tag_bytes
        self._tags: dict[tuple[str, str], str] = {}
        self.seen: dict[str, list[tuple[int, float]]] = {}
        self._root = root

    def __call__(self, directory: str, name: str, _at: float) -> None:
        """An event in one of the watched directories; the size counts when it was read, not when the event came."""
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(os.path.join(directory, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                self._look(descriptor, (directory, name))
            finally:
                os.close(descriptor)

    def _look(self, descriptor: int, place: tuple[str, str]) -> None:
        size, now = os.fstat(descriptor).st_size, time.monotonic()
        if place not in self._tags:
            tag = os.pread(descriptor, self._tag_bytes, self._tag_at)
            if len(tag) < self._tag_bytes or not tag.strip(b"\0"):
                return  # its first block is not there yet
            self._tags[place] = tag.decode("ascii", "replace").strip()
        self.seen.setdefault(self._tags[place], []).append((size, now))
