"""What stands below a tree's root on this node now, in walk order, with the hash of what is on disk.

Only the disk is asked, never the catalogue. A walk goes on where it was left, so that one range after the other costs
one listing of each directory. Held files are told under their own paths. Content that was not in the page cache is
dropped from it again: a nightly look at every recording must not push out what the PBX reads. Memory: the names of the
directories that lead to the present one. Sizes in bytes. Blocking and not thread-safe: one thread. Nothing outside of
the root is opened.
"""

from __future__ import annotations

import contextlib
import os
import stat
from bisect import bisect_left
from collections.abc import Iterable, Iterator

import xxhash

from ha_sync.catalogue.tree import TYPE_DIRECTORY, TYPE_FILE, TYPE_SYMLINK, key_of, path_of
from ha_sync.config import TreeSettings
from ha_sync.core.compare import RANGE_BYTES, RANGE_OBJECTS, Seen, digest_of, file_head, record_of
from ha_sync.core.representation import EVERYTHING, told
from ha_sync.errors import HaSyncError
from ha_sync.files.blocks import BLOCK_MIN, block_size_for, whole_hash
from ha_sync.files.confine import DEPTH_MAX, Root, split
from ha_sync.files.metadata import named, read_xattrs
from ha_sync.files.places import HELD, HIDDEN, Scope, join
from ha_sync.files.rules import Names, Rules

BUFFER_BYTES = 1024 * 1024
CACHE_ASKED = 2
"""A page that somebody else holds for a moment looks like one that is not in the cache."""


Local = tuple[bytes, os.stat_result]
"""A key and what stat says of the object itself."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_TYPES = {stat.S_IFREG: TYPE_FILE, stat.S_IFDIR: TYPE_DIRECTORY, stat.S_IFLNK: TYPE_SYMLINK}
_FORMAT = 0o170000
_REGULAR = stat.S_IFREG
_PERMISSIONS = 0o7777
NO_BOUND = 1 << 62
_LONG = 2 * DEPTH_MAX
"""A shorter key is neither too long nor too deep."""


class TreeLook:
    """Held open for a run. Raises FileNotFoundError where there is no root."""

    def __init__(self, settings: TreeSettings, *, standby: bool) -> None:
        self._root = Root(settings.path)
        self._rules = Rules(settings.exclude + settings.node_local, mailboxes=settings.mailboxes)
        scope = Scope.of(settings)
        self._held = scope if standby and scope.held_patterns else None
        self._levels: list[_Level] = []
        self._at: bytes | None = None  # everything up to here was given
        self._begun = False
        self._root_is_due = False
        self._reader = _Reader()
        self.holding = EVERYTHING  # objects are told as far as both nodes' filesystems can hold them
        self.unreadable: set[bytes] = set()  # keys of directories whose content is unknown

    def close(self) -> None:
        """Releases every descriptor."""
        self._leave()
        self._root.close()

    # ---- ranges

    def cut(
        self, after: bytes | None, *, objects: int = RANGE_OBJECTS, content_bytes: int = RANGE_BYTES
    ) -> list[Local]:
        """The next range after a key (None: from the root on), at most so large; empty at the end."""
        self._seek(after)
        found = self._gather(b"", objects, content_bytes)
        if found:
            self._at = found[-1][0]
        return found

    def between(self, after: bytes | None, until: bytes) -> Iterator[Local]:
        """The range that the other node cut; ``until`` is included, empty: to the end."""
        self._seek(after)
        while found := self._gather(until, RANGE_OBJECTS, NO_BOUND):
            yield from found
            # Only now: a caller that stops in the middle begins anew.
            self._at = found[-1][0]
        self._at = until

    def at(self, paths: Iterable[bytes]) -> Iterator[Local]:
        """Those of the paths that are there and replicated, in walk order."""
        self._root.forget()
        for path in sorted(set(paths), key=key_of):
            if path and (path.startswith(HIDDEN) or self._rules.skips_path(path)):
                continue
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, HaSyncError):
                status = self._root.lstat(self._place(path))
                if status.st_mode & _FORMAT in _TYPES:
                    yield key_of(path), status

    def _seek(self, after: bytes | None) -> None:
        if self._begun and self._at == after and after is not None:
            return
        self._leave()
        self._begun, self._at = True, None  # until something is given, nothing goes on from here
        self._begin(after)

    def _leave(self) -> None:
        for level in self._levels:
            level.close()
        self._levels = []
        self._begun = self._root_is_due = False
        self._root.forget()

    # ---- walking

    def _begin(self, after: bytes | None) -> None:
        self._root_is_due = after is None
        levels = self._levels
        level: _Level | None = self._level(b"", os.dup(self._root.fd))
        for part in after.split(b"\0") if after else ():
            if level is None:
                return
            levels.append(level)
            level.index = bisect_left(level.names, part)
            if level.index == len(level.names) or level.names[level.index] != part:
                return
            level.index += 1
            level = self._below(level, level.prefix + part)
        if level is not None:
            levels.append(level)

    def _gather(self, until: bytes, objects: int, content_bytes: int) -> list[Local]:
        """Goes on for so long: a loop without calls, since it runs a million times."""
        found: list[Local] = []
        if self._root_is_due:
            self._root_is_due = False
            found.append((b"", os.fstat(self._root.fd)))
        levels, plain, stat_of = self._levels, self._held is None, os.stat
        while levels:
            level = levels[-1]
            names, prefix, fd, index = level.names, level.prefix, level.fd, level.index
            below: _Level | None = None
            for name in names[index:] if index else names:
                key = prefix + name
                if (until and key > until) or len(found) >= objects or content_bytes <= 0:
                    level.index = index
                    return found
                index += 1
                try:
                    status = stat_of(name, dir_fd=fd, follow_symlinks=False) if plain else self._stat_of_held(key)
                except (FileNotFoundError, NotADirectoryError, HaSyncError):
                    continue
                kind = status.st_mode & _FORMAT
                if len(key) > _LONG and self._rules.is_too_long(path_of(key)):
                    continue
                if kind == _REGULAR:
                    found.append((key, status))
                    content_bytes -= status.st_size
                elif kind in _TYPES:
                    found.append((key, status))
                    if kind == stat.S_IFDIR and (below := self._below(level, key)) is not None:
                        break
            level.index = index
            if below is not None:
                levels.append(below)
            else:
                levels.pop().close()
        return found

    def _stat_of_held(self, key: bytes) -> os.stat_result:
        return self._root.lstat(self._place(path_of(key)))

    def _below(self, level: _Level, key: bytes) -> _Level | None:
        try:
            if self._held is not None:
                return self._level(key, -1)
            return self._level(key, os.open(key.rpartition(b"\0")[2], _DIRECTORY, dir_fd=level.fd))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError:
            self.unreadable.add(key)
            return None

    def _level(self, key: bytes, fd: int) -> _Level:
        path = path_of(key)
        try:
            names = self._listed(fd) if self._held is None else self._listed_with_held(path)
        except BaseException:
            if fd >= 0:
                os.close(fd)
            raise
        left_out = self._rules.left_out_in(path)
        kept = [name for name in names if not name.startswith(HIDDEN) and not _is_left_out(name, left_out)]
        kept.sort()
        return _Level(fd, key + b"\0" if key else b"", kept)

    @staticmethod
    def _listed(fd: int) -> list[bytes]:
        return os.listdir(b"/proc/self/fd/%d" % fd)  # by a path of bytes the names are bytes

    def _listed_with_held(self, path: bytes) -> set[bytes]:
        assert self._held is not None
        places = [self._held.place(path)]
        if not self._held.is_held(path):
            places.append(join(HELD, path) if path else HELD)
        names: set[bytes] = set()
        for place in places:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError, HaSyncError):
                names.update(self._listed(self._root.directory(place)))
        return names

    def _place(self, path: bytes) -> bytes:
        return path if self._held is None else self._held.place(path)

    # ---- looking closer

    def digest(self, items: Iterable[Local], *, content: bool) -> bytes:
        """``digest_of`` what ``see`` gives; spares an object and some calls for each file."""
        if not self.holding.complete or self._held is not None:
            return digest_of(self.see(items, content=content))
        parts: list[bytes] = []
        at, directory = b"\0", -1  # no directory has this key
        for item in items:
            key, status = item
            if status.st_mode & _FORMAT != _REGULAR:
                at = b"\0"  # the descriptor may be closed by what follows
                parts += map(record_of, self.see((item,), content=content))
            elif not content:
                parts += (file_head(key, TYPE_FILE, status, status.st_size, b"", content=False), key)
            else:
                parent, _, name = key.rpartition(b"\0")
                try:
                    if parent != at:
                        at, directory = parent, self._root.directory(path_of(parent))
                    size, digest, xattrs = self._reader.read(name, directory, status.st_size)
                except (OSError, HaSyncError):
                    at = b"\0"
                    parts += map(record_of, self.see((item,), content=True))  # says what it is: gone, or unreadable
                    continue
                parts += (file_head(key, TYPE_FILE, status, size, xattrs, content=True), key, digest, xattrs)
        return xxhash.xxh3_128_digest(b"".join(parts))

    def see(self, items: Iterable[Local], *, content: bool) -> Iterator[Seen]:
        """Each object, with its content where asked for; what went meanwhile is left out."""
        seen = self._see(items, content=content)
        return seen if self.holding.complete else (told(each, self.holding) for each in seen)

    def _see(self, items: Iterable[Local], *, content: bool) -> Iterator[Seen]:
        at, fd = b"\0", -1  # no directory has this key
        for key, status in items:
            mode = status.st_mode
            kind = mode & _FORMAT
            try:
                if kind == stat.S_IFREG:
                    if not content:
                        yield Seen(
                            key, TYPE_FILE, mode & _PERMISSIONS, status.st_uid, status.st_gid, status.st_mtime_ns,
                            status.st_size,
                        )  # fmt: skip
                        continue
                    parent, _, name = key.rpartition(b"\0")
                    if self._held is not None:
                        yield self._file(key, status, *self._held_place(key))
                        continue
                    if parent != at:
                        at, fd = parent, self._root.directory(path_of(parent))
                    yield self._file(key, status, name, fd)
                else:
                    at = b"\0"  # the descriptor may be closed by what follows
                    yield self._other(key, status, kind, content=content)
            except (FileNotFoundError, NotADirectoryError, HaSyncError):
                at = b"\0"
            except OSError:
                at = b"\0"
                yield Seen(key, _TYPES[kind], unreadable=True)

    def _held_place(self, key: bytes) -> tuple[bytes, int]:
        directory, name = split(self._place(path_of(key)))
        return name, self._root.directory(directory)

    def _file(self, key: bytes, status: os.stat_result, name: bytes, directory: int) -> Seen:
        size, digest, xattrs = self._reader.read(name, directory, status.st_size)
        return Seen(
            key, TYPE_FILE, status.st_mode & _PERMISSIONS, status.st_uid, status.st_gid, status.st_mtime_ns, size,
            digest, b"", xattrs,
        )  # fmt: skip

    def _other(self, key: bytes, status: os.stat_result, kind: int, *, content: bool) -> Seen:
        place = self._place(path_of(key))
        mode, xattrs, link = status.st_mode & _PERMISSIONS, b"", b""
        mtime_ns = status.st_mtime_ns if key else 0  # our own hidden directories move the root's time
        if kind == stat.S_IFDIR:
            if content:
                xattrs = read_xattrs(self._root.directory(place))[0]
        else:
            mode, link = 0, self._root.readlink(place)
            if content:
                directory, name = split(place)
                xattrs = read_xattrs(named(self._root.directory(directory), name))[0]
        return Seen(key, _TYPES[kind], mode, status.st_uid, status.st_gid, mtime_ns, 0, b"", link, xattrs)

    def content_in_blocks(self, path: bytes, block_size: int) -> tuple[os.stat_result, bytes]:
        """A file's stat and its hash when cut in these blocks. Raises OSError, or HaSyncError for a symlink."""
        fd = self._root.open(self._place(path), _FILE)
        try:
            status = os.fstat(fd)
            return status, self._reader.hashed(fd, status.st_size, block_size)[1]
        finally:
            os.close(fd)


class _Level:
    """A directory of the walk."""

    __slots__ = ("fd", "index", "names", "prefix")

    def __init__(self, fd: int, prefix: bytes, names: list[bytes]) -> None:
        self.fd = fd
        self.prefix = prefix
        self.names = names
        self.index = 0

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)


class _Reader:
    """Reads into one buffer, again and again."""

    def __init__(self) -> None:
        self._buffer = memoryview(bytearray(BUFFER_BYTES))
        self._asks_cache = hasattr(os, "RWF_NOWAIT")
        # A look at every file each night must not write every inode each night.
        self._flags = _FILE | os.O_NOATIME

    def read(self, name: bytes, directory: int, size: int) -> tuple[int, bytes, bytes]:
        """A file's size, hash and attributes. The usual one is small and in the cache: four system calls, no detour."""
        try:
            fd = os.open(name, self._flags, dir_fd=directory)
        except PermissionError:
            self._flags = _FILE  # not ours: the time of access cannot be left alone
            fd = os.open(name, _FILE, dir_fd=directory)
        try:
            got = -1
            if size < BLOCK_MIN and self._asks_cache:
                buffer = self._buffer
                with contextlib.suppress(OSError):
                    # One more byte than there should be: a full read is then a whole one.
                    got = os.preadv(fd, [buffer[: size + 1]], 0, os.RWF_NOWAIT)
            if got == size:
                block = xxhash.xxh3_128_digest(buffer[:size]) if size else b""
                digest = xxhash.xxh3_128_digest(block + size.to_bytes(8, "little"))
            else:
                size, digest = self.hashed(fd, size)
            xattrs = read_xattrs(fd)[0]
        finally:
            os.close(fd)
        return size, digest, xattrs

    def hashed(self, fd: int, size: int, block_size: int | None = None) -> tuple[int, bytes]:
        """How much was read, and the whole hash (``files.blocks``) of it."""
        step = block_size or block_size_for(size)
        buffer = self._buffer
        if size < step <= BUFFER_BYTES:
            # One more byte than there should be: a full read is then a whole one.
            got, cold = self._read(fd, buffer[: size + 1], 0, enough=size)
            if got <= size:
                if cold:
                    self._drop(fd)
                return got, whole_hash(xxhash.xxh3_128_digest(buffer[:got]) if got else b"", got)
        return self._blocks(fd, step)

    def _blocks(self, fd: int, step: int) -> tuple[int, bytes]:
        hashes: list[bytes] = []
        offset = 0
        cold = False
        while True:
            hasher = xxhash.xxh3_128()
            inside = 0
            while inside < step:
                wanted = min(BUFFER_BYTES, step - inside)
                got, missed = self._read(fd, self._buffer[:wanted], offset + inside, enough=wanted)
                cold = cold or missed
                if not got:
                    break
                hasher.update(self._buffer[:got])
                inside += got
            if inside:
                hashes.append(hasher.digest())
                offset += inside
            if inside < step:
                break
        if cold:
            self._drop(fd)
        return offset, whole_hash(b"".join(hashes), offset)

    def _read(self, fd: int, target: memoryview, offset: int, *, enough: int) -> tuple[int, bool]:
        """Bytes read, and whether the disk had to be asked."""
        got = 0
        for _ in range(CACHE_ASKED if self._asks_cache else 0):
            try:
                got = os.preadv(fd, [target], offset, os.RWF_NOWAIT)
            except BlockingIOError:
                got = 0
            except OSError:
                self._asks_cache = False  # this filesystem does not tell
            if got >= enough:
                break
        missed = False
        while got < enough and (more := os.preadv(fd, [target[got:]], offset + got)):
            missed = self._asks_cache
            got += more
        return got, missed

    @staticmethod
    def _drop(fd: int) -> None:
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _is_left_out(name: bytes, left_out: Names) -> bool:
    return left_out is not None and left_out.fullmatch(os.fsdecode(name)) is not None
