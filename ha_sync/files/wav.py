"""The header of a WAV recording: reads it, and gives an interrupted one its true lengths so that it plays.

A recorder writes the header with zero lengths and puts the true ones in when it closes the file; after a crash they
are still zero. RIFF counts in bytes, little-endian, at most 4 GiB. Known: any ``fmt`` chunk (PCM, GSM 6.10 as
Asterisk's ``wav49``), with or without ``fact``. Source: Multimedia Programming Interface and Data Specifications
1.0 (Microsoft, IBM, 1991). Blocking.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass

HEADER_MAX = 4096
"""The data chunk of a recording begins well before this."""
SUFFIXES = (b".wav", b".WAV", b".wav49")
GSM610 = 49
GSM610_BLOCK_SAMPLES = 320

_LENGTH = struct.Struct("<I")
_CHUNK = struct.Struct("<4sI")
_FORMAT = struct.Struct("<HHIIH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the header says, and where."""

    raw: bytes  # all bytes before the sound
    riff_length: int
    data_at: int  # where the sound begins
    data_length: int
    format: int
    block: int  # bytes of one sample frame or compressed block
    fact_at: int | None = None  # where the number of samples stands


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """What was written over."""

    original: bytes  # all bytes before the sound, as they were
    riff_length: int
    data_length: int


def parse(head: bytes) -> Header | None:
    """The header at the start of a file; None where it is no WAV or the sound does not begin within ``head``."""
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return None
    at = 12
    sound_format, block, fact_at = 0, 1, None
    while at + _CHUNK.size <= len(head):
        name, length = _CHUNK.unpack_from(head, at)
        body = at + _CHUNK.size
        if name == b"data":
            return Header(
                raw=head[:body],
                riff_length=_LENGTH.unpack_from(head, 4)[0],
                data_at=body,
                data_length=length,
                format=sound_format,
                block=max(1, block),
                fact_at=fact_at,
            )
        if name == b"fmt " and body + 14 <= len(head):
            sound_format, _, _, _, block = _FORMAT.unpack_from(head, body)
        elif name == b"fact" and length >= 4:
            fact_at = body
        at = body + length + (length & 1)
    return None


def read_header(fd: int) -> Header | None:
    """Of an open file."""
    return parse(os.pread(fd, HEADER_MAX, 0))


def repair(fd: int) -> Repair | None:
    """Puts the true lengths in; None where they are right already, or where it is no WAV. Does not sync."""
    header = read_header(fd)
    size = os.fstat(fd).st_size
    if header is None or size - 8 > 0xFFFFFFFF:
        return None
    room = size - header.data_at
    length = header.data_length
    if length == 0 or length > room:
        length = room - room % header.block
    end = header.data_at + length
    end += length & 1 if end + (length & 1) <= size else 0
    # What follows the sound (a LIST chunk) belongs to the RIFF; a torn block at the end does not.
    riff = (size if header.data_length == length else end) - 8
    if not length or (riff, length) == (header.riff_length, header.data_length) or _is_whole(header, size):
        return None
    os.pwrite(fd, _LENGTH.pack(riff), 4)
    os.pwrite(fd, _LENGTH.pack(length), header.data_at - 4)
    if header.fact_at is not None and header.format == GSM610:
        os.pwrite(fd, _LENGTH.pack(length // header.block * GSM610_BLOCK_SAMPLES), header.fact_at)
    return Repair(original=header.raw, riff_length=riff, data_length=length)


def _is_whole(header: Header, size: int) -> bool:
    """Both lengths are told and lie within the file: some writers leave out a padding byte, which players take."""
    if not header.data_length:
        return header.riff_length == header.data_at - 8 and size == header.data_at
    return header.data_at + header.data_length <= size and header.data_at <= header.riff_length + 8 <= size + 1
