"""Text files of the PBX: the log, its configuration, call files.

``log/full`` keeps one descriptor open and writes once per line; rotation renames and opens again. The manager's
UpdateConfig truncates and then **opens, appends and closes once per line**, so that N lines give N + 1 closes and a
reader may see any beginning of the file; editors write beside and rename. Call files come by rename, are appended to,
and are touched to a time in the future. Nothing is synced.
"""

from __future__ import annotations

import os
import time

from ha_sync.sample.ledger import Ledger, digest
from ha_sync.sample.settings import CALL_FILES_DIR, ETC_DIR, LOG_DIR, OUTGOING_DIR, OUTGOING_DONE_DIR


class Log:
    """``log/full``. Not in the ledger: it is nobody's data. Belongs to one thread."""

    def __init__(self, root: str) -> None:
        os.makedirs(os.path.join(root, LOG_DIR), exist_ok=True)
        self._path = os.path.join(root, LOG_DIR, "full")
        self._file = self._open()

    def write(self, lines: tuple[str, ...]) -> None:
        """One write for each line."""
        for line in lines:
            os.write(self._file, line.encode())

    def rotate(self, suffix: str) -> None:
        """Renamed, then opened again."""
        os.rename(self._path, f"{self._path}.{suffix}")
        os.close(self._file)
        self._file = self._open()

    def close(self) -> None:
        """At a clean stop."""
        os.close(self._file)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)


class ConfFiles:
    """``etc/*.conf``, written by the manager and by editors."""

    def __init__(self, root: str, ledger: Ledger) -> None:
        self._root = root
        self._ledger = ledger
        os.makedirs(os.path.join(root, ETC_DIR), exist_ok=True)

    def rewrite(self, name: str, lines: tuple[str, ...]) -> None:
        """UpdateConfig: partial content is visible until the last close."""
        path = f"{ETC_DIR}/{name}"
        whole = os.path.join(self._root, path)
        mark = self._ledger.announce("try", paths=[path])
        with open(whole, "wb"):
            pass
        for line in lines:
            with open(whole, "ab") as file:
                file.write(line.encode())
        self._state(path, lines, mark)

    def replace(self, name: str, lines: tuple[str, ...]) -> None:
        """An editor: the new content appears at once."""
        path, beside = f"{ETC_DIR}/{name}", f"{ETC_DIR}/.{name}.new"
        mark = self._ledger.announce("try", paths=[path, beside])
        with open(os.path.join(self._root, beside), "wb") as file:
            file.write("".join(lines).encode())
        os.rename(os.path.join(self._root, beside), os.path.join(self._root, path))
        self._state(path, lines, mark)

    def _state(self, path: str, lines: tuple[str, ...], mark: int) -> None:
        data = "".join(lines).encode()
        self._ledger.write("file", p=path, n=len(data), d=digest(data), id=mark)


class CallFiles:
    """``outgoing``: what lies here is dialled by the node that serves."""

    def __init__(self, root: str, ledger: Ledger) -> None:
        self._root = root
        self._ledger = ledger
        for folder in (CALL_FILES_DIR, OUTGOING_DIR, OUTGOING_DONE_DIR):
            os.makedirs(os.path.join(root, folder), exist_ok=True)

    def arrive(self, name: str, text: str, ahead_s: int) -> None:
        """Renamed in, then the PBX notes its attempt and the time of the next one."""
        made, path = os.path.join(self._root, CALL_FILES_DIR, name), f"{OUTGOING_DIR}/{name}"
        whole = os.path.join(self._root, path)
        with open(made, "wb") as file:
            file.write(text.encode())
        os.rename(made, whole)
        note = f"\nStartRetry: {os.getpid()} 1 (1795342645)\n".encode()
        with open(whole, "ab") as file:
            file.write(note)
        # The only wall clock: the spool reads the next attempt from the file's time.
        due_ns = time.clock_gettime_ns(time.CLOCK_REALTIME) + ahead_s * 1_000_000_000
        os.utime(whole, ns=(due_ns, due_ns))
        data = text.encode() + note
        self._ledger.write("held", p=path, n=len(data), d=digest(data))

    def done(self, name: str) -> None:
        """Archived."""
        path = os.path.join(self._root, OUTGOING_DIR, name)
        if not os.path.exists(path):
            return
        archived = os.path.join(self._root, OUTGOING_DONE_DIR, name)
        os.rename(path, archived)
        with open(archived, "ab") as file:
            file.write(b"Status: Completed\n")
        self._ledger.write("gone", p=f"{OUTGOING_DIR}/{name}")
