"""The first hundred bytes of a SQLite file, and the block size in which such a file travels.

Source: https://www.sqlite.org/fileformat.html section 1.3. Sizes in bytes. Nothing is opened here.
"""

from __future__ import annotations

from dataclasses import dataclass

HEADER_BYTES = 100
MAGIC = b"SQLite format 3\x00"

BLOCK_SMALLEST = 4096
BLOCK_LARGEST = 65_536
BLOCKS_AIM = 2048
"""Blocks grow with the file until it has about this many: small enough to send little, few enough to hash fast."""

BLOCKS_MAX = 65_536
"""A file with more blocks than this starts again with larger ones, so that an inventory stays one small message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the header says."""

    page_size: int
    write_ahead_log: bool  # the file wants a -wal beside it
    change_counter: bytes  # 4 bytes, grows with every commit in rollback-journal mode only


def parse_header(data: bytes | memoryview) -> Header | None:
    """None where the bytes are no header of a readable SQLite file (another program's, encrypted, cut off)."""
    head = bytes(data[:HEADER_BYTES])
    if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
        return None
    page_size = int.from_bytes(head[16:18], "big")
    page_size = 65_536 if page_size == 1 else page_size
    if page_size < 512 or page_size & (page_size - 1):
        return None
    return Header(page_size=page_size, write_ahead_log=head[18] == 2 or head[19] == 2, change_counter=head[24:28])


def database_block_size(size: int, page_size: int) -> int:
    """A power of two that holds whole pages."""
    block = max(BLOCK_SMALLEST, page_size)
    while block < BLOCK_LARGEST and block * BLOCKS_AIM < size:
        block *= 2
    while block * BLOCKS_MAX < size:
        block *= 2
    return block


def block_size_fits(block_size: int, *, size: int, page_size: int) -> bool:
    """Whether a block size that is already in use can go on being used for a file of this size."""
    power = block_size > 0 and block_size & (block_size - 1) == 0
    return power and block_size >= page_size and block_size * BLOCKS_MAX >= size
