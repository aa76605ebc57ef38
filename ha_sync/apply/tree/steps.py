"""A step: one change as it is about to be published, and its durable form in the catalogue's intent.

Steps are stored, in order and in one transaction with the position, before the first of them is performed. A crash
in the middle is finished at the next open: every step tells from what stands on the disk whether it was done. That
works because a staged object's name is never used twice, and a removed object keeps its inode until the intent is
cleared. Pure.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.apply.tree.changes import DATABASE, DIRECTORY, FILE, SYMLINK
from ha_sync.catalogue.tree import TYPE_DIRECTORY, TYPE_FILE, TYPE_SYMLINK, Entry, Witness
from ha_sync.files.metadata import Metadata, encode_xattrs

_HEAD = struct.Struct("<BQHI")  # kind, inode, length of the source's name, length of the change

TYPES = {FILE: TYPE_FILE, DATABASE: TYPE_FILE, DIRECTORY: TYPE_DIRECTORY, SYMLINK: TYPE_SYMLINK}


class Kind(enum.IntEnum):
    """What is done."""

    PUBLISH = 1  # the staged object at ``source`` takes the path
    REMOVE = 2  # the object with ``inode`` leaves the path
    ADJUST = 3  # metadata of the object with ``inode``
    DIRECTORY = 4  # a directory with this metadata stands at the path


@dataclass(slots=True, kw_only=True)
class Step:
    """See the module. ``source`` is below the root; ``size`` counts for limits."""

    kind: Kind
    change: pb.TreeChange
    source: bytes = b""
    inode: int = 0
    block_hashes: bytes = b""

    def encode(self) -> bytes:
        """For the intent."""
        change = self.change.SerializeToString()
        head = _HEAD.pack(self.kind, self.inode, len(self.source), len(change))
        return head + self.source + change + self.block_hashes

    @classmethod
    def decode(cls, data: bytes) -> Step:
        """From the intent."""
        kind, inode, source_length, change_length = _HEAD.unpack_from(data)
        at = _HEAD.size + source_length
        return cls(
            kind=Kind(kind),
            change=pb.TreeChange.FromString(data[at : at + change_length]),
            source=data[_HEAD.size : at],
            inode=inode,
            block_hashes=data[at + change_length :],
        )

    def entry(self, witness: Witness) -> Entry:
        """What the catalogue knows once the step is done."""
        change = self.change
        return Entry(
            path=change.path,
            type=TYPES[change.type],
            mode=change.mode,
            uid=change.uid,
            gid=change.gid,
            mtime_ns=change.mtime_ns,
            size=change.size,
            hash=change.hash,
            block_size=change.block_size,
            block_hashes=self.block_hashes if len(self.block_hashes) > 16 else b"",
            link_target=change.link_target,
            xattrs=xattrs_of(change),
            witness=witness,
        )


def xattrs_of(change: pb.TreeChange) -> bytes:
    """Canonical."""
    return encode_xattrs((item.name, item.value) for item in change.xattrs) if change.xattrs else b""


def metadata_of(change: pb.TreeChange) -> Metadata:
    """As announced."""
    return Metadata(
        mode=change.mode, uid=change.uid, gid=change.gid, mtime_ns=change.mtime_ns, xattrs=xattrs_of(change)
    )


def in_order(steps: list[Step]) -> list[Step]:
    """A group's steps, with each unit's mark files where Asterisk puts them: ``.txt`` last to come and first to go."""
    if not any(step.change.unit for step in steps):
        return steps
    replaced = {step.change.path for step in steps if step.kind is not Kind.DIRECTORY}
    paths = {step.change.path for step in steps}
    if len(paths) < len(steps) or any(_lies_below(path, replaced) for path in paths):
        return steps  # their order has a meaning of its own
    return sorted(steps, key=_rank)


def _lies_below(path: bytes, others: set[bytes]) -> bool:
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        if path in others:
            return True
    return False


def _rank(step: Step) -> int:
    if step.change.unit and step.change.path.endswith(b".txt"):
        return {Kind.REMOVE: 0, Kind.PUBLISH: 2}.get(step.kind, 1)
    return 1
