"""Puts the slices of an image together: in memory up to a bound, above it in a temporary file.

Every size is checked before anything is allocated; the hash of the whole is checked before the image is opened.
"""

from __future__ import annotations

import os

import xxhash
from google.protobuf.message import DecodeError

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.core.frame import Frame
from ha_sync.database.image import HEADER_BYTES, SMALL_MAX_BYTES, remove_file
from ha_sync.errors import ProtocolFault, RepairNeeded, Retryable


class Incoming:
    """One image on its way in; ``path`` is where a large one is kept."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.size = 0
        self._got = 0
        self._content = bytearray()
        self._file: int | None = None
        self._hash = xxhash.xxh3_128()

    @property
    def in_file(self) -> bool:
        """Whether the image stands in the file."""
        return self._file is not None

    @property
    def content(self) -> bytes:
        """The whole of a small image."""
        return bytes(self._content)

    @property
    def header(self) -> bytes:
        """The first 100 bytes of the image."""
        if self._file is None:
            return bytes(self._content[:HEADER_BYTES])
        return os.pread(self._file, HEADER_BYTES, 0)

    def take(self, frame: Frame) -> None:
        """Adds a slice. Raises ``ProtocolFault``, ``RepairNeeded`` (hash), ``Retryable`` (disk full)."""
        try:
            body = pb.RowsImage.FromString(frame.body)
        except DecodeError as error:
            raise ProtocolFault("cannot read a frame of rows", reason=str(error)) from None
        if self._got == 0:
            self._begin(body.image_bytes)
        self._check(body, len(frame.payload), last=frame.group_end)
        self._store(frame.payload)
        if frame.group_end and self._hash.digest() != body.image_hash:
            raise RepairNeeded("an image of rows arrived damaged", reason="its hash differs", hint="it is sent again")

    def discard(self) -> None:
        """Frees memory and file."""
        self._content = bytearray()
        if self._file is not None:
            os.close(self._file)
            self._file = None
            remove_file(self.path)

    def _begin(self, size: int) -> None:
        self.size = size
        if size <= SMALL_MAX_BYTES:
            return
        free = os.statvfs(os.path.dirname(os.path.abspath(self.path)))
        if size > free.f_bavail * free.f_frsize:
            raise Retryable("no room for an image of rows", subject=self.path, reason=f"{size} bytes are needed")
        remove_file(self.path)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    def _check(self, body: pb.RowsImage, length: int, *, last: bool) -> None:
        end = self._got + length
        whole = end == self.size
        if body.image_bytes != self.size or body.offset != self._got or end > self.size or not length:
            raise ProtocolFault("refused a frame of rows", reason="its slices do not fit together")
        if whole is not last or bool(body.image_hash) is not last:
            raise ProtocolFault("refused a frame of rows", reason="the group ends before the image, or after it")

    def _store(self, payload: bytes | memoryview) -> None:
        self._hash.update(payload)
        if self._file is None:
            self._content += payload
        else:
            self._write(payload)
        self._got += len(payload)

    def _write(self, payload: bytes | memoryview) -> None:
        assert self._file is not None
        view = memoryview(payload)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as error:
            raise Retryable("cannot keep an image of rows", subject=self.path, reason=str(error)) from None
