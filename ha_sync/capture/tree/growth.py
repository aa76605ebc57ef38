"""What the Standby has of files that are still being written: offsets and block hashes of what was sent.

A growing file is sent as appended bytes; at its close only the blocks that changed since they were sent (the header of
a recording) and the tail go again. Sizes in bytes. Belongs to one session: a new one begins every file anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import xxhash

from ha_sync.files.blocks import BLOCK_MIN, HASH_BYTES

GROWING_MAX = 4096
"""Files followed at once; more are sent when they are closed."""

GROW_RESTART_MAX = 1024 * 1024
"""A file that the Standby has already grows only while it is smaller: beginning it anew must stay cheap."""


@dataclass(slots=True)
class Growth:
    """One file."""

    inode: int
    offset: int = 0
    hashes: bytearray = field(default_factory=bytearray)  # of the whole blocks of BLOCK_MIN bytes
    _hasher: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)

    def sent(self, data: memoryview) -> None:
        """These bytes follow what was sent."""
        while data:
            room = BLOCK_MIN - self.offset % BLOCK_MIN
            part = data[:room]
            self._hasher.update(part)
            self.offset += len(part)
            if self.offset % BLOCK_MIN == 0:
                self.hashes += self._hasher.digest()
                self._hasher.reset()
            data = data[room:]

    def known(self, block_size: int, size: int) -> bytes:
        """Block hashes that the Standby's partial has, for a file of ``size`` bytes; fewer than there are blocks."""
        if block_size != BLOCK_MIN:
            return b""
        whole = min(len(self.hashes), size // BLOCK_MIN * HASH_BYTES)
        known = bytes(self.hashes[:whole])
        if self.offset == size and size % BLOCK_MIN:
            known += self._hasher.digest()
        return known
