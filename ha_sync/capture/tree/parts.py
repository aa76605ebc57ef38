"""Sends a large file that the Standby has nothing of in parts, so that little of it goes twice when the stream breaks.

Each part is a group of its own, which grows a hidden file on the Standby as a recording does; other changes go in
between. Then the file itself is sent, most of whose blocks the Standby has by now. *Version* names the state of the
file at the first part and is noted in the catalogue: a Standby that comes back says what it holds of which version, and
the next part begins there, also after a crash of this node. A file that changes meanwhile is not begun anew: what was
sent is hashed as it was sent, and what differs goes with the file itself. Nothing rests on any of this being right: the
whole content is verified there, and asked for where it is not what was announced.

Not sent so: what the Standby has an older form of, or the content of under another name; holes; mailboxes, which are
published as a whole. Sizes in bytes. Blocking; belongs to the dataset's thread.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.capture.tree.appending import appended
from ha_sync.capture.tree.frames import FrameBuilder
from ha_sync.capture.tree.growth import GROW_RESTART_MAX, Growth
from ha_sync.capture.tree.pieces import hashed
from ha_sync.capture.tree.terms import Terms
from ha_sync.catalogue.tree import TYPE_FILE, TreeCatalogue
from ha_sync.core.position import Sequence
from ha_sync.errors import HaSyncError
from ha_sync.files.blocks import HASH_BYTES, block_size_for, whole_hash
from ha_sync.files.confine import Root

PART_BYTES = 8 * 1024 * 1024
"""Of one part; a file up to this size is sent whole."""

VERSION_BYTES = 8
KEY = "parts:"
"""Begins the catalogue's notes: the path in hex, and version, inode, size and times of what is sent so."""

WHOLE = "@"
"""Begins what is added to a note when the file itself was sent: its sequence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _State:
    """What a file looked like."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> _State:
        return cls(
            inode=status.st_ino, size=status.st_size, mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns
        )  # fmt: skip

    def note(self, version: bytes) -> str:
        """For the catalogue."""
        return f"{version.hex()}:{self.inode}:{self.size}:{self.mtime_ns}:{self.ctime_ns}"


class Parts:
    """``growing`` is shared with whoever reads the files afterwards: what the Standby has of them by parts."""

    def __init__(
        self,
        catalogue: TreeCatalogue,
        growing: dict[bytes, Growth],
        terms: Terms,
        *,
        root: Callable[[], Root],
        refuses: Callable[[bytes], bool],
        may_copy: Callable[[bytes], bool],
    ) -> None:
        """``refuses`` says of a path that it must go whole, ``may_copy`` that the Standby can copy from it now."""
        self._catalogue = catalogue
        self._growing = growing
        self._terms = terms
        self._root = root
        self._refuses = refuses
        self._may_copy = may_copy
        self._there: dict[bytes, tuple[bytes, int]] = {}  # what the Standby says: version and size
        self._whole: set[bytes] = set()  # was looked at, and goes whole
        self._read: dict[bytes, tuple[_State, bytes]] = {}  # block hashes of what was read and has not changed since
        notes = catalogue.values_with_prefix(KEY)
        # Whether the times in the note prove that the file is unchanged; of an earlier run's nobody knows.
        self._noted = {bytes.fromhex(key.removeprefix(KEY)): False for key, _ in notes}
        self._applied: Sequence | None = None

    # ---- sessions

    def begin(self, applied: Sequence | None) -> None:
        """A session begins: of what is under way only that counts which the Standby says it has.

        ``applied`` is how far it has come in this journal; None: it is compared.
        """
        self._applied = applied
        self._there.clear()
        self._whole.clear()
        self._read.clear()

    def standby_has(self, partials: tuple[bytes, ...]) -> None:
        """What the Standby said when it came, before anything is sent: a ``Partial`` each."""
        for data in partials:
            partial = pb.Partial.FromString(data)
            note = self._catalogue.get(KEY + partial.path.hex())
            if note is None or not partial.version or note.partition(":")[0] != partial.version.hex():
                continue
            self._there[partial.path] = (partial.version, partial.size)
            # Known to be there in part, so that a deletion is sent too.
            self._growing[partial.path] = Growth(0, version=partial.version)

    def whole(self, paths: Iterable[bytes], sequence: Sequence) -> None:
        """The files themselves have been sent, in the group of this sequence."""
        if not self._noted:
            return  # as nearly always
        for path in paths:
            if self._noted.get(path) and (note := self._catalogue.get(KEY + path.hex())) is not None:
                self._catalogue.put(KEY + path.hex(), f"{note.partition(WHOLE)[0]}{WHOLE}{sequence}")

    def all_landed(self) -> None:
        """The Standby has everything: no note is needed any more."""
        for path in self._noted:
            self._catalogue.forget(KEY + path.hex())
        self._noted.clear()

    # ---- which file, and how much of it

    def wants(self, path: bytes, status: os.stat_result | None) -> bool:
        """Whether a part of this file is to be sent before anything else of it; at the first time it is read."""
        if status is None or status.st_size <= PART_BYTES or not stat.S_ISREG(status.st_mode):
            return False
        if path in self._whole or self._refuses(path) or status.st_blocks * 512 < status.st_size * 3 // 4:
            return False
        growth = self._growing.get(path)
        if growth is not None and growth.inode:
            return bool(growth.version) and self._goes_on(path, growth, status)
        entry = self._catalogue.entry(path)
        if entry is not None and (entry.type != TYPE_FILE or entry.size > GROW_RESTART_MAX):
            return False
        begun = self._begun(path)
        return begun is not None and self._goes_on(path, begun, status)

    def _goes_on(self, path: bytes, growth: Growth, status: os.stat_result) -> bool:
        if growth.inode != status.st_ino or growth.offset > status.st_size:
            # Replaced. Nobody knows how often that happens: now it goes as it is, by a descriptor that stays.
            self._leave(path)
            return False
        return status.st_size - growth.offset > PART_BYTES

    def _leave(self, path: bytes) -> None:
        """It goes whole; whoever reads it says what is wrong with it."""
        self._growing.pop(path, None)
        self._whole.add(path)

    def _begun(self, path: bytes) -> Growth | None:
        """None: it goes whole, for the Standby has this content already under another name, or it cannot be read."""
        try:
            fd = self._root().open(path, os.O_RDONLY | os.O_NONBLOCK)
        except (OSError, HaSyncError):
            return None
        try:
            at = time.clock_gettime_ns(time.CLOCK_REALTIME)
            status = os.fstat(fd)
            step = block_size_for(status.st_size)
            hashes = hashed(fd, status, step)
        except OSError:
            self._leave(path)
            return None
        finally:
            os.close(fd)
        state = _State.of(status)
        sure = at - status.st_ctime_ns > self._terms.racy_ns
        if sure:
            self._read[path] = (state, hashes)
        if known := self._known(path, state, hashes, step):
            return known
        source = self._catalogue.path_with(whole_hash(hashes, status.st_size))
        if source is not None and source != path and self._may_copy(source):
            self._leave(path)
            return None
        version = os.urandom(VERSION_BYTES)
        self._catalogue.put(KEY + path.hex(), state.note(version))
        self._noted[path] = sure
        growth = self._growing[path] = Growth(status.st_ino, step=step, version=version)
        return growth

    def _known(self, path: bytes, state: _State, hashes: bytes, step: int) -> Growth | None:
        """What the Standby has of it from before; None: nothing, as far as is known."""
        version, size = self._there.pop(path, (b"", 0))
        note, _, sent = (self._catalogue.get(KEY + path.hex()) or "").partition(WHOLE)
        if sent and self._applied is not None and int(sent) <= self._applied and note.endswith(state.note(b"")):
            version, size = bytes.fromhex(note.partition(":")[0]), state.size  # a crash swallowed the acknowledgement
        if not version or note != state.note(version):
            return None
        blocks = min(size, state.size) // step
        there = bytearray(hashes[: blocks * HASH_BYTES])
        growth = self._growing[path] = Growth(state.inode, blocks * step, there, step, version)
        return growth

    def steps(self, path: bytes, builder: FrameBuilder) -> Iterator[None]:
        """Adds the next part, or nothing where it cannot be read; yields when the builder's frame must be taken."""
        growth = self._growing[path]
        before = growth.offset
        with contextlib.suppress(OSError, HaSyncError):
            fd = self._root().open(path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                status = os.fstat(fd)
                if status.st_ino == growth.inode:
                    end = min(before + PART_BYTES, status.st_size)
                    yield from appended(path, fd, builder, growth, status, end=end)
            finally:
                os.close(fd)
        if growth.offset == before:
            self._leave(path)

    def take_hashes(self, path: bytes, status: os.stat_result) -> bytes:
        """Block hashes of the file, if it was read here and is still the same; empty: it must be read."""
        state, hashes = self._read.pop(path, (None, b""))
        return hashes if state == _State.of(status) else b""
