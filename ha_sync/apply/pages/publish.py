"""Builds the next file of a database beside the published one and puts it in its place.

The order is the promise: temporary whole and durable -> intent durable -> companions of the old file gone, durably ->
rename -> directory durable. A new main file must never stand beside the old one's hot journal or log: SQLite would
roll the old pages into it. Sizes in bytes. Blocking; one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from ha_proto.sync.v1 import replication_pb2 as wire
from ha_sync.database.durable import sync_folder
from ha_sync.errors import ProtocolFault, RepairNeeded
from ha_sync.files.blocks import MIB, block_count, hash_file

COMPANIONS = ("-journal", "-wal", "-shm")
WRITE_BITS = 0o222
SIZE_MAX = 16 * 1024 * MIB
BLOCK_MAX = 16 * MIB
_FICLONE = 0x40049409
_PIECE = 8 * MIB
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Witness:
    """What stat says of a file that nobody touched."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Witness:
        """From a stat."""
        return cls(inode=status.st_ino, size=status.st_size, mtime_ns=status.st_mtime_ns, ctime_ns=status.st_ctime_ns)


class Place:
    """The dataset's path, and the names beside it that are ours."""

    def __init__(self, path: str) -> None:
        self.path = os.path.realpath(path)  # a link stays a link
        self.folder, self.name = os.path.split(self.path)
        self._prefix = f".ha-{self.name}."

    def new_temporary(self) -> tuple[str, int]:
        """A fresh hidden file beside the database: its name and a descriptor for reading and writing."""
        name = f"{self._prefix}{secrets.token_hex(6)}"
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return name, os.open(os.path.join(self.folder, name), flags, 0o600)

    def sweep(self, *, keep: str = "") -> int:
        """Removes temporaries that a crash left; returns how many."""
        try:
            names = [n for n in os.listdir(self.folder) if n.startswith(self._prefix) and n != keep]
        except OSError:
            return 0
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(self.folder, name))
        return len(names)

    def in_folder(self, name: str) -> str:
        """The full path of a name beside the database."""
        return os.path.join(self.folder, name)

    def companions(self) -> list[str]:
        """Journal, log and shared memory that stand beside the path now."""
        return [self.path + end for end in COMPANIONS if os.path.lexists(self.path + end)]

    def remove_companions(self) -> None:
        """Durably."""
        found = self.companions()
        for path in found:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        if found:
            # Without the sync a power cut could keep the old journal beside the new file.
            sync_folder(self.folder)

    def take_place(self, temporary: str, *, keep_old: bool = False) -> bool:
        """The rename, durably. Returns whether the old file was kept: it bears the temporary's name then."""
        kept = keep_old and _exchanged(self.in_folder(temporary), self.path)
        if not kept:
            os.rename(self.in_folder(temporary), self.path)
        sync_folder(self.folder)
        return kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Spare:
    """The file that was published before the present one, kept to become the next.

    It differs from the present one in the blocks ``behind`` only, so the next file costs the writing of what changed
    twice instead of a copy of the whole. That matters on the flash memory of small machines.
    """

    name: str
    fd: int
    block_size: int
    behind: frozenset[int]


class Draft:
    """One group's new file while its blocks arrive."""

    def __init__(
        self, place: Place, base_fd: int | None, change: wire.TreeChange, *, spare: Spare | None = None
    ) -> None:
        _require_sane(change)
        self.change = change
        self._place = place
        self._last_block = -1
        self.touched: set[int] = set()
        if spare is None:
            self.name, self.fd = place.new_temporary()
        else:
            self.name, self.fd = spare.name, spare.fd
        try:
            if spare is None or base_fd is None:
                self._start_from(base_fd)
            else:
                self._catch_up(spare, base_fd)
        except BaseException:
            self.discard()
            raise

    def take(self, change: wire.TreeChange, payload: memoryview) -> None:
        """Writes the blocks of one frame."""
        same = (change.size, change.hash, change.block_size) == (
            self.change.size,
            self.change.hash,
            self.change.block_size,
        )
        if not same:
            raise ProtocolFault("cannot take a piece of a database", reason="it belongs to another content")
        step, size = change.block_size, change.size
        count = block_count(size, step)
        at = 0
        for number in change.blocks:
            if not self._last_block < number < count:
                raise ProtocolFault("cannot take a piece of a database", reason=f"block {number} of {count}")
            self._last_block = number
            self.touched.add(number)
            length = min(step, size - number * step)
            _write_all(self.fd, payload[at : at + length], number * step, length)
            at += length
        if at != len(payload) or change.payload_bytes != at:
            raise ProtocolFault("cannot take a piece of a database", reason="payload and blocks do not agree")
        self._zero(change.zero_blocks, count)
        self.change = change

    def finish(self) -> None:
        """Verifies the whole, gives owner and mode, syncs. Raises ``RepairNeeded`` where the content is another."""
        change = self.change
        os.ftruncate(self.fd, change.size)
        found = hash_file(self.fd, block_size=change.block_size)
        if found.hash != change.hash or found.size != change.size:
            raise RepairNeeded(
                "cannot publish a database", subject=self._place.path, reason="its content is not what was announced"
            )
        with contextlib.suppress(PermissionError):  # not root: the file belongs to the engine's user
            os.fchown(self.fd, change.uid, change.gid)
        os.fchmod(self.fd, change.mode & 0o7777 & ~WRITE_BITS)
        os.utime(self.fd, ns=(change.mtime_ns, change.mtime_ns))
        os.fsync(self.fd)

    def discard(self) -> None:
        """Removes it."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._place.in_folder(self.name))

    def _start_from(self, base_fd: int | None) -> None:
        size = self.change.size
        available = 0 if base_fd is None else min(size, os.fstat(base_fd).st_size)
        if base_fd is not None and available and not _cloned(base_fd, self.fd):
            _copy_range(base_fd, self.fd, 0, available)
        os.ftruncate(self.fd, size)

    def _catch_up(self, spare: Spare, base_fd: int) -> None:
        step, available = spare.block_size, os.fstat(base_fd).st_size
        os.fchmod(self.fd, 0o600)
        os.ftruncate(self.fd, available)
        for number in sorted(spare.behind):
            _copy_range(base_fd, self.fd, number * step, min((number + 1) * step, available))
        os.ftruncate(self.fd, self.change.size)

    def _zero(self, numbers: Sequence[int], count: int) -> None:
        step, size = self.change.block_size, self.change.size
        for number in numbers:
            if not 0 <= number < count:
                raise ProtocolFault("cannot take a piece of a database", reason=f"hole {number} of {count}")
            self.touched.add(number)
            length = min(step, size - number * step)
            _write_all(self.fd, memoryview(bytes(length)), number * step, length)


def _require_sane(change: wire.TreeChange) -> None:
    step = change.block_size
    database = change.action == wire.TreeChange.ACTION_PUT and change.type == wire.TreeChange.TYPE_DATABASE
    if not database or change.path or change.copy_from:
        raise ProtocolFault("cannot take a change", reason="it is not the content of one database file")
    if not 512 <= step <= BLOCK_MAX or step & (step - 1) or not 0 < change.size <= SIZE_MAX:
        raise ProtocolFault("cannot take a change", reason=f"impossible sizes {change.size} and {step}")
    if len(change.hash) != 16:
        raise ProtocolFault("cannot take a change", reason="no hash of the whole")


def _write_all(fd: int, data: memoryview, offset: int, length: int) -> None:
    if len(data) != length:
        raise ProtocolFault("cannot take a piece of a database", reason="payload too short")
    done = 0
    while done < length:
        done += os.pwrite(fd, data[done:], offset + done)


def _copy_range(source: int, target: int, start: int, end: int) -> None:
    while start < end:
        done = os.copy_file_range(source, target, min(_PIECE, end - start), start, start)
        if done == 0:
            return
        start += done


def _exchanged(one: str, other: str) -> bool:
    """Swaps two names at once, where the C library and the filesystem can; renameat2(2)."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:
        return False
    return bool(swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)


def _cloned(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True
