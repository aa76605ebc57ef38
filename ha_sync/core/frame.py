"""A frame: the unit of a dataset's stream, opaque to the stream itself.

A *group* is one or more frames that become visible on the Standby together; its last frame has ``group_end`` set and
all its frames carry the position that is reached when the group is durable. Sizes in bytes. Pure.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ha_sync.core.position import Position

FRAME_TARGET_BYTES = 1024 * 1024
"""A packer closes a frame when it has reached this."""

FRAME_PAYLOAD_MAX = 2 * 1024 * 1024
"""No payload, compressed or not, is larger; a frame that claims more is refused before anything is allocated."""

FRAME_HEADER_MAX = 2 * 1024 * 1024
"""No header is larger (a frame of many small files is mostly header)."""


class Body(enum.IntEnum):
    """What a frame's ``body`` holds: which message of the protocol its bytes are."""

    TREE = 1  # ha_proto.sync.v1.TreeChanges
    ROWS = 2  # ha_proto.sync.v1.RowsImage
    NOTHING = 3  # no change: only the position (and ``consistent``) moves


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One message from a source to a sink.

    ``payload`` is uncompressed here: compression is the stream's business. ``consistent`` says that a sink which has
    made this group durable holds a state that the Active once had (False in the middle of a full sync of a tree).
    """

    position: Position
    kind: Body
    body: bytes
    payload: bytes | memoryview
    group_end: bool
    consistent: bool = True

    @property
    def size(self) -> int:
        """Bytes that count against the window."""
        return len(self.body) + len(self.payload)
