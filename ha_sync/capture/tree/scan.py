"""Walks a tree and finds what differs from the catalogue, by metadata alone, in bounded memory.

The walk is depth first with names sorted bytewise: the catalogue's walk order, so both are merged in one pass. A
directory is watched before it is listed. Symlinks are not followed; FIFOs, sockets and devices are counted, no more.
What cannot be listed is never taken for deleted. Generators yield often (``None`` where there is nothing to say), so
that a caller can spread a scan over time. Blocking; keys are paths with NUL for ``/``.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ha_sync.capture.tree.links import Links
from ha_sync.catalogue.tree import TYPE_DIRECTORY, TYPE_FILE, Signature, TreeCatalogue, key_of, path_of
from ha_sync.errors import HaSyncError
from ha_sync.files.confine import DEPTH_MAX, NAME_MAX_BYTES, PATH_MAX_BYTES, Root
from ha_sync.files.rules import OWN_PREFIX, Rules

STEP = 400
"""Objects between two yields: about 2 ms."""

PAGE = 4000
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Watch = Callable[[bytes, int, int], bool]
"""``watch(directory, fd, inode)``: whether it is watched now."""

Local = tuple[bytes, os.stat_result]
"""A key and what stat says of the object itself."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """What a scan met and left out."""

    skipped_special: int = 0
    unreadable: int = 0
    too_long: int = 0
    unwatched: int = 0
    objects: int = 0
    unreadable_keys: list[bytes] = field(default_factory=list)  # directories whose content is unknown

    def add(self, other: Tally) -> None:
        """Of a scan of some of it."""
        self.skipped_special += other.skipped_special
        self.too_long += other.too_long
        self.unreadable += other.unreadable
        self.unwatched += other.unwatched
        self.objects += other.objects


class Walk:
    """The local side."""

    def __init__(self, root: Root, rules: Rules, watch: Watch | None, links: Links | None = None) -> None:
        self._links = links
        self._root = root
        self._rules = rules
        self._watch = watch
        self.tally = Tally()

    def below(self, path: bytes) -> Iterator[Local]:
        """The object at ``path`` (if it is there) and all below it, in walk order."""
        # A directory that was replaced since it was opened would be scanned, and watched, in its old form.
        self._root.forget()
        try:
            status = self._root.lstat(path)
        except (OSError, HaSyncError):
            return
        if path and self._rules.skips_path(path):
            return
        yield key_of(path), status
        if not stat.S_ISDIR(status.st_mode):
            return
        try:
            fd = os.dup(self._root.directory(path))
        except (OSError, HaSyncError):
            self._unknown(key_of(path))
            return
        yield from self._descend(key_of(path), fd)

    def _descend(self, key: bytes, fd: int) -> Iterator[Local]:
        stack: list[tuple[int, Iterator[Local]]] = [(fd, iter(self._listed(key, fd)))]
        try:
            while stack:
                fd, items = stack[-1]
                for item in items:
                    yield item
                    if stat.S_ISDIR(item[1].st_mode):
                        below = self._open(fd, item[0])
                        if below >= 0:
                            stack.append((below, iter(self._listed(item[0], below))))
                            break
                else:
                    os.close(fd)
                    stack.pop()
        finally:
            for fd, _ in stack:
                os.close(fd)

    def _open(self, parent: int, key: bytes) -> int:
        try:
            return os.open(key.rpartition(b"\0")[2], _DIRECTORY, dir_fd=parent)
        except (FileNotFoundError, NotADirectoryError):
            return -1  # replaced since: its own event or the next scan tells
        except OSError:
            self._unknown(key)
            return -1

    def _unknown(self, key: bytes) -> None:
        self.tally.unreadable += 1
        self.tally.unreadable_keys.append(key)

    def _listed(self, key: bytes, fd: int) -> list[Local]:
        if self._watch is not None and not self._watch(path_of(key), fd, os.fstat(fd).st_ino):
            self.tally.unwatched += 1
        prefix = key + b"\0" if key else b""
        left_out = self._rules.left_out_in(path_of(key))
        found: list[Local] = []
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    name = entry.name
                    if name.startswith(OWN_PREFIX) or (left_out is not None and left_out.fullmatch(name)):
                        continue
                    try:
                        status = entry.stat(follow_symlinks=False)
                    except FileNotFoundError:
                        continue
                    found.append((prefix + name.encode("utf-8", "surrogateescape"), status))
        except OSError:
            self._unknown(key)
            return []
        found.sort(key=_by_key)
        return self._replicated(found)

    def _replicated(self, found: list[Local]) -> list[Local]:
        kept = [item for item in found if (item[1].st_mode & 0o170000) in _KINDS]
        self.tally.skipped_special += len(found) - len(kept)
        if kept and len(kept[0][0]) > _LONG:
            whole = len(kept)
            kept = [item for item in kept if not self._rules.is_too_long(path_of(item[0]))]
            self.tally.too_long += whole - len(kept)
        self.tally.objects += len(kept)
        if self._links is not None:
            for key, status in kept:
                if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
                    self._links.stands(path_of(key), status)
        return kept


_LONG = PATH_MAX_BYTES - NAME_MAX_BYTES - 1 - DEPTH_MAX
_KINDS = frozenset({stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK})


def _by_key(item: Local) -> bytes:
    return item[0]


def signatures(catalogue: TreeCatalogue, below: bytes) -> Iterator[Signature]:
    """The catalogue's side, page by page; entries may be written between two pages."""
    after = b""
    while page := catalogue.signatures(after=after, below=below, limit=PAGE):
        yield from page
        if len(page) < PAGE:
            return
        after = page[-1][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Differs:
    """Paths to look at more closely."""

    changed: tuple[bytes, ...] = ()  # new, or not as the catalogue says
    missing: tuple[bytes, ...] = ()  # known and gone: the topmost path of each gone subtree
    missing_files: int = 0  # files that ``missing`` stands for
    appeared: tuple[tuple[bytes, int], ...] = ()  # of ``changed`` what is new, with its inode
    linked: bool = False  # one of ``changed`` is a file with other names


def differences(
    catalogue: TreeCatalogue, walk: Walk, path: bytes, flies: Callable[[bytes], bool], *, inodes: bool = True
) -> Iterator[Differs | None]:
    """What differs at and below ``path``, in portions.

    What ``flies`` is on its way to something else than the catalogue says: it is looked at whatever it looks like.
    Where ``inodes`` do not last from mount to mount (FAT) a file is known by its size and time.
    """
    merge = _Merge(signatures(catalogue, key_of(path)), walk.tally, flies, inodes=inodes)
    steps = 0
    for key, status in walk.below(path):
        merge.local(key, status)
        steps += 1
        if steps >= STEP:
            steps = 0
            yield merge.take()
    merge.rest()
    yield merge.take()


class _Merge:
    def __init__(
        self, rows: Iterator[Signature], tally: Tally, flies: Callable[[bytes], bool], *, inodes: bool
    ) -> None:
        self._flies = flies
        self._inodes = inodes
        self._rows = rows
        self._row = next(rows, None)
        self._tally = tally
        self._changed: list[bytes] = []
        self._appeared: list[tuple[bytes, int]] = []
        self._missing: list[bytes] = []
        self._missing_files = 0
        self._linked = False
        self._gone = b""  # prefix of the subtree that is known to be missing

    def local(self, key: bytes, status: os.stat_result) -> None:
        row = self._row
        while row is not None and row[0] < key:
            self._lost(row)
            row = next(self._rows, None)
        if row is None or row[0] != key:
            self._row = row
            self._appeared.append((path_of(key), status.st_ino))
            self._differs(path_of(key), status)
            return
        self._row = next(self._rows, None)
        if not (self._is_witnessed(row, status) and _same_size(row, status)):
            # Of a directory too: its attributes and ACL may have changed. The reader sends what differs, often nothing.
            self._differs(path_of(key), status)
        elif self._flies(path := path_of(key)):
            self._differs(path, status)

    def _differs(self, path: bytes, status: os.stat_result) -> None:
        self._changed.append(path)
        self._linked |= status.st_nlink > 1 and stat.S_ISREG(status.st_mode)

    def _is_witnessed(self, row: Signature, status: os.stat_result) -> bool:
        if self._inodes:
            return row[8] == status.st_ctime_ns and row[7] == status.st_ino
        # A time of zero: it was read too soon after a change.
        return bool(row[8]) and row[5] == status.st_mtime_ns

    def rest(self) -> None:
        while self._row is not None:
            self._lost(self._row)
            self._row = next(self._rows, None)

    def _lost(self, row: Signature) -> None:
        key = row[0]
        if any(not k or key.startswith(k + b"\0") for k in self._tally.unreadable_keys):
            return
        if row[1] == TYPE_FILE:
            self._missing_files += 1
        if self._gone and key.startswith(self._gone):
            return
        self._gone = key + b"\0"
        self._missing.append(path_of(key))

    def take(self) -> Differs | None:
        if not self._changed and not self._missing:
            return None
        found = Differs(
            changed=tuple(self._changed),
            missing=tuple(self._missing),
            missing_files=self._missing_files,
            appeared=tuple(self._appeared),
            linked=self._linked,
        )
        self._changed, self._missing, self._missing_files, self._appeared = [], [], 0, []
        self._linked = False
        return found


def _same_size(row: Signature, status: os.stat_result) -> bool:
    """Whether the size is as the catalogue says; a directory's says nothing."""
    return row[1] == TYPE_DIRECTORY or row[6] == status.st_size


class Scan:
    """A scan that is going on, or will."""

    def __init__(self, path: bytes, *, noticed: float, slow: bool = False) -> None:
        self.path = path
        self.noticed = noticed
        self.slow = slow
        self.steps: Iterator[None] | None = None
        self.not_before = 0.0


class Scans:
    """Those that wait, the first of which goes on. A scan of a directory stands for those of all below it."""

    def __init__(self) -> None:
        self._waiting: deque[Scan] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first(self) -> Scan | None:
        """The one that goes on."""
        return self._waiting[0] if self._waiting else None

    @property
    def urgent(self) -> bool:
        """Whether there is one that somebody may wait for."""
        return any(not scan.slow for scan in self._waiting)

    def anew(self) -> None:
        """The whole tree, and nothing else."""
        self._waiting = deque([Scan(b"", noticed=0.0)])

    def add(self, path: bytes, *, noticed: float, slow: bool = False, started: bool = True) -> None:
        """``started``: the whole tree was scanned once."""
        below = path + b"/" if path else b""
        fresh = [scan for scan in self._waiting if scan.steps is None]
        if any(scan.path == path or not scan.path for scan in fresh if not scan.slow):
            return
        covered = {id(scan) for scan in fresh if scan.path.startswith(below)}
        self._waiting = deque(scan for scan in self._waiting if id(scan) not in covered)
        scan = Scan(path, noticed=noticed, slow=slow)
        first = self.first
        # A new directory must not wait for a slow reconcile.
        if not slow and first is not None and (first.slow or not first.noticed) and started:
            self._waiting.appendleft(scan)
        else:
            self._waiting.append(scan)

    def over(self, scan: Scan) -> None:
        """That one is done."""
        with contextlib.suppress(ValueError):
            self._waiting.remove(scan)
