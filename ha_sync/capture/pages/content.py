"""What a database file held at one accepted copy, and the frames that turn one content into the next.

A group is one whole state: its frames carry the blocks that differ from the content the Standby has. Pure but for the
generated protocol classes. Sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ha_proto.sync.v1 import replication_pb2 as wire
from ha_sync.core.frame import FRAME_TARGET_BYTES, Body, Frame
from ha_sync.core.position import Position
from ha_sync.errors import ProtocolFault
from ha_sync.files.blocks import HASH_BYTES, block_count, block_hash, whole_hash


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """The content of a file by its hashes, and what is kept of its metadata."""

    size: int
    block_size: int
    hashes: bytes
    owner_and_mode: tuple[int, int, int] | None = None  # uid, gid, mode; None: not known of the Standby's file

    @property
    def whole(self) -> bytes:
        """The hash of the whole."""
        return whole_hash(self.hashes, self.size)


def frames_of(content: Known, *, mtime_ns: int, blocks: Mapping[int, bytes], position: Position) -> Iterator[Frame]:
    """One group; ``blocks`` are those that the Standby does not have."""
    zero = block_hash(bytes(content.block_size))
    holes = [n for n in sorted(blocks) if content.hashes[n * HASH_BYTES : (n + 1) * HASH_BYTES] == zero]
    empty = set(holes)
    full = [n for n in sorted(blocks) if n not in empty]
    slices = list(_slices(full, blocks)) or [[]]
    for index, numbers in enumerate(slices):
        last = index == len(slices) - 1
        payload = b"".join(blocks[n] for n in numbers)
        change = _change(content, mtime_ns)
        change.blocks.extend(numbers)
        change.payload_bytes = len(payload)
        change.more = not last
        if index == 0:
            change.zero_blocks.extend(holes)
        yield Frame(
            position=position,
            kind=Body.TREE,
            body=wire.TreeChanges(changes=[change]).SerializeToString(),
            payload=payload,
            group_end=last,
        )


def nothing(position: Position) -> Frame:
    """Only the position moves."""
    return Frame(position=position, kind=Body.NOTHING, body=b"", payload=b"", group_end=True)


def known_of_inventory(body: bytes) -> Known | None:
    """The Standby's file as its sink described it; None where it has none or the description is of no use."""
    try:
        inventory = wire.TreeInventory.FromString(body)
    except Exception as error:
        raise ProtocolFault("cannot read the inventory", reason=str(error)) from error
    for entry, hashes in zip(inventory.entries, inventory.block_hashes, strict=False):
        if entry.path or entry.type != wire.TreeChange.TYPE_DATABASE or entry.block_size == 0:
            continue
        counted = block_count(entry.size, entry.block_size) * HASH_BYTES
        if counted == len(hashes) and whole_hash(hashes, entry.size) == entry.hash:
            meta = (entry.uid, entry.gid, entry.mode)
            return Known(size=entry.size, block_size=entry.block_size, hashes=hashes, owner_and_mode=meta)
    return None


def _change(content: Known, mtime_ns: int) -> wire.TreeChange:
    uid, gid, mode = content.owner_and_mode or (0, 0, 0o600)
    return wire.TreeChange(
        action=wire.TreeChange.ACTION_PUT,
        type=wire.TreeChange.TYPE_DATABASE,
        path=b"",
        mode=mode,
        uid=uid,
        gid=gid,
        mtime_ns=mtime_ns,
        size=content.size,
        hash=content.whole,
        block_size=content.block_size,
    )


def _slices(numbers: list[int], blocks: Mapping[int, bytes]) -> Iterator[list[int]]:
    gathered: list[int] = []
    weight = 0
    for number in numbers:
        if gathered and weight + len(blocks[number]) > FRAME_TARGET_BYTES:
            yield gathered
            gathered, weight = [], 0
        gathered.append(number)
        weight += len(blocks[number])
    if gathered:
        yield gathered
