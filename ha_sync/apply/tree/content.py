"""Builds the content of one file: blocks from the payload, holes, and the rest from what this node has.

Invariant: a draft that ``verified`` answers True for holds exactly the announced content, byte for byte. A base is
copied with ``copy_file_range``, which shares extents where the filesystem can, so a small change of a large file
costs little. Its block hashes are taken from the catalogue only while its witness holds, before and after the copy;
else they are read back. Sizes in bytes. Blocking.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator

import xxhash

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.catalogue.tree import Entry, Witness
from ha_sync.errors import ProtocolFault
from ha_sync.files.blocks import HASH_BYTES, block_count, block_hash, whole_hash

COPY_CHUNK = 1024 * 1024
FALLOCATE_MIN = 1024 * 1024
"""From this size on the room is reserved first: a full disk is known before anything was written."""

_CANNOT_COPY = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY})
_zero_hashes: dict[int, bytes] = {}


def zero_hash(length: int) -> bytes:
    """The block hash of ``length`` zero bytes."""
    if length not in _zero_hashes:
        if len(_zero_hashes) >= 64:
            _zero_hashes.clear()
        _zero_hashes[length] = block_hash(bytes(length))
    return _zero_hashes[length]


def witness_of(status: os.stat_result) -> Witness:
    """What the object looks like now."""
    return Witness(inode=status.st_ino, ctime_ns=status.st_ctime_ns)


def write_at(fd: int, data: memoryview | bytes, offset: int) -> None:
    """All of it."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        view = view[written:]
        offset += written


def copy_range(source: int, target: int, start: int, length: int) -> int:
    """Copies from one descriptor to the same place of another; returns how much there was. Holes stay holes."""
    done = 0
    for begin, end in _data_segments(source, start, start + length):
        copied = _copy_data(source, target, begin, end - begin)
        if copied < end - begin:
            return begin + copied - start
        done = end - start
    size = os.fstat(source).st_size
    return max(done, min(length, max(0, size - start)))


def _data_segments(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    at = start
    while at < end:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole follows, or the end
                return
            yield at, end
            return
        if begin >= end:
            return
        finish = min(end, os.lseek(fd, begin, os.SEEK_HOLE))
        yield begin, finish
        at = finish


def _copy_data(source: int, target: int, start: int, length: int, *, to: int | None = None) -> int:
    shift = 0 if to is None else to - start
    done = 0
    while done < length:
        at = start + done
        try:
            count = os.copy_file_range(source, target, length - done, at, at + shift)
        except OSError as error:
            if error.errno not in _CANNOT_COPY:
                raise
            data = os.pread(source, min(COPY_CHUNK, length - done), at)
            write_at(target, data, at + shift)
            count = len(data)
        if not count:
            break
        done += count
    return done


class Draft:
    """A file under construction in an open descriptor, block by block."""

    def __init__(self, fd: int, change: pb.TreeChange) -> None:
        self.fd = fd
        self.size = change.size
        self.hash = change.hash
        self.step = change.block_size
        count = block_count(self.size, self.step) if self.size else 0
        self._hashes = bytearray(count * HASH_BYTES)
        self._have = bytearray(count)
        self._missing = count
        self._cut: tuple[int, int, xxhash.xxh3_128] | None = None  # number, bytes so far, its hash so far
        self._clean = True  # nothing of a base that did not fit lies where a hole of the next one may be

    @property
    def block_hashes(self) -> bytes:
        """Of all blocks, concatenated."""
        return bytes(self._hashes)

    def belongs_to(self, change: pb.TreeChange) -> bool:
        """Whether a further piece is of the same content."""
        return (self.size, self.hash, self.step) == (change.size, change.hash, change.block_size)

    def reserve(self, length: int) -> None:
        """Takes the room for ``length`` bytes now; raises OSError where there is none."""
        if length >= FALLOCATE_MIN:
            os.posix_fallocate(self.fd, 0, length)

    def length_of(self, number: int) -> int:
        """Of a block."""
        return min(self.step, self.size - number * self.step)

    def write(self, change: pb.TreeChange, payload: memoryview) -> None:
        """Takes the blocks and holes of one piece. Raises ProtocolFault where a cut block is not continued."""
        for number in change.zero_blocks:
            self._settle(number, zero_hash(self.length_of(number)))
        blocks = change.blocks
        if not blocks:
            return
        at = 0
        skip = change.offset
        if bool(skip) != (self._cut is not None) or (self._cut and self._cut[:2] != (blocks[0], skip)):
            raise ProtocolFault(
                "refused a frame", subject=repr(change.path[:200]), reason="a cut block goes on wrongly"
            )
        for number in blocks:
            take = min(self.length_of(number) - skip, len(payload) - at)
            self._take(number, skip, payload[at : at + take])
            at += take
            skip = 0

    def _take(self, number: int, skip: int, data: memoryview) -> None:
        write_at(self.fd, data, number * self.step + skip)
        length = self.length_of(number)
        if self._cut is None and len(data) == length:
            self._settle(number, block_hash(data))
            return
        hasher = self._cut[2] if self._cut else xxhash.xxh3_128()
        hasher.update(data)
        filled = skip + len(data)
        self._cut = (number, filled, hasher)
        if filled == length:
            self._settle(number, hasher.digest())
            self._cut = None

    def _settle(self, number: int, digest: bytes) -> None:
        self._missing -= 1 - self._have[number]
        self._have[number] = 1
        self._hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES] = digest

    @property
    def complete(self) -> bool:
        """Whether every block came with the payload."""
        return not self._missing

    def clear_holes(self, change: pb.TreeChange) -> None:
        """Overwrites the holes with zeros: needed where the draft is a partial that holds something there."""
        for number in change.zero_blocks:
            write_at(self.fd, bytes(self.length_of(number)), number * self.step)

    def fill_from(self, base: int, known: Entry | None) -> bool:
        """Copies every block that did not come from another file; False where that file is too short."""
        before = os.fstat(base)
        for first, count in self._missing_ranges():
            start = first * self.step
            length = min(count * self.step, self.size - start)
            if start + length > before.st_size or copy_range(base, self.fd, start, length) < length:
                self._clean = False
                return False
        after = os.fstat(base)
        trusted = (
            known
            if self._clean
            and known
            and known.witness == witness_of(before) == witness_of(after)
            and known.size == after.st_size
            else None
        )
        self._clean = False
        self._hash_missing(trusted)
        return True

    def fill_by(self, moves: Iterable[pb.TreeMove], base: int) -> bool:
        """The same from other places of that file; False where it has not all of them."""
        self._clean = False
        places = [(move.offset, move.source, move.length) for move in moves]
        size = os.fstat(base).st_size
        for first, count in self._missing_ranges():
            at, end = first * self.step, min((first + count) * self.step, self.size)
            for offset, source, length in places:
                low, high = max(at, offset), min(end, offset + length)
                if low >= high:
                    continue
                start = source + low - offset
                if low > at or start + high - low > size:
                    return False
                if _copy_data(base, self.fd, start, high - low, to=low) < high - low:
                    return False
                at = high
            if at < end:
                return False
        self._hash_missing(None)
        return True

    def fill_from_itself(self) -> bool:
        """The draft's own file is the base (a growing partial); False where it is too short."""
        self._clean = False
        if os.fstat(self.fd).st_size < self.size:
            for first, count in self._missing_ranges():
                if min((first + count) * self.step, self.size) > os.fstat(self.fd).st_size:
                    return False
        self._hash_missing(None)
        return True

    def _missing_ranges(self) -> list[tuple[int, int]]:
        ranges: list[tuple[int, int]] = []
        number = self._have.find(0)
        while number >= 0:
            end = self._have.find(1, number)
            end = len(self._have) if end < 0 else end
            ranges.append((number, end - number))
            number = self._have.find(0, end)
        return ranges

    def _hash_missing(self, known: Entry | None) -> None:
        """Fills in hashes without calling the blocks had: the next base must be tried if this one does not fit."""
        for first, count in self._missing_ranges():
            for number in range(first, first + count):
                place = slice(number * HASH_BYTES, (number + 1) * HASH_BYTES)
                self._hashes[place] = self._known_hash(number, known) or self._read_hash(number)

    def _known_hash(self, number: int, known: Entry | None) -> bytes:
        if known is None or known.block_size != self.step or not known.block_hashes:
            return b""
        start, end = number * self.step, number * self.step + self.length_of(number)
        same_end = min(start + self.step, known.size) == end
        return known.block_hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES] if same_end else b""

    def _read_hash(self, number: int) -> bytes:
        length = self.length_of(number)
        data = os.pread(self.fd, length, number * self.step)
        while len(data) < length and (more := os.pread(self.fd, length - len(data), number * self.step + len(data))):
            data += more
        return block_hash(data)

    def verified(self) -> bool:
        """Gives the file its size and says whether its content is what was announced."""
        if self._cut is not None or whole_hash(bytes(self._hashes), self.size) != self.hash:
            return False
        if os.fstat(self.fd).st_size != self.size:
            os.ftruncate(self.fd, self.size)
        return True
