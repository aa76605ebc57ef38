"""A large file: its block hashes, and the blocks that the Standby lacks, in pieces that fit frames.

Holes are neither read nor sent. What is cut short under our eyes counts as zeros: the next reading mends it. The hash
that is announced is that of the bytes that were sent. Sizes in bytes. Blocking.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import xxhash

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.catalogue.tree import TYPE_FILE
from ha_sync.core.frame import FRAME_TARGET_BYTES
from ha_sync.files.blocks import HASH_BYTES, block_hash, whole_hash
from ha_sync.files.chunks import Move

if TYPE_CHECKING:
    from ha_sync.capture.tree.reading import Group, Item

PUT = pb.TreeChange.ACTION_PUT
_zero_hashes: dict[int, bytes] = {}


def zero_hash(length: int) -> bytes:
    """The block hash of ``length`` zero bytes."""
    if length not in _zero_hashes:
        if len(_zero_hashes) >= 64:
            _zero_hashes.clear()
        _zero_hashes[length] = block_hash(bytes(length))
    return _zero_hashes[length]


def hashed(fd: int, status: os.stat_result, step: int) -> bytes:
    """Block hashes of the first ``st_size`` bytes; holes are not read, what is missing counts as zeros."""
    size = status.st_size
    sparse = status.st_blocks * 512 < size
    buffer = memoryview(bytearray(step))
    parts: list[bytes] = []
    data = 0
    for start in range(0, size, step):
        length = min(step, size - start)
        if sparse and data < start + length and data <= start:
            data = _next_data(fd, start, size)
        if sparse and data >= start + length:
            parts.append(zero_hash(length))
            continue
        view = buffer[:length]
        got = os.preadv(fd, [view], start)
        if got < length:
            view[got:] = bytes(length - got)
        parts.append(block_hash(view))
    return b"".join(parts)


def _next_data(fd: int, start: int, size: int) -> int:
    try:
        return os.lseek(fd, start, os.SEEK_DATA)
    except OSError:
        return size  # no data after this: a hole to the end


class Pieces:
    """Sends the blocks of one large file that the Standby lacks."""

    def __init__(
        self, group: Group, item: Item, status: os.stat_result, *, xattrs: bytes, content: bytes, step: int
    ) -> None:
        self._add = group.change
        self._builder = group.builder
        self._item, self._status, self._xattrs, self._step = item, status, xattrs, step
        self._blocks: list[int] = []
        self._zeros: list[int] = []
        self._kept = 0
        self.content = content
        self.hashes = b""

    def send(self, fd: int, hashes: bytes, have: bytes, *, moves: Iterable[Move] = ()) -> Iterator[None]:
        """``hashes`` as they were read, ``have`` as the Standby's base has them, by its ``moves`` where there are any.

        Yields when a frame must be taken.
        """
        size, step = self._status.st_size, self._step
        final = bytearray(hashes)
        for number in range(len(hashes) // HASH_BYTES):
            place = slice(number * HASH_BYTES, number * HASH_BYTES + HASH_BYTES)
            wanted, length = hashes[place], min(step, size - number * step)
            if have[place] == wanted:
                continue
            if wanted == zero_hash(length):
                self._zeros.append(number)
                continue
            if length > FRAME_TARGET_BYTES:
                final[place] = yield from self._cut(fd, number, length)
                continue
            if self._builder.used and self._builder.used + length > FRAME_TARGET_BYTES:
                if self._blocks or self._zeros:
                    self._close(more=True)
                yield
            view = self._builder.place(length)
            got = os.preadv(fd, [view], number * step)
            if got < length:
                # Cut short under our eyes: zeros stand for what is gone, the next reading mends it.
                view[got:] = bytes(length - got)
            self._builder.keep(length)
            self._kept += length
            self._blocks.append(number)
            final[place] = block_hash(view)
        self.hashes = bytes(final)
        self.content = whole_hash(self.hashes, size)
        told = [pb.TreeMove(offset=move.offset, source=move.source, length=move.length) for move in moves]
        self._close(more=False, moves=told)

    def _cut(self, fd: int, number: int, length: int) -> Generator[None, None, bytes]:
        """A block that is larger than a frame: its bytes in several pieces; answers its hash."""
        if self._blocks or self._zeros:
            self._close(more=True)
        hasher = xxhash.xxh3_128()
        for offset in range(0, length, FRAME_TARGET_BYTES):
            if not self._builder.empty:
                yield
            part = min(FRAME_TARGET_BYTES, length - offset)
            view = self._builder.place(part)
            got = os.preadv(fd, [view], number * self._step + offset)
            if got < part:
                view[got:] = bytes(part - got)
            self._builder.keep(part)
            self._kept, self._blocks = part, [number]
            hasher.update(view)
            self._close(more=True, offset=offset)
        return hasher.digest()

    def _close(self, *, more: bool, offset: int = 0, moves: Sequence[pb.TreeMove] = ()) -> None:
        self._add(
            self._item, self._status, self._xattrs, PUT, type=TYPE_FILE, size=self._status.st_size,
            hash=self.content, block_size=self._step, blocks=self._blocks, zero_blocks=self._zeros,
            payload_bytes=self._kept, offset=offset, more=more, moves=moves,
        )  # fmt: skip
        self._blocks, self._zeros, self._kept = [], [], 0
