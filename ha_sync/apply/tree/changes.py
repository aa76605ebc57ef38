"""Reads a frame of tree changes and believes nothing of it: whatever no correct peer sends is a ProtocolFault.

Nothing is allocated or opened before it was checked. Sizes in bytes. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.core.frame import FRAME_HEADER_MAX, FRAME_PAYLOAD_MAX, Body, Frame
from ha_sync.core.position import Position
from ha_sync.errors import ProtocolFault
from ha_sync.files.blocks import BLOCK_MAX, BLOCK_MIN, HASH_BYTES, block_count
from ha_sync.files.chunks import MOVES_MAX
from ha_sync.files.confine import components
from ha_sync.files.metadata import XATTRS_MAX_BYTES
from ha_sync.files.places import is_ours

SIZE_MAX = 1 << 46
"""64 TiB: no file of a PBX is larger, and a lie must not make us allocate its list of blocks."""
BLOCKS_MAX = 1 << 20
LINK_TARGET_MAX = 4095
VERSION_MAX = 16
PART_BYTES = 1024
"""What a parsed change takes in memory, whose path is short: six times what it took on the wire."""
ID_MAX = (1 << 32) - 2  # the highest value means "leave it" to chown
TIME_MAX = (1 << 63) - 1

PUT = pb.TreeChange.ACTION_PUT
DELETE = pb.TreeChange.ACTION_DELETE
GROW = pb.TreeChange.ACTION_GROW
META = pb.TreeChange.ACTION_META
FILE = pb.TreeChange.TYPE_FILE
DIRECTORY = pb.TreeChange.TYPE_DIRECTORY
SYMLINK = pb.TreeChange.TYPE_SYMLINK
DATABASE = pb.TreeChange.TYPE_DATABASE

_CONTENT_TYPES = frozenset({FILE, DATABASE})
_TYPES = frozenset({FILE, DIRECTORY, SYMLINK, DATABASE})
_ACTIONS = frozenset({PUT, DELETE, GROW, META})

Part = tuple[pb.TreeChange, memoryview]
"""A change and its share of the payload."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A frame that was checked."""

    position: Position
    parts: tuple[Part, ...]
    group_end: bool
    consistent: bool
    size: int  # in memory, about


def decode(frame: Frame) -> Piece:
    """Raises ProtocolFault for what no correct peer sends."""
    if len(frame.body) > FRAME_HEADER_MAX or len(frame.payload) > FRAME_PAYLOAD_MAX:
        raise _fault("a frame is too large")
    if frame.kind is Body.NOTHING:
        if frame.body or len(frame.payload):
            raise _fault("a frame without changes carries content")
        parts: tuple[Part, ...] = ()
    elif frame.kind is Body.TREE:
        parts = _parts(frame)
    else:
        raise _fault(f"a frame of kind {frame.kind.name} in a tree")
    return Piece(
        position=frame.position,
        parts=parts,
        group_end=frame.group_end,
        consistent=frame.consistent,
        size=frame.size + PART_BYTES * len(parts),
    )


def _parts(frame: Frame) -> tuple[Part, ...]:
    try:
        changes = pb.TreeChanges.FromString(frame.body).changes
    except DecodeError as error:
        raise _fault("cannot parse the changes") from error
    payload = memoryview(frame.payload)
    parts: list[Part] = []
    at = 0
    for change in changes:
        length = change.payload_bytes
        if length > len(payload) - at:
            raise _fault("the payload is shorter than its changes say", change)
        _check(change)
        parts.append((change, payload[at : at + length]))
        at += length
    if at != len(payload):
        raise _fault("the payload is longer than its changes say")
    return tuple(parts)


def _fault(reason: str, change: pb.TreeChange | None = None) -> ProtocolFault:
    return ProtocolFault("refused a frame", subject=repr(change.path[:200]) if change else "", reason=reason)


def _check(change: pb.TreeChange) -> None:
    _check_path(change.path, change)
    action = change.action
    if action not in _ACTIONS:
        raise _fault(f"unknown action {action}", change)
    if action == DELETE:
        if not change.path or change.payload_bytes:
            raise _fault("an impossible deletion", change)
        return
    kind = change.type
    if kind not in _TYPES:
        raise _fault(f"unknown type {kind}", change)
    if not change.path and kind != DIRECTORY:
        raise _fault("the root is no directory", change)
    _check_metadata(change)
    if kind == SYMLINK:
        _check_link(change)
    if action == PUT and kind in _CONTENT_TYPES:
        _check_content(change)
    elif action == GROW:
        if kind not in _CONTENT_TYPES or max(change.offset + change.payload_bytes, change.size) > SIZE_MAX:
            raise _fault("an impossible growth", change)
        if len(change.version) > VERSION_MAX:
            raise _fault("an impossible version", change)
    elif change.payload_bytes:
        raise _fault("content where none belongs", change)


def _check_path(path: bytes, change: pb.TreeChange) -> None:
    components(path)
    if is_ours(path):
        raise _fault("a name that is the standby's own", change)


def _check_metadata(change: pb.TreeChange) -> None:
    if change.mode > 0o7777 or change.uid > ID_MAX or change.gid > ID_MAX or abs(change.mtime_ns) > TIME_MAX:
        raise _fault("impossible mode, owner or time", change)
    if not change.xattrs:
        return
    total = 0
    for xattr in change.xattrs:
        name = xattr.name.encode()
        if not name or len(name) > 255 or b"\0" in name:
            raise _fault("an impossible attribute", change)
        total += len(name) + len(xattr.value)
    if total > XATTRS_MAX_BYTES:
        raise _fault("attributes are too large", change)


def _check_link(change: pb.TreeChange) -> None:
    target = change.link_target
    if change.action == PUT and (not target or len(target) > LINK_TARGET_MAX or b"\0" in target):
        raise _fault("an impossible link target", change)


def _check_content(change: pb.TreeChange) -> None:
    if len(change.hash) != HASH_BYTES:
        raise _fault("a hash of a wrong length", change)
    if change.copy_from:
        _check_path(change.copy_from, change)
    size, step = change.size, change.block_size
    if size > SIZE_MAX:
        raise _fault("an impossible size", change)
    if not size:
        if change.blocks or change.zero_blocks or change.payload_bytes:
            raise _fault("content of an empty file", change)
        return
    if not BLOCK_MIN <= step <= BLOCK_MAX or step & (step - 1):
        raise _fault("an impossible block size", change)
    count = block_count(size, step)
    if count > BLOCKS_MAX:
        raise _fault("too many blocks", change)
    _check_ascending(change.zero_blocks, count, change)
    _check_ascending(change.blocks, count, change)
    _check_moves(change, size)
    _check_amount(change, size, step)


def _check_ascending(numbers: object, count: int, change: pb.TreeChange) -> None:
    before = -1
    for number in numbers:  # type: ignore[attr-defined]
        if number <= before or number >= count:
            raise _fault("block numbers out of order or beyond the file", change)
        before = number


def _check_moves(change: pb.TreeChange, size: int) -> None:
    if not change.moves:
        return
    if len(change.moves) > MOVES_MAX or change.copy_from or change.more:
        raise _fault("impossible moves", change)
    at = 0
    for move in change.moves:
        if not move.length or move.offset < at or move.offset + move.length > size or move.source > SIZE_MAX:
            raise _fault("moves out of order or beyond the file", change)
        at = move.offset + move.length


def _check_amount(change: pb.TreeChange, size: int, step: int) -> None:
    """The payload holds the listed blocks, but for the head and the tail of a block that is cut."""
    blocks = change.blocks
    if not blocks:
        if change.payload_bytes or change.offset:
            raise _fault("content that belongs to no block", change)
        return
    last = min(step, size - blocks[-1] * step)
    whole = (len(blocks) - 1) * step + last
    if change.offset >= (step if len(blocks) > 1 else last):
        raise _fault("a piece begins beyond its block", change)
    expected = whole - change.offset
    least = expected - last + 1 if change.more else expected
    if len(blocks) == 1 and change.more:
        least = 1
    if not least <= change.payload_bytes <= expected:
        raise _fault("the payload is not what the blocks need", change)
