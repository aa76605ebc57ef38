"""An object's metadata, the same bytes on both nodes: read from a descriptor or a name, and put back.

*Metadata* is what is replicated beside the content: type, permission bits, owner, modification time, and the extended
attributes that carry meaning for a PBX's files: ``user.*``, file capabilities and POSIX ACLs. Nothing else is read
(``security.selinux`` and ``trusted.*`` belong to the node).

Canonical attributes: sorted by name, each as name length (2 bytes, little-endian), name, value length (4 bytes), value.
Equal sets give equal bytes, so two nodes compare them with one comparison; no attributes give ``b""``.

Applying never fails because this process is not root: what the kernel refuses is returned, for the caller to report.
Times in nanoseconds, sizes in bytes. Blocking; no state.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from ha_sync.catalogue.tree import TYPE_DIRECTORY, TYPE_FILE, TYPE_SYMLINK
from ha_sync.errors import ProtocolFault

XATTRS_MAX_BYTES = 64 * 1024
"""Attributes whose canonical form is longer are left out altogether, and the reader is told."""

TYPE_SPECIAL = 0
"""Not replicated: a FIFO, a socket, a device."""

_EXACT = frozenset({"security.capability", "system.posix_acl_access", "system.posix_acl_default"})
_NO_ATTRIBUTES = frozenset({errno.ENOTSUP, errno.ENODATA, errno.ENOSYS})
_REFUSED = frozenset({errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EINVAL})
_NAME_LENGTH = struct.Struct("<H")
_VALUE_LENGTH = struct.Struct("<I")

_TYPES = {stat.S_IFREG: TYPE_FILE, stat.S_IFDIR: TYPE_DIRECTORY, stat.S_IFLNK: TYPE_SYMLINK}

Pairs = tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What is put on an object beside its content."""

    mode: int  # permission bits, 07777
    uid: int
    gid: int
    mtime_ns: int
    xattrs: bytes = b""  # canonical


@dataclass(frozen=True, slots=True, kw_only=True)
class NotApplied:
    """Something the kernel refused; the rest was applied."""

    what: str  # owner | mode | an attribute's name
    reason: str


def object_type(st_mode: int) -> int:
    """TYPE_FILE, TYPE_DIRECTORY, TYPE_SYMLINK, or TYPE_SPECIAL for what is not replicated."""
    return _TYPES.get(stat.S_IFMT(st_mode), TYPE_SPECIAL)


def metadata_of(status: os.stat_result, xattrs: bytes = b"") -> Metadata:
    """From a stat of the object itself."""
    return Metadata(
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        mtime_ns=status.st_mtime_ns,
        xattrs=xattrs,
    )


# ---- canonical attributes


def is_replicated(name: str) -> bool:
    """Whether an attribute of this name is replicated."""
    return name.startswith("user.") or name in _EXACT


def encode_xattrs(pairs: Iterable[tuple[str, bytes]]) -> bytes:
    """The canonical form."""
    parts: list[bytes] = []
    for name, value in sorted((os.fsencode(name), value) for name, value in pairs):
        parts += (_NAME_LENGTH.pack(len(name)), name, _VALUE_LENGTH.pack(len(value)), value)
    return b"".join(parts)


def decode_xattrs(canonical: bytes) -> Pairs:
    """Back from the canonical form; raises ProtocolFault where the bytes are not one."""
    pairs: list[tuple[str, bytes]] = []
    at = 0
    try:
        while at < len(canonical):
            name, at = _slice(canonical, at, _NAME_LENGTH)
            value, at = _slice(canonical, at, _VALUE_LENGTH)
            pairs.append((os.fsdecode(name), value))
    except struct.error as error:
        raise ProtocolFault("cannot read extended attributes", reason="cut short") from error
    return tuple(pairs)


def _slice(data: bytes, at: int, length: struct.Struct) -> tuple[bytes, int]:
    (size,) = length.unpack_from(data, at)
    start = at + length.size
    if start + size > len(data):
        raise ProtocolFault("cannot read extended attributes", reason="cut short")
    return data[start : start + size], start + size


# ---- reading


def read_xattrs(target: int | bytes, *, limit: int = XATTRS_MAX_BYTES) -> tuple[bytes, bool]:
    """Canonical attributes of a descriptor, or of a path (not followed), and whether they were too large.

    A symlink has no descriptor: ``named(dir_fd, name)`` makes a path of it. Filesystems without attributes give none.
    """
    follow = isinstance(target, int)
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return b"", False
        raise
    if not names:
        return b"", False
    return _read_named(target, [name for name in names if is_replicated(name)], follow=follow, limit=limit)


def _read_named(target: int | bytes, names: list[str], *, follow: bool, limit: int) -> tuple[bytes, bool]:
    pairs: list[tuple[str, bytes]] = []
    for name in names:
        try:
            pairs.append((name, os.getxattr(target, name, follow_symlinks=follow)))
        except OSError as error:
            # Removed between the two calls, or not ours to read: the object goes without it.
            if error.errno not in _NO_ATTRIBUTES | {errno.EACCES, errno.EPERM}:
                raise
    canonical = encode_xattrs(pairs)
    return (b"", True) if len(canonical) > limit else (canonical, False)


def named(dir_fd: int, name: bytes) -> bytes:
    """A path to an entry of an open directory, for calls that know no dirfd. Its last component is not followed."""
    assert b"/" not in name, name
    return b"/proc/self/fd/%d/%s" % (dir_fd, name)


# ---- applying


def apply_to_descriptor(fd: int, wanted: Metadata) -> tuple[NotApplied, ...]:
    """Owner, attributes, mode and times of an open file or directory, in the order in which none undoes another.

    chown clears set-user-id bits and capabilities, an ACL changes the group bits: so owner, attributes, mode, times.
    """
    present = os.fstat(fd)
    refused: list[NotApplied] = []
    if (present.st_uid, present.st_gid) != (wanted.uid, wanted.gid):
        _attempt(refused, "owner", lambda: os.fchown(fd, wanted.uid, wanted.gid))
    refused += _apply_xattrs(fd, wanted.xattrs)
    # Read again: the calls above change these bits.
    if stat.S_IMODE(os.fstat(fd).st_mode) != wanted.mode:
        _attempt(refused, "mode", lambda: os.fchmod(fd, wanted.mode))
    os.utime(fd, ns=(wanted.mtime_ns, wanted.mtime_ns))
    return tuple(refused)


def apply_to_symlink(dir_fd: int, name: bytes, wanted: Metadata) -> tuple[NotApplied, ...]:
    """Owner, attributes and times of a symlink itself; Linux keeps no permission bits for it."""
    present = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    refused: list[NotApplied] = []
    if (present.st_uid, present.st_gid) != (wanted.uid, wanted.gid):
        _attempt(refused, "owner", lambda: os.chown(name, wanted.uid, wanted.gid, dir_fd=dir_fd, follow_symlinks=False))
    refused += _apply_xattrs(named(dir_fd, name), wanted.xattrs)
    os.utime(name, ns=(wanted.mtime_ns, wanted.mtime_ns), dir_fd=dir_fd, follow_symlinks=False)
    return tuple(refused)


def _apply_xattrs(target: int | bytes, canonical: bytes) -> list[NotApplied]:
    follow = isinstance(target, int)
    refused: list[NotApplied] = []
    present, too_large = read_xattrs(target)
    if present == canonical and not too_large:
        return refused
    wanted = dict(decode_xattrs(canonical))
    have = _present(target, follow=follow)
    for name in sorted(have.keys() - wanted.keys()):
        _attempt(refused, name, partial(os.removexattr, target, name, follow_symlinks=follow))
    for name, value in wanted.items():
        if not is_replicated(name):
            refused.append(NotApplied(what=name, reason="not a replicated attribute"))
        elif have.get(name) != value:
            _attempt(refused, name, partial(os.setxattr, target, name, value, follow_symlinks=follow))
    return refused


def _present(target: int | bytes, *, follow: bool) -> dict[str, bytes]:
    try:
        names = os.listxattr(target, follow_symlinks=follow)
    except OSError as error:
        if error.errno in _NO_ATTRIBUTES:
            return {}
        raise
    return {n: os.getxattr(target, n, follow_symlinks=follow) for n in names if is_replicated(n)}


def _attempt(refused: list[NotApplied], what: str, call: Callable[[], None]) -> None:
    try:
        call()
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        refused.append(NotApplied(what=what, reason=error.strerror or str(error)))
