"""Content-defined chunks of a large file, and what of a new version stands elsewhere in the old one.

Blocks have fixed places: a byte inserted at the front changes all of them. Chunks end where the content says so
(FastCDC), so what moved has the same chunks as before. The Active keeps the *cuts* of what the Standby has: for each
chunk its length (4 bytes, little-endian) and its xxh3-128. In bytes. What takes a descriptor blocks; the rest is pure.
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash
from pyfastcdc import FastCDC

SHIFT_MIN = 64 * 1024 * 1024
"""Below it a file goes again as blocks: looking for what moved would cost more than it spares."""

CHUNK_BYTES = 128 * 1024
"""On average; from a quarter of it to four times as much."""

MOVES_MAX = 4096
"""Of one file; with more it is sent as blocks."""

_CUT = struct.Struct("<I16s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Bytes of the old content that the new one has at another place, or the same."""

    offset: int  # in the new one
    source: int  # in the old one
    length: int


def cuts(fd: int) -> bytes:
    """Of the file from its start to its end, as it is read."""
    with io.FileIO(os.dup(fd)) as file:
        file.seek(0)
        chunks = _chunker().cut_stream(file)
        return b"".join(_CUT.pack(chunk.length, xxhash.xxh3_128_digest(chunk.data)) for chunk in chunks)


def moves(old: bytes, new: bytes) -> list[Move]:
    """What of the content cut as ``new`` stands in the one cut as ``old``, in order, neighbours joined."""
    places: dict[tuple[int, bytes], int] = {}
    at = 0
    for length, digest in _CUT.iter_unpack(old):
        places.setdefault((length, digest), at)
        at += length
    found: list[Move] = []
    at = 0
    for length, digest in _CUT.iter_unpack(new):
        source = places.get((length, digest))
        if source is not None:
            last = found[-1] if found else None
            if last is not None and last.offset + last.length == at and last.source + last.length == source:
                found[-1] = Move(offset=last.offset, source=last.source, length=last.length + length)
            else:
                found.append(Move(offset=at, source=source, length=length))
        at += length
    return found


def cuts_again(fd: int, old: bytes, changed: list[tuple[int, int]]) -> bytes:
    """Of a file whose content is that of ``old`` but within these ranges (begin, end), in order: only there it is read.

    A chunk depends on nothing before it, so where a new one ends at the place of an old one the old ones go on.
    """
    before = list(_CUT.iter_unpack(old))
    parts: list[bytes] = []
    at = index = range_ = 0
    with io.FileIO(os.dup(fd)) as file:
        while index < len(before):
            length, digest = before[index]
            while range_ < len(changed) and changed[range_][1] <= at:
                range_ += 1
            if range_ == len(changed) or changed[range_][0] >= at + length:
                parts.append(_CUT.pack(length, digest))
                at, index = at + length, index + 1
                continue
            file.seek(at)
            end = at
            for chunk in _chunker().cut_stream(file):
                parts.append(_CUT.pack(chunk.length, xxhash.xxh3_128_digest(chunk.data)))
                end += chunk.length
                while at < end and index < len(before):
                    at, index = at + before[index][0], index + 1
                if at == end:
                    break
            else:
                index = len(before)
    return b"".join(parts)


def _chunker() -> FastCDC:
    return FastCDC(avg_size=CHUNK_BYTES, min_size=CHUNK_BYTES // 4, max_size=CHUNK_BYTES * 4)


def size_of(made: bytes) -> int:
    """Of the content."""
    return sum(length for length, _ in _CUT.iter_unpack(made))


def covered(found: list[Move], size: int, step: int) -> Iterator[int]:
    """Numbers of the blocks of ``step`` bytes that lie within the moves altogether."""
    begin = end = 0
    for move in found:
        if move.offset > end:
            yield from _whole(begin, end, size, step)
            begin = move.offset
        end = move.offset + move.length
    yield from _whole(begin, end, size, step)


def _whole(begin: int, end: int, size: int, step: int) -> range:
    last = -(-size // step) if end >= size else end // step
    return range(-(-begin // step), last)
