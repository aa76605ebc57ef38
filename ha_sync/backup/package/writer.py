"""Writes a package to a stream that need not seek (a file, a pipe): see ``format``.

One pass: contents go out as they come, their hashes are kept in the manifest, which waits in a temporary file and goes
out last. Bounded memory. Not thread-safe. Blocking.
"""

from __future__ import annotations

import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from types import TracebackType
from typing import IO, Final, Protocol, Self

import zstandard

from ha_sync.backup.package.format import (
    BLOCK,
    DATA_PREFIX,
    HEAD_NAME,
    MANIFEST_NAME,
    PIECE_BYTES,
    TRAILER_BYTES,
    Described,
    Entry,
    EntryType,
    Head,
    Trailer,
    blake2b,
    end_line,
    entry_line,
    head_line,
    text_of,
)

LEVEL: Final = 3
_TYPES: Final = {
    EntryType.DIRECTORY: tarfile.DIRTYPE,
    EntryType.FILE: tarfile.REGTYPE,
    EntryType.SYMLINK: tarfile.SYMTYPE,
    EntryType.DATABASE: tarfile.REGTYPE,
}


class Out(Protocol):
    """Where the bytes go."""

    def write(self, data: bytes, /) -> object:
        """All of them."""


class _Sink:
    """Counts and hashes what goes out."""

    def __init__(self, out: Out) -> None:
        self._out = out
        self.count = 0
        self.hash = blake2b()

    def write(self, data: bytes) -> int:
        self._out.write(data)
        self.hash.update(data)
        self.count += len(data)
        return len(data)


class PackageWriter:
    """``with PackageWriter(...) as writer: writer.add(...); ...; writer.finish(...)``."""

    def __init__(self, out: Out, head: Head, *, spool_dir: str) -> None:
        self._sink = _Sink(out)
        self._compressor = zstandard.ZstdCompressor(level=LEVEL)
        self._frame = self._new_frame()
        self._decoded = 0
        self._lines: IO[bytes] = tempfile.TemporaryFile(dir=spool_dir)  # noqa: SIM115 - closed in __exit__
        self.entries = 0
        self.content_bytes = 0
        self.moving = 0
        first = head_line(head)
        info = tarfile.TarInfo(HEAD_NAME)
        info.size = len(first)
        self._put(info, [first])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._lines.close()

    @property
    def written(self) -> int:
        """Bytes that went out."""
        return self._sink.count

    def add(self, entry: Entry, content: Iterable[bytes]) -> None:
        """``content`` has ``entry.size`` bytes whose BLAKE2b is ``entry.digest``; where it begins is filled in here."""
        name = f"{DATA_PREFIX}{entry.dataset}"
        if entry.type is EntryType.DATABASE:
            name += "/database.sqlite3"
        elif entry.path:
            name += f"/{text_of(entry.path)}"
        info = tarfile.TarInfo(name)
        info.type = _TYPES[entry.type]
        info.size, info.mode, info.uid, info.gid = entry.size, entry.mode, entry.uid, entry.gid
        info.mtime = max(0, entry.mtime_ns // 1_000_000_000)
        info.linkname = text_of(entry.target)
        begins = self._put(info, content)
        self._lines.write(entry_line(replace(entry, offset=begins)))
        self.entries += 1
        self.content_bytes += entry.size
        self.moving += entry.moving

    def finish(self, head: Head, datasets: tuple[Described, ...]) -> Trailer:
        """The manifest and the end. ``datasets`` with what became known while they were read."""
        self._frame.flush(zstandard.FLUSH_FRAME)
        manifest_at, content_decoded = self._sink.count, self._decoded
        self._frame, self._decoded = self._new_frame(), 0
        full = replace(
            head,
            datasets=datasets,
            entries=self.entries,
            content_bytes=self.content_bytes,
            moving=self.moving,
        )
        first, last = head_line(full), end_line(self.entries)
        info = tarfile.TarInfo(MANIFEST_NAME)
        info.size = len(first) + self._lines.tell() + len(last)
        begins = self._put(info, self._manifest(first, last))
        self._write(bytes(2 * BLOCK))  # the end of a tar
        self._frame.flush(zstandard.FLUSH_FRAME)
        trailer = Trailer(
            manifest_at=manifest_at,
            content_decoded=content_decoded,
            manifest_decoded=self._decoded,
            manifest_offset=begins,
            manifest_size=info.size,
            whole=self._sink.count + TRAILER_BYTES,
        )
        self._sink.write(trailer.unsealed())
        digest = self._sink.hash.digest()
        self._sink.write(digest)
        return replace(trailer, digest=digest)

    def _manifest(self, first: bytes, last: bytes) -> Iterator[bytes]:
        yield first
        self._lines.seek(0)
        while piece := self._lines.read(PIECE_BYTES):
            yield piece
        yield last

    def _new_frame(self) -> zstandard.ZstdCompressionWriter:
        return self._compressor.stream_writer(self._sink, closefd=False)  # type: ignore[arg-type]

    def _put(self, info: tarfile.TarInfo, content: Iterable[bytes]) -> int:
        self._write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        begins = self._decoded
        for piece in content:
            self._write(piece)
        assert self._decoded - begins == info.size, (info.name, self._decoded - begins, info.size)
        self._write(bytes(-info.size % BLOCK))
        return begins

    def _write(self, data: bytes) -> None:
        self._frame.write(data)
        self._decoded += len(data)
