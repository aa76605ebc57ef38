"""Recordings as MixMonitor and Record write them.

The final name from the first byte; a 44-byte WAV header with zero lengths, then whole buffers of 32,768 bytes; at the
close the rest and two 4-byte patches in place. No temporary name, no sync. ``.gsm`` has no header, so nothing at all is
on the disk for the first 20 s. Killed in between, a file has a size of 44 + k * 32,768. Sizes in bytes.
"""

from __future__ import annotations

import os

from ha_sync.sample.audio import (
    DATA_LENGTH_AT,
    RIFF_LENGTH_AT,
    WAV_HEADER_BYTES,
    NoisePool,
    header_lengths,
    open_header,
)
from ha_sync.sample.ledger import Ledger, digest


class SoundFile:
    """One file that is being recorded."""

    def __init__(self, path: str) -> None:
        self._wav = path.endswith(".wav")
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self.size = os.write(self._file, open_header()) if self._wav else 0

    def append(self, data: bytes) -> None:
        """One write at the end."""
        self.size += os.write(self._file, data)

    def close(self) -> None:
        """The lengths into the header, then the descriptor."""
        if self._wav and self.size > WAV_HEADER_BYTES:
            riff, data = header_lengths(self.size)
            os.pwrite(self._file, riff, RIFF_LENGTH_AT)
            os.pwrite(self._file, data, DATA_LENGTH_AT)
        os.close(self._file)


class Recordings:
    """All recordings in progress. Belongs to one thread."""

    def __init__(self, root: str, pool: NoisePool, ledger: Ledger) -> None:
        self._root = root
        self._pool = pool
        self._ledger = ledger
        self._open: dict[str, tuple[str, SoundFile]] = {}

    def begin(self, key: str, path: str) -> None:
        """A new file below ``monitor``; folders are made as needed."""
        whole = os.path.join(self._root, path)
        os.makedirs(os.path.dirname(whole), exist_ok=True)
        self._open[key] = (path, SoundFile(whole))

    def piece(self, key: str, noise: int, size: int) -> None:
        """A buffer of sound."""
        path, file = self._open[key]
        offset, data = file.size, self._pool.piece(noise, size)
        file.append(data)
        self._ledger.write("append", p=path, o=offset, n=size, d=digest(data))

    def end(self, key: str, noise: int, rest: int) -> None:
        """The rest of the sound and the header."""
        if rest:
            self.piece(key, noise, rest)
        path, file = self._open.pop(key)
        file.close()
        self._ledger.write("closed", p=path, n=file.size)

    def end_all(self) -> None:
        """A clean stop finishes all of them."""
        for key in list(self._open):
            self.end(key, 0, 0)
