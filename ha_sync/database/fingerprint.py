"""One hash over every byte of a database file and of its write-ahead log, as they are on disk now.

Two equal fingerprints mean that nothing changed between them, not even a bit that no program wrote. The files are read
through SQLite's own file layer: it closes them without dropping the locks that this process holds (DESIGN 4.8), and it
takes none to read. A writer at work makes a fingerprint that is equal to no other. Blocking; sizes in bytes.
"""

from __future__ import annotations

import os

import apsw
import xxhash

PIECE_BYTES = 1024 * 1024

_MAIN = apsw.SQLITE_OPEN_MAIN_DB | apsw.SQLITE_OPEN_READONLY
_LOG = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_READONLY


def fingerprint(path: str) -> bytes:
    """Empty where there is no such file. Raises ``apsw.Error`` and ``OSError``."""
    if not os.path.lexists(path):
        return b""
    found = xxhash.xxh3_128()
    for name, flags in ((path, _MAIN), (f"{path}-wal", _LOG)):
        size = _read(name, flags, found) if os.path.lexists(name) else 0
        found.update(size.to_bytes(8, "big"))
    return found.digest()


def _read(name: str, flags: int, found: xxhash.xxh3_128) -> int:
    file = apsw.VFSFile("", name, [flags, 0])
    try:
        size = file.xFileSize()
        for start in range(0, size, PIECE_BYTES):
            found.update(file.xRead(min(PIECE_BYTES, size - start), start))
        return size
    finally:
        file.xClose()
