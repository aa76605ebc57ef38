"""Blocks of a file: their size, their hashes, and the hash of the whole, the same on both nodes.

A block hash is the 16-byte xxh3-128 of the block's bytes. The whole hash is the xxh3-128 of all block hashes followed
by the size as 8 bytes little-endian, so one pass over the content gives both. xxh3 finds damage and difference; it is
no defence against an attacker, whom TLS keeps out. Sizes in bytes. Blocking; call from an executor.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import xxhash

KIB = 1024
MIB = 1024 * KIB
BLOCK_MIN = 128 * KIB
BLOCK_MAX = 16 * MIB
BLOCKS_AIM = 4096
"""A file is cut into about this many blocks at the most, until BLOCK_MAX is reached."""

HASH_BYTES = 16


def block_size_for(size: int) -> int:
    """The block size of a file of ``size`` bytes: a power of two between BLOCK_MIN and BLOCK_MAX."""
    block = BLOCK_MIN
    while block < BLOCK_MAX and block * BLOCKS_AIM < size:
        block *= 2
    return block


def block_count(size: int, block_size: int) -> int:
    """How many blocks a file of ``size`` bytes has (0 for an empty file)."""
    return -(-size // block_size)


def block_hash(data: bytes | memoryview) -> bytes:
    """16 bytes."""
    return xxhash.xxh3_128_digest(data)


def whole_hash(block_hashes: bytes, size: int) -> bytes:
    """16 bytes, from the concatenated block hashes and the size."""
    assert len(block_hashes) % HASH_BYTES == 0, len(block_hashes)
    return xxhash.xxh3_128_digest(block_hashes + size.to_bytes(8, "little"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What a file's bytes were when they were read."""

    size: int
    block_size: int
    block_hashes: bytes  # concatenated, 16 bytes each
    hash: bytes  # of the whole


def content_of(data: bytes | memoryview) -> Content:
    """Of bytes in memory, cut by their own size."""
    view = memoryview(data)
    size = len(view)
    step = block_size_for(size)
    hashes = b"".join(block_hash(view[start : start + step]) for start in range(0, size, step))
    return Content(size=size, block_size=step, block_hashes=hashes, hash=whole_hash(hashes, size))


def hash_file(fd: int, *, block_size: int | None = None) -> Content:
    """Reads the file from its start to its end and hashes it; the size is what was read, not what stat says."""
    step = block_size or block_size_for(os.fstat(fd).st_size)
    parts: list[bytes] = []
    offset = 0
    while data := os.pread(fd, step, offset):
        while len(data) < step and (more := os.pread(fd, step - len(data), offset + len(data))):
            data += more
        parts.append(block_hash(data))
        offset += len(data)
    hashes = b"".join(parts)
    return Content(size=offset, block_size=step, block_hashes=hashes, hash=whole_hash(hashes, offset))
