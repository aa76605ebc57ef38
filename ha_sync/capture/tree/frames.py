"""Builds the frames of one group: changes in a message, their content in a payload beside it, nothing copied twice.

Content is read straight into the payload's buffer. A frame is closed at FRAME_TARGET_BYTES of payload or HEADER_TARGET
of header. Sizes in bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.core.frame import FRAME_TARGET_BYTES, Body, Frame
from ha_sync.core.position import Position

HEADER_TARGET = 128 * 1024
BUFFER_MIN = 64 * 1024
_FIXED = 96  # of one change: numbers, tags, hash


class FrameBuilder:
    """Collects changes until ``full``; ``take`` makes a frame of them."""

    def __init__(self) -> None:
        self._message = pb.TreeChanges()
        self._header = 0
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)
        self.used = 0

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return self._header == 0

    def lacks_room(self, size: int) -> bool:
        """Whether a frame should be taken before ``size`` bytes of content are placed."""
        return self._header > 0 and (self.used + size > FRAME_TARGET_BYTES or self._header > HEADER_TARGET)

    def place(self, size: int) -> memoryview:
        """Where ``size`` bytes of content may be read to; they count when ``keep`` says so."""
        end = self.used + size
        if end > len(self._buffer):
            larger = bytearray(max(end, min(FRAME_TARGET_BYTES, max(BUFFER_MIN, 4 * len(self._buffer)))))
            larger[: self.used] = self._view[: self.used]
            self._buffer, self._view = larger, memoryview(larger)
        return self._view[self.used : end]

    def keep(self, size: int) -> None:
        """That many bytes of the last place belong to the payload."""
        self.used += size

    def add(self, *, path: bytes, xattrs: tuple[tuple[str, bytes], ...] = (), **fields: Any) -> None:
        """Adds a change; ``payload_bytes`` of what was kept belong to it."""
        change = self._message.changes.add(path=path, **fields)
        self._header += _FIXED + len(path)
        for name, value in xattrs:
            change.xattrs.add(name=name, value=value)
            self._header += len(name) + len(value) + 8

    def take(self, position: Position, *, group_end: bool, consistent: bool) -> Frame:
        """Everything added so far as a frame; begins an empty one."""
        frame = Frame(
            position=position,
            kind=Body.TREE,
            body=self._message.SerializeToString(),
            payload=self._view[: self.used],
            group_end=group_end,
            consistent=consistent,
        )
        self._message = pb.TreeChanges()
        self._header = self.used = 0
        self._buffer = bytearray()
        self._view = memoryview(self._buffer)
        return frame


def nothing(position: Position, *, consistent: bool) -> Frame:
    """A frame that only moves the position."""
    return Frame(
        position=position, kind=Body.NOTHING, body=b"", payload=b"", group_end=True, consistent=consistent
    )  # fmt: skip


def frames_of(builder: FrameBuilder, steps: Iterator[None], position: Position, *, consistent: bool) -> Iterator[Frame]:
    """Runs the steps of a group, which say with each yield that a frame must be taken, and ends the group.

    Yields nothing where the steps added nothing.
    """
    begun = False
    for _ in steps:
        begun = True
        yield builder.take(position, group_end=False, consistent=consistent)
    if not builder.empty or begun:
        yield builder.take(position, group_end=True, consistent=consistent)
