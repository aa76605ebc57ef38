"""Sends what was appended to files that are still being written, from where the Standby's partial ends.

A file that the Standby has already in a large form is no recording in progress but a log: it is named in ``logs`` and
published as it is now and then. At most GROWING_MAX files are followed. Sizes in bytes. Blocking.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.capture.tree.frames import FrameBuilder
from ha_sync.capture.tree.growth import GROW_RESTART_MAX, GROWING_MAX, Growth
from ha_sync.capture.tree.journal import Journal
from ha_sync.catalogue.tree import TYPE_FILE, TreeCatalogue
from ha_sync.core.frame import FRAME_TARGET_BYTES
from ha_sync.database.holders import being_written
from ha_sync.errors import HaSyncError
from ha_sync.files.confine import Root

GROW = pb.TreeChange.ACTION_GROW


class Appending:
    """See the module."""

    def __init__(self, catalogue: TreeCatalogue, journal: Journal) -> None:
        self._catalogue = catalogue
        self._journal = journal
        self._due: dict[bytes, None] = {}
        self.files: dict[bytes, Growth] = {}
        self.logs: list[bytes] = []  # taken by whoever tells

    @property
    def is_due(self) -> bool:
        """Whether appended bytes wait to be sent."""
        return bool(self._due)

    def grew(self, path: bytes) -> None:
        """Bytes were appended."""
        self._due[path] = None

    def take(self) -> list[bytes]:
        """The files that may be sent now; those that may not are sent whole when they are closed."""
        due, self._due = self._due, {}
        return [path for path in due if self._may_grow(path)]

    def _may_grow(self, path: bytes) -> bool:
        if path in self.files:
            return True
        entry = self._catalogue.entry(path)
        if len(self.files) >= GROWING_MAX or (entry is not None and entry.size > GROW_RESTART_MAX):
            self.logs.append(path)
            return False
        return not self._journal.flies(path)

    def left_alone(self, root: Root | None, paths: tuple[bytes, ...]) -> list[bytes]:
        """Those that nobody has open for writing: cut short by name, say, which no close follows."""
        files: dict[tuple[int, int], bytes] = {}
        if root is None:
            return []
        for path in paths:
            with contextlib.suppress(OSError, HaSyncError):
                status = root.lstat(path)
                # Only root sees what other users' processes have open.
                if stat.S_ISREG(status.st_mode) and os.geteuid() in {0, status.st_uid}:
                    files[status.st_dev, status.st_ino] = path
        held = being_written(set(files)) if files else set()
        return [path for file, path in files.items() if file not in held]

    def steps(self, root: Root, paths: list[bytes], builder: FrameBuilder) -> Iterator[None]:
        """Adds what was appended to these; yields when the builder's frame must be taken."""
        for path in paths:
            try:
                fd = root.open(path, os.O_RDONLY | os.O_NONBLOCK)
            except (OSError, HaSyncError):
                continue
            try:
                yield from self._appended(path, fd, builder)
            finally:
                os.close(fd)

    def _appended(self, path: bytes, fd: int, builder: FrameBuilder) -> Iterator[None]:
        status = os.fstat(fd)
        growth = self.files.get(path)
        if growth is None or growth.inode != status.st_ino or growth.offset > status.st_size:
            growth = self.files[path] = Growth(status.st_ino)
        if stat.S_ISREG(status.st_mode):
            yield from appended(path, fd, builder, growth, status, end=status.st_size)


def appended(
    path: bytes, fd: int, builder: FrameBuilder, growth: Growth, status: os.stat_result, *, end: int
) -> Iterator[None]:
    """Adds what was not sent of a file up to ``end``; ends earlier where the file does."""
    while growth.offset < end:
        length = min(FRAME_TARGET_BYTES, end - growth.offset)
        if builder.lacks_room(length):
            yield
        view = builder.place(length)
        got = os.preadv(fd, [view], growth.offset)
        if got <= 0:
            return
        builder.keep(got)
        builder.add(
            path=path, action=GROW, type=TYPE_FILE, offset=growth.offset, payload_bytes=got, version=growth.version,
            size=status.st_size if growth.version else 0,
            mode=status.st_mode & 0o7777, uid=status.st_uid, gid=status.st_gid, mtime_ns=status.st_mtime_ns,
        )  # fmt: skip
        growth.sent(view[:got])
