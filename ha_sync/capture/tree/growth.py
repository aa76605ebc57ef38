"""What the Standby has of files that are still being written, or sent in parts: offsets and hashes of what was sent.

A growing file is sent as appended bytes; at its close only the blocks that changed since they were sent (the header of
a recording) and the tail go again. Sizes in bytes. Belongs to one session: a new one begins every file anew, but for
those that are sent in parts (``parts.py``), which have a *version*.
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
    hashes: bytearray = field(default_factory=bytearray)  # of the whole blocks of ``step`` bytes
    step: int = BLOCK_MIN
    version: bytes = b""
    _hasher: xxhash.xxh3_128 = field(default_factory=xxhash.xxh3_128)

    def sent(self, data: memoryview) -> None:
        """These bytes follow what was sent."""
        while data:
            room = self.step - self.offset % self.step
            part = data[:room]
            self._hasher.update(part)
            self.offset += len(part)
            if self.offset % self.step == 0:
                self.hashes += self._hasher.digest()
                self._hasher.reset()
            data = data[room:]

    def known(self, block_size: int, size: int) -> bytes:
        """Block hashes that the Standby's partial has, for a file of ``size`` bytes; fewer than there are blocks."""
        if block_size != self.step:
            return b""
        whole = min(len(self.hashes), size // self.step * HASH_BYTES)
        known = bytes(self.hashes[:whole])
        if self.offset == size and size % self.step:
            known += self._hasher.digest()
        return known
