"""Sound that is none: bytes that look and compress like 8 kHz speech, the same for the same seed; and the WAV header.

A WAV file of the PBX begins with a 44-byte header whose two lengths are zero until it is closed (PBX.md).
Sizes in bytes.
"""

from __future__ import annotations

import random
import struct
from typing import Final

WAV_HEADER_BYTES: Final = 44
RIFF_LENGTH_AT: Final = 4
DATA_LENGTH_AT: Final = 40
PIECE_BYTES: Final = 32_768  # what the PBX's file buffer holds
WAV_BYTES_PER_S: Final = 16_000
GSM_BYTES_PER_S: Final = 1_650
PIECE_S: Final = PIECE_BYTES / WAV_BYTES_PER_S  # 2.048
POOL_BYTES: Final = 1 << 20


def open_header() -> bytes:
    """The header of a WAV file that is being written: both lengths zero."""
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", 0, b"WAVE", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16, b"data", 0)


def header_lengths(size: int) -> tuple[bytes, bytes]:
    """What the header of a finished WAV file of ``size`` bytes says at RIFF_LENGTH_AT and DATA_LENGTH_AT."""
    return struct.pack("<I", size - 8), struct.pack("<I", size - WAV_HEADER_BYTES)


class NoisePool:
    """One pool of samples; pieces are cut out of it at any offset, so that making sound costs a copy."""

    def __init__(self, seed: int) -> None:
        dice = random.Random(f"noise/{seed}")
        quiet = bytes((byte & 7) if byte & 8 else 0xF8 | (byte & 7) for byte in range(256))
        samples = bytearray(POOL_BYTES)
        samples[0::2] = dice.randbytes(POOL_BYTES // 2)
        samples[1::2] = dice.randbytes(POOL_BYTES // 2).translate(quiet)  # the high byte of a low voice
        self._samples = bytes(samples) * 2

    def piece(self, noise: int, size: int) -> bytes:
        """``size`` bytes (at most POOL_BYTES) that begin at offset ``noise`` modulo the pool."""
        assert 0 <= size <= POOL_BYTES, size
        start = noise % POOL_BYTES
        return self._samples[start : start + size]
