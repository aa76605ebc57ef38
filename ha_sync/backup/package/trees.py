"""Reads a tree for a package: every object once, in order, each as it was at one moment.

The walk is depth first with names in the order of their bytes; symlinks are not followed; FIFOs, sockets and devices
are counted, no more. A file is read, hashed on the way, and looked at again: one that changed meanwhile is read anew,
and after ``TRIES`` it goes as it was got, marked as *moving*. The messages of a mailbox's folder rename one another, so
they are read as one (DESIGN 5.5): when nobody holds its lock, and again when the folder changed. What was read waits in
a temporary file, so that nothing goes out twice. Memory is bounded by the largest folder's names. Blocking.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import IO, Final

from ha_sync.backup.package.format import PIECE_BYTES, Entry, EntryType, blake2b
from ha_sync.errors import OperatorNeeded
from ha_sync.files.confine import DEPTH_MAX, PATH_MAX_BYTES
from ha_sync.files.metadata import TYPE_SPECIAL, metadata_of, named, object_type, read_xattrs
from ha_sync.files.places import join
from ha_sync.files.rules import LOCK, OWN_PREFIX, Rules

TRIES: Final = 4
PAUSE_S: Final = 0.05
LOCK_WAIT_S: Final = 2.0
SPOOL_MEMORY: Final = 4 * 1024 * 1024

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

Spend = Callable[[int], None]


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was met and left out."""

    special: int = 0
    unreadable: list[str] = field(default_factory=list)
    too_long: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """An object with its content, which is taken before the next object is asked for."""

    entry: Entry
    content: Callable[[], Iterator[bytes]]
    close: Callable[[], None] = lambda: None


def measure(root: str, rules: Rules) -> tuple[int, int]:
    """Objects and bytes of content, roughly: files change meanwhile."""
    objects = content = 0
    for _, _, status in _walked(root, rules, Tally()):
        objects += 1
        content += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return objects, content


class TreeReader:
    """One tree."""

    def __init__(self, dataset: str, root: str, rules: Rules, *, spool_dir: str, spend: Spend) -> None:
        self._dataset = dataset
        self._root = root
        self._rules = rules
        self._spool_dir = spool_dir
        self._spend = spend
        self._spooled: dict[bytes, tuple[Entry, IO[bytes]]] = {}  # of the mailbox folder that is being walked
        self.tally = Tally()

    def objects(self) -> Iterator[Read]:
        """All of them. Raises OperatorNeeded where the root cannot be read."""
        try:
            for path, parent, status in _walked(self._root, self._rules, self.tally, self._enter):
                read = self._read(path, parent, status)
                if read is not None:
                    try:
                        yield read
                    finally:
                        read.close()
        finally:
            self._leave()

    def _read(self, path: bytes, parent: int, status: os.stat_result) -> Read | None:
        kept = self._spooled.pop(path, None)
        if kept is not None:
            return _spooled(*kept)
        name = path.rpartition(b"/")[2]
        try:
            if stat.S_ISREG(status.st_mode):
                return self._file(path, parent, name)
            if stat.S_ISLNK(status.st_mode):
                return self._symlink(path, parent, name, status)
            return self._directory(path, parent, name)
        except FileNotFoundError:
            return None  # it went before it was read
        except OSError as error:
            self.tally.unreadable.append(f"{os.fsdecode(path)}: {error.strerror}")
            return None

    def _file(self, path: bytes, parent: int, name: bytes) -> Read | None:
        for attempt in range(1, TRIES + 1):
            entry, spool = self._spool_file(path, parent, name)
            if entry is None:
                return None
            if not entry.moving or attempt == TRIES:
                return _spooled(entry, spool)
            spool.close()
            time.sleep(PAUSE_S * attempt)
        raise AssertionError("the last try returns")

    def _spool_file(self, path: bytes, parent: int, name: bytes) -> tuple[Entry | None, IO[bytes]]:
        """The file in a spool that stays open, but where there is no entry."""
        spool = self._new_spool()
        entry = None
        try:
            entry = self._read_file(path, parent, name, spool)
        finally:
            if entry is None:
                spool.close()
        return entry, spool

    def _read_file(self, path: bytes, parent: int, name: bytes, spool: IO[bytes]) -> Entry | None:
        """One try; *moving* where it changed meanwhile. None: it is no file any more."""
        fd = os.open(name, _FILE, dir_fd=parent)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                return None
            # Two writes within one tick of the kernel's clock bear the same time: begin in a later one.
            while before.st_mtime_ns >= time.clock_gettime_ns(_COARSE) > before.st_mtime_ns - 10**9:
                time.sleep(0.004)
                before = os.fstat(fd)
            digest, size = blake2b(), 0
            while piece := os.read(fd, PIECE_BYTES):
                digest.update(piece)
                spool.write(piece)
                size += len(piece)
                self._spend(len(piece))
                if size > before.st_size:  # it grows: what was there at the beginning is enough to know that
                    break
            after = os.fstat(fd)
            xattrs, _ = read_xattrs(fd)
            moving = _changed(before, after) or size != after.st_size
            return self._entry(
                path, EntryType.FILE, after, digest=digest.digest(), size=size, xattrs=xattrs, moving=moving
            )
        finally:
            os.close(fd)

    def _symlink(self, path: bytes, parent: int, name: bytes, status: os.stat_result) -> Read:
        target = os.readlink(name, dir_fd=parent)
        digest = blake2b()
        digest.update(target)
        xattrs, _ = read_xattrs(named(parent, name))
        entry = self._entry(
            path, EntryType.SYMLINK, status, digest=digest.digest(), size=0, xattrs=xattrs, target=target
        )
        return Read(entry=entry, content=lambda: iter(()))

    def _directory(self, path: bytes, parent: int, name: bytes) -> Read:
        fd = os.open(name, _DIRECTORY, dir_fd=parent) if path else os.dup(parent)
        try:
            xattrs, _ = read_xattrs(fd)
            entry = self._entry(
                path, EntryType.DIRECTORY, os.fstat(fd), digest=blake2b().digest(), size=0, xattrs=xattrs
            )
        finally:
            os.close(fd)
        return Read(entry=entry, content=lambda: iter(()))

    def _entry(
        self,
        path: bytes,
        kind: EntryType,
        status: os.stat_result,
        *,
        digest: bytes,
        size: int,
        xattrs: bytes,
        target: bytes = b"",
        moving: bool = False,
    ) -> Entry:
        found = metadata_of(status, xattrs)
        return Entry(
            dataset=self._dataset,
            path=path,
            type=kind,
            offset=0,
            size=size,
            digest=digest,
            mode=found.mode,
            uid=found.uid,
            gid=found.gid,
            mtime_ns=found.mtime_ns,
            xattrs=found.xattrs,
            target=target,
            moving=moving,
        )

    # ---- folders of messages

    def _enter(self, directory: bytes, fd: int) -> None:
        """Before a directory is listed: the messages of a mailbox's folder are read together."""
        if not self._rules.has_units:
            return
        self._leave()
        for attempt in range(1, TRIES + 1):
            if self._read_folder(directory, fd, last=attempt == TRIES):
                return
            self._leave()
            time.sleep(PAUSE_S * attempt)

    def _read_folder(self, directory: bytes, fd: int, *, last: bool) -> bool:
        messages = [
            name for name in os.listdir(os.fsencode(f"/proc/self/fd/{fd}"))
            if self._rules.mailbox_of(join(directory, name)) is not None
        ]  # fmt: skip
        if not messages:
            return True
        unlocked = _await_unlocked(fd)
        before = os.fstat(fd)
        still = True
        for name in messages:
            try:
                entry, spool = self._spool_file(join(directory, name), fd, name)
            except OSError:
                entry = None
            if entry is None:
                still = False
                continue
            still = still and not entry.moving
            self._spooled[entry.path] = (entry, spool)
        settled = unlocked and still and not _changed(before, os.fstat(fd)) and not _is_locked(fd)
        if not settled and (last or not unlocked):  # a lock that nobody takes away is waited for once
            self._spooled = {
                path: (replace(entry, moving=True), spool) for path, (entry, spool) in self._spooled.items()
            }  # fmt: skip
            return True
        return settled

    def _leave(self) -> None:
        for _, spool in self._spooled.values():
            spool.close()
        self._spooled = {}

    def _new_spool(self) -> IO[bytes]:
        return tempfile.SpooledTemporaryFile(max_size=SPOOL_MEMORY, dir=self._spool_dir)


_COARSE: Final = 5
"""CLOCK_REALTIME_COARSE, by which the kernel stamps files: compared with stamps only."""


def _spooled(entry: Entry, spool: IO[bytes]) -> Read:
    def content() -> Iterator[bytes]:
        spool.seek(0)
        left = entry.size
        while left and (piece := spool.read(min(PIECE_BYTES, left))):
            left -= len(piece)
            yield piece

    return Read(entry=entry, content=content, close=spool.close)


def _changed(before: os.stat_result, after: os.stat_result) -> bool:
    def stamp(status: os.stat_result) -> tuple[int, int, int]:
        return status.st_size, status.st_mtime_ns, status.st_ctime_ns

    return stamp(before) != stamp(after)


def _is_locked(fd: int) -> bool:
    return any(os.fsencode(name).startswith(LOCK) for name in os.listdir(fd))


def _await_unlocked(fd: int) -> bool:
    deadline = time.monotonic() + LOCK_WAIT_S
    while _is_locked(fd):
        if time.monotonic() >= deadline:
            return False
        time.sleep(PAUSE_S)
    return True


Visited = tuple[bytes, int, os.stat_result]
"""A path, a descriptor of the directory that it lies in (of the root: its own), and what stat says of it."""


def _walked(
    root: str, rules: Rules, tally: Tally, enter: Callable[[bytes, int], None] = lambda _path, _fd: None
) -> Iterator[Visited]:
    try:
        fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise OperatorNeeded("cannot read the tree", subject=root, reason=error.strerror or "") from error
    stack: list[tuple[bytes, int, Iterator[bytes]]] = []
    try:
        yield b"", fd, os.fstat(fd)
        enter(b"", fd)
        stack.append((b"", fd, iter(_listed(b"", fd, rules))))
        while stack:
            directory, fd, names = stack[-1]
            for name in names:
                path = join(directory, name)
                status = _status(name, fd)
                if status is None or not _packable(path, status, tally):
                    continue
                yield path, fd, status
                if stat.S_ISDIR(status.st_mode):
                    below = _below(path, name, fd, tally)
                    if below >= 0:
                        enter(path, below)
                        stack.append((path, below, iter(_listed(path, below, rules))))
                        break
            else:
                os.close(fd)
                stack.pop()
    finally:
        for _, fd, _ in stack:
            os.close(fd)


def _listed(directory: bytes, fd: int, rules: Rules) -> list[bytes]:
    left_out = rules.left_out_in(directory)
    return sorted(
        os.fsencode(text)
        for text in os.listdir(fd)
        if not text.startswith(OWN_PREFIX) and (left_out is None or left_out.fullmatch(text) is None)
    )


def _status(name: bytes, fd: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except OSError:
        return None


def _packable(path: bytes, status: os.stat_result, tally: Tally) -> bool:
    if object_type(status.st_mode) == TYPE_SPECIAL:
        tally.special += 1
        return False
    if len(path) >= PATH_MAX_BYTES or path.count(b"/") >= DEPTH_MAX:
        tally.too_long += 1
        return False
    return True


def _below(path: bytes, name: bytes, fd: int, tally: Tally) -> int:
    try:
        return os.open(name, _DIRECTORY, dir_fd=fd)
    except (FileNotFoundError, NotADirectoryError):
        return -1
    except OSError as error:
        tally.unreadable.append(f"{os.fsdecode(path)}: {error.strerror}")
        return -1
