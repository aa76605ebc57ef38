"""Comparing two trees by ranges: what was seen of an object, the digest of a range, how two of one path differ.

A *range* is a run of objects in walk order (``key_of`` a path: NUL for ``/``). Both nodes make the digest of the same
range; only where the digests differ are the entries themselves exchanged and merged. Equal entries give equal records,
different ones different records: every length is written before its bytes. Pure. Sizes in bytes, times in nanoseconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from struct import Struct
from typing import NamedTuple, Protocol

import xxhash

from ha_sync.core.examine import Fault

RANGE_OBJECTS = 1000
RANGE_BYTES = 32 * 1024 * 1024
"""A range ends at either; a single larger file is a range of its own."""

_FIXED = Struct("<BHIIqQHHI?")


class Seen(NamedTuple):
    """One object as a node saw it."""

    key: bytes
    type: int
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    hash: bytes = b""  # 16 bytes; empty where the content was not looked at, or is none
    link_target: bytes = b""
    xattrs: bytes = b""
    unreadable: bool = False


def record_of(seen: Seen) -> bytes:
    """The entry as the digest takes it."""
    key, kind, mode, uid, gid, mtime_ns, size, content, link, xattrs, unreadable = seen
    head = _FIXED.pack(
        kind, mode, uid, gid, mtime_ns, size, len(key), len(link), len(xattrs) << 1 | bool(content), unreadable
    )
    return head + key + content + link + xattrs


class Status(Protocol):
    """What stat says of a file."""

    @property
    def st_mode(self) -> int: ...  # noqa: D102
    @property
    def st_uid(self) -> int: ...  # noqa: D102
    @property
    def st_gid(self) -> int: ...  # noqa: D102
    @property
    def st_mtime_ns(self) -> int: ...  # noqa: D102
    @property
    def st_size(self) -> int: ...  # noqa: D102


def file_head(key: bytes, kind: int, status: Status, size: int, xattrs: bytes, *, content: bool) -> bytes:
    """The record of a file up to its key, without an object in between: it is made a million times."""
    return _FIXED.pack(
        kind,
        status.st_mode & 0o7777,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        size,
        len(key),
        0,
        len(xattrs) << 1 | content,
        False,
    )


def digest_of(entries: Iterable[Seen]) -> bytes:
    """16 bytes for a range."""
    return xxhash.xxh3_128_digest(b"".join(map(record_of, entries)))


def merged(active: Sequence[Seen], standby: Sequence[Seen]) -> Iterator[tuple[Seen | None, Seen | None]]:
    """What differs between two ranges in walk order: the Active's entry, the Standby's, or both."""
    ours, theirs = iter(active), iter(standby)
    one, other = next(ours, None), next(theirs, None)
    while one is not None or other is not None:
        if other is None or (one is not None and one.key < other.key):
            yield one, None
            one = next(ours, None)
        elif one is None or other.key < one.key:
            yield None, other
            other = next(theirs, None)
        else:
            if one != other:
                yield one, other
            one, other = next(ours, None), next(theirs, None)


def fault_between(active: Seen | None, standby: Seen | None) -> Fault | None:
    """How the Standby's object differs from the Active's; None: not at all."""
    if active == standby:
        return None
    if standby is None:
        return Fault.MISSING
    if active is None:
        return Fault.SURPLUS
    content = ("type", "size", "hash", "link_target")
    if any(getattr(active, name) != getattr(standby, name) for name in content):
        return Fault.CONTENT
    return Fault.METADATA


def unlike(active: Seen, standby: Seen) -> tuple[str, ...]:
    """The names of what differs, for people."""
    return tuple(
        name
        for name in Seen._fields
        if name not in {"key", "unreadable"} and getattr(active, name) != getattr(standby, name)
    )
