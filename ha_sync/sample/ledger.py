"""The ledger: what the sample PBX did to its files, one JSON line each, written after the thing was done.

Invariants: a line that states a fact is written after the commit, close or rename returned, so whatever was
acknowledged by a barrier called at monotonic time T includes every line with ``t <= T``. What could be half done in a
crash is announced first (``tx``, ``try``) and completed by a line with the same ``id``; an announcement without
completion means *in doubt*. Lines go out unbuffered, one write each; the file only grows and lives outside of what is
replicated. Times in seconds of CLOCK_MONOTONIC, sizes in bytes. Safe from several threads.

=========  ===============================================================================================
``k``      meaning and fields
=========  ===============================================================================================
start      a run began: ``seed``, ``run``
row        a row was inserted and committed: ``db``, ``table``, ``key``, ``d`` (digest of all values)
tx         about to commit: ``id``, ``db``, ``rows`` = [table, key, digest or null], ``snapshot``
done       the transaction ``id`` is committed
undone     the transaction ``id`` was rolled back: ``why``
lost       the PBX lost a row or a message by itself: ``what``, ``why``
append     ``n`` bytes with digest ``d`` were written at offset ``o`` of ``p``
closed     the recording ``p`` is finished with ``n`` bytes (WAV: its header is true)
try        about to change ``paths``: ``id``
file       ``p`` has ``n`` bytes with digest ``d``; completes ``id``
move       the appended file ``p`` was renamed to ``to``; completes ``id``
gone       ``p`` was deleted or moved away; completes ``id``
held       a call file ``p`` lies in the outgoing folder, which a Standby keeps aside
folder     the mailbox folder ``p`` holds exactly ``messages`` (digests); completes ``id``
stop       a clean stop
=========  ===============================================================================================
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, NewType, Self

Line = Mapping[str, Any]
Mark = NewType("Mark", int)  # joins an announcement to its completion
Row = tuple[str, Sequence[object], str | None]  # table, key, digest of the values or None for a delete

DIGEST_BYTES: Final = 12
FOLDER_EXTENSIONS: Final = ("WAV", "gsm", "txt", "wav")


def digest(data: bytes | memoryview) -> str:
    """Of a file's bytes, in hexadecimal."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def row_digest(values: Sequence[object]) -> str:
    """Of a row's values with their types; invalid UTF-8 must come in as surrogates."""
    return digest(repr(tuple(values)).encode("utf-8", "surrogateescape"))


def message_digest(files: Mapping[str, bytes]) -> str:
    """Of one voicemail message: content by extension, whatever its number is."""
    parts = [f"{extension}:{digest(files[extension])}" for extension in sorted(files)]
    return digest("\n".join(parts).encode())


class Ledger:
    """The writing end."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._lock = threading.Lock()
        # Grows over restarts too: an id of a run that was killed must not be completed by a later one.
        self._next = os.fstat(self._descriptor).st_size
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    @property
    def count(self) -> int:
        """Lines written by this object."""
        return self._count

    def write(self, kind: str, **fields: object) -> None:
        """State a fact. Returns when the line is in the file."""
        with self._lock:
            self._put({"k": kind, "t": round(time.monotonic(), 6), **fields})

    def announce(self, kind: str, **fields: object) -> Mark:
        """State an intention: the returned mark goes into the line that completes it."""
        with self._lock:
            self._next += 1
            mark = Mark(self._next)
            self._put({"k": kind, "t": round(time.monotonic(), 6), "id": mark, **fields})
            return mark

    def _put(self, line: Line) -> None:
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        written = os.write(self._descriptor, data)
        if written != len(data):  # a full disk: the ledger must not go on with half a line
            raise OSError(f"the ledger took {written} of {len(data)} bytes")
        self._count += 1


def read_ledger(path: str) -> Iterator[Line]:
    """Every whole line, in order. A last line without an end (killed while writing) is left out."""
    with open(path, "rb") as file:
        for data in file:
            if data.endswith(b"\n"):
                yield json.loads(data)
