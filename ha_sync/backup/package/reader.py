"""Reads a package and believes nothing: every size, name and hash is checked before it is used, see ``format``.

``Package`` raises ``Refused`` for whatever is not as it was written, and for what no correct program writes: names that
lead outside, a name twice, a name below something that is no directory, another kind of object, more content than the
manifest says. Memory is bounded, whatever the package claims. Not thread-safe. Blocking.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import zstandard

from ha_sync.backup.package.format import (
    BLOCK,
    DIGEST_BYTES,
    GAP_MAX,
    PIECE_BYTES,
    TRAILER_BYTES,
    WINDOW_BYTES_MAX,
    Entry,
    EntryType,
    Head,
    Trailer,
    blake2b,
    damaged,
    parse_entry,
    parse_head,
    read_trailer,
    split_lines,
)
from ha_sync.errors import HaSyncError, OperatorNeeded, ProtocolFault, Refused
from ha_sync.files.confine import PATH_MAX_BYTES, components, split
from ha_sync.files.metadata import decode_xattrs, is_replicated
from ha_sync.files.places import is_ours

MODE_MAX: Final = 0o7777
OWNER_MAX: Final = 2**32 - 2

Spend = Callable[[int], None]
"""Called with the number of bytes that were read: progress, and whoever wants to stop raises here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a package holds, all of it read and found as it was written."""

    head: Head
    entries: int
    content_bytes: int
    moving: tuple[str, ...]  # the first of those that did not hold still when they were read
    package_bytes: int


MOVING_NAMED: Final = 100


class Package:
    """One open file. ``with Package(path) as package``."""

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise OperatorNeeded("cannot read the package", subject=path, reason=error.strerror or "") from error
        try:
            self._size = os.fstat(self._fd).st_size
            self.trailer = self._read_trailer()
            self.head = self._read_head()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    @property
    def size(self) -> int:
        """Of the file."""
        return self._size

    def _read_trailer(self) -> Trailer:
        if self._size < TRAILER_BYTES:
            raise damaged("it is too short to be one")
        trailer = read_trailer(os.pread(self._fd, TRAILER_BYTES, self._size - TRAILER_BYTES))
        inside = trailer.manifest_offset + trailer.manifest_size <= trailer.manifest_decoded
        if trailer.whole != self._size or not 0 < trailer.manifest_at < self._size - TRAILER_BYTES or not inside:
            raise damaged("its end does not belong to it: it was cut or put together")
        return trailer

    def _read_head(self) -> Head:
        for line in self._lines():
            return parse_head(line)
        raise damaged("its manifest is empty")

    # ---- the whole

    def require_whole(self, spend: Spend) -> None:
        """The hash over the whole file: nothing is decoded for it."""
        found = blake2b()
        left = self._size - DIGEST_BYTES
        at = 0
        while at < left:
            piece = os.pread(self._fd, min(PIECE_BYTES, left - at), at)
            if not piece:
                raise damaged("it became shorter while it was read")
            found.update(piece)
            at += len(piece)
            spend(len(piece))
        if found.digest() != self.trailer.digest:
            raise damaged("its hash is wrong: it is damaged")

    def verify(self, spend: Spend) -> Verified:
        """Reads all, checks everything."""
        self.require_whole(spend)
        moving: list[str] = []
        for entry, content in self.contents():
            for piece in content:
                spend(len(piece))
            if entry.moving and len(moving) < MOVING_NAMED:
                moving.append(f"{entry.dataset}/{os.fsdecode(entry.path)}".rstrip("/"))
        head = self.head
        return Verified(
            head=head,
            entries=head.entries,
            content_bytes=head.content_bytes,
            moving=tuple(moving),
            package_bytes=self._size,
        )

    # ---- the manifest

    def entries(self) -> Iterator[Entry]:
        """All entries, each checked, in their order."""
        judge = _Judge(self.head, self.trailer)
        lines = self._lines()
        next(lines)
        ended = False
        for line in lines:
            found = parse_entry(line)
            if ended:
                raise damaged("its manifest goes on after its end")
            if isinstance(found, int):
                judge.end(found)
                ended = True
            else:
                judge.take(found)
                yield found
        if not ended:
            raise damaged("its manifest has no end")

    def _lines(self) -> Iterator[bytes]:
        trailer = self.trailer
        source = _Part(self._fd, trailer.manifest_at, self._size - TRAILER_BYTES)
        with _decoding(source, trailer.manifest_decoded) as stream:
            stream.skip(trailer.manifest_offset)
            yield from split_lines(stream.pieces(trailer.manifest_size))
            stream.skip(trailer.manifest_decoded - trailer.manifest_offset - trailer.manifest_size)
            stream.require_end()

    # ---- the content

    def contents(self) -> Iterator[tuple[Entry, Iterator[bytes]]]:
        """Each entry with its content, which is checked against its hash at its end; what is not taken is skipped."""
        trailer = self.trailer
        with _decoding(_Part(self._fd, 0, trailer.manifest_at), trailer.content_decoded) as stream:
            for entry in self.entries():
                if entry.type in {EntryType.FILE, EntryType.DATABASE}:
                    stream.skip(entry.offset - stream.at)
                    content = _hashed(entry, stream)
                    yield entry, content
                    for _ in content:
                        pass
                else:
                    yield entry, iter(())
            rest = trailer.content_decoded - stream.at
            if rest > GAP_MAX:
                raise damaged("it holds content that its manifest does not name")
            stream.skip(rest)
            stream.require_end()


def _hashed(entry: Entry, stream: _Decoded) -> Iterator[bytes]:
    found = blake2b()
    for piece in stream.pieces(entry.size):
        found.update(piece)
        yield piece
    if found.digest() != entry.digest:
        raise damaged(f"the hash of {entry.dataset}/{os.fsdecode(entry.path)} is wrong")


class _Judge:
    """Takes the entries in order; raises Refused for what no correct program writes."""

    def __init__(self, head: Head, trailer: Trailer) -> None:
        self._head = head
        self._trailer = trailer
        self._order = {one.name: number for number, one in enumerate(head.datasets)}
        self._place: tuple[int, bytes] = (-1, b"")
        self._open: list[bytes] = []  # the directories that the last entry lies in
        self._end = 0
        self._count = self._bytes = self._moving = 0
        self._seen: set[int] = set()

    def take(self, entry: Entry) -> None:
        """The next one."""
        number = self._order.get(entry.dataset)
        if number is None:
            raise _hostile(entry, "its dataset is not in the head")
        place = (number, entry.path.replace(b"/", b"\0"))
        if place <= self._place and self._count:
            raise _hostile(entry, "it stands twice, or out of order")
        kind = self._head.datasets[number].kind
        if kind == "sqlite":
            self._database(entry, number)
        elif kind == "tree":
            self._object(entry, number)
        else:
            raise _hostile(entry, f"a dataset of kind {kind!r}")
        self._numbers(entry)
        self._place = place
        self._seen.add(number)
        self._count += 1
        self._bytes += entry.size
        self._moving += entry.moving

    def end(self, count: int) -> None:
        """After the last one."""
        head = self._head
        if (count, head.entries) != (self._count, self._count):
            raise damaged(f"its manifest speaks of {head.entries} entries and has {self._count}")
        if (head.content_bytes, head.moving) != (self._bytes, self._moving):
            raise damaged("the sums of its manifest are wrong")
        for number, one in enumerate(head.datasets):
            if one.present != (number in self._seen):
                raise damaged(f"the content of dataset {one.name!r} is missing or not announced")

    def _database(self, entry: Entry, number: int) -> None:
        if entry.type is not EntryType.DATABASE or entry.path or number in self._seen:
            raise _hostile(entry, "a database is one file")

    def _object(self, entry: Entry, number: int) -> None:
        if number not in self._seen:
            if entry.path or entry.type is not EntryType.DIRECTORY:
                raise _hostile(entry, "the root comes first")
            self._open = [b""]
            return
        try:
            components(entry.path)
        except ProtocolFault as fault:
            raise _hostile(entry, "a path that leads outside or is too long") from fault
        if entry.type is EntryType.DATABASE or is_ours(entry.path):
            raise _hostile(entry, "no such object belongs to a tree")
        parent, _ = split(entry.path)
        while self._open[-1] != parent:
            self._open.pop()
            if not self._open:
                raise _hostile(entry, "what it lies in is no directory")
        if entry.type is EntryType.DIRECTORY:
            self._open.append(entry.path)

    def _numbers(self, entry: Entry) -> None:
        if entry.mode > MODE_MAX or entry.uid > OWNER_MAX or entry.gid > OWNER_MAX:
            raise _hostile(entry, "a mode or owner that cannot be")
        if len(entry.digest) != DIGEST_BYTES:
            raise _hostile(entry, "a hash that is none")
        try:
            fine = all(is_replicated(name) for name, _ in decode_xattrs(entry.xattrs))
        except HaSyncError as fault:
            raise _hostile(entry, "attributes that cannot be read") from fault
        if not fine:
            raise _hostile(entry, "attributes that belong to the node")
        if (entry.type is EntryType.SYMLINK) != bool(entry.target):
            raise _hostile(entry, "a target without a symlink, or the reverse")
        if entry.size and entry.type not in {EntryType.FILE, EntryType.DATABASE}:
            raise _hostile(entry, "content of what has none")
        gap = entry.offset - self._end
        if not BLOCK <= gap <= GAP_MAX or entry.offset + entry.size > self._trailer.content_decoded:
            raise _hostile(entry, "its content is not where it says")
        self._end = entry.offset + entry.size
        if entry.type is EntryType.SYMLINK:
            self._target(entry)

    @staticmethod
    def _target(entry: Entry) -> None:
        found = blake2b()
        found.update(entry.target)
        if found.digest() != entry.digest:
            raise _hostile(entry, "the hash of its target is wrong")
        if len(entry.target) >= PATH_MAX_BYTES or b"\0" in entry.target:
            raise _hostile(entry, "a target that cannot be")


def _hostile(entry: Entry, reason: str) -> Refused:
    return Refused(
        "refused the package",
        subject=repr(f"{entry.dataset}/{os.fsdecode(entry.path[:200])}"),
        reason=reason,
        hint="no program of ours wrote this; nothing was touched",
    )


class _Part(io.RawIOBase):
    """A stretch of the file."""

    def __init__(self, fd: int, begin: int, end: int) -> None:
        super().__init__()
        self._fd, self._at, self._end = fd, begin, end

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        left = self._end - self._at
        wanted = left if size < 0 else min(size, left)
        data = os.pread(self._fd, min(wanted, PIECE_BYTES), self._at) if wanted > 0 else b""
        self._at += len(data)
        return data


class _Decoded:
    """A zstd frame that is being decoded, up to ``limit`` bytes."""

    def __init__(self, stream: zstandard.ZstdDecompressionReader, limit: int) -> None:
        self._stream = stream
        self._limit = limit
        self.at = 0

    def pieces(self, size: int) -> Iterator[bytes]:
        """The next ``size`` bytes."""
        if size < 0 or self.at + size > self._limit:
            raise damaged("more content than it announces")
        left = size
        while left:
            try:
                piece = self._stream.read(min(left, PIECE_BYTES))
            except zstandard.ZstdError as error:
                raise damaged(f"it cannot be decoded: {error}") from error
            if not piece:
                raise damaged("it ends within its content")
            left -= len(piece)
            self.at += len(piece)
            yield piece

    def skip(self, size: int) -> None:
        """Over the next ``size`` bytes."""
        for _ in self.pieces(size):
            pass

    def require_end(self) -> None:
        """Nothing comes any more."""
        try:
            more = self._stream.read(1)
        except zstandard.ZstdError as error:
            raise damaged(f"it cannot be decoded: {error}") from error
        if more:
            raise damaged("more content than it announces")


@contextmanager
def _decoding(source: _Part, limit: int) -> Iterator[_Decoded]:
    decoder = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
    with decoder.stream_reader(source, read_size=PIECE_BYTES, closefd=False) as stream:  # type: ignore[arg-type]
        yield _Decoded(stream, limit)
