"""A large file of a storage whose content moved: what the Standby can take from the version that it has.

Cuts are made once for each content and kept under its hash. Sizes in bytes. Blocking; belongs to the dataset's thread.
"""

from __future__ import annotations

from ha_sync.catalogue.tree import TreeCatalogue
from ha_sync.files.blocks import HASH_BYTES
from ha_sync.files.chunks import MOVES_MAX, Move, covered, cuts, cuts_again, moves, size_of

FEW = 16
"""Where less than this part of a file changed in its place, blocks are good enough."""


class Shift:
    """Of one file that is open."""

    def __init__(self, catalogue: TreeCatalogue, fd: int, size: int) -> None:
        self._catalogue = catalogue
        self._fd = fd
        self._size = size
        self._cuts = b""
        self.moves: tuple[Move, ...] = ()

    def better(self, old: bytes, hashes: bytes, have: bytes, step: int) -> bytes:
        """``have``, the block hashes that the Standby's version (with the hash ``old``) has at their places; or all
        those whose content stands anywhere in it, if these are more: then ``moves`` says where.
        """
        known = self._catalogue.cuts_of(old)
        if not known:
            return have
        every = [slice(at, at + HASH_BYTES) for at in range(0, len(hashes), HASH_BYTES)]
        changed = [n for n, place in enumerate(every) if have[place] != hashes[place]]
        if len(changed) <= len(every) // FEW and size_of(known) == self._size:
            # Changed in its place: nothing is looked for, and only there it is cut anew.
            self._cuts = cuts_again(self._fd, known, [(n * step, (n + 1) * step) for n in changed])
            return have
        found = moves(known, self._made())
        whole = list(covered(found, self._size, step))
        if len(whole) <= len(every) - len(changed) or len(found) > MOVES_MAX:
            return have
        self.moves = tuple(found)
        filled = bytearray(len(hashes))
        for n in whole:
            filled[every[n]] = hashes[every[n]]
        return bytes(filled)

    def keep(self, content: bytes) -> None:
        """This is what the Standby has next."""
        if not self._catalogue.cuts_of(content):
            self._catalogue.put_cuts(content, self._made())

    def _made(self) -> bytes:
        if not self._cuts:
            self._cuts = cuts(self._fd)
        return self._cuts
