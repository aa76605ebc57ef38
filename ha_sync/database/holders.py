"""Who else has a file open: the question before triggers are put into a program's database (PBX.md 1), and where a
file was written to and no close was told.

Reads ``/proc``. Opens nothing but directories of ``/proc``, so no lock of this process is dropped. Processes of other
users are seen only by root; their locks are seen by everybody (``/proc/locks``).
"""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that has the file open."""

    pid: int
    command: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid})"


def holders(path: str) -> tuple[Holder, ...]:
    """Other processes that have the database, its log or its index open or locked, by pid."""
    files = {identity for suffix in ("", "-wal", "-shm", "-journal") if (identity := _identity(path + suffix))}
    if not files:
        return ()
    pids = _with_descriptor(files) | _with_lock({inode for _, inode in files})
    pids.discard(os.getpid())
    return tuple(Holder(pid=pid, command=_command(pid)) for pid in sorted(pids))


def being_written(files: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Which of these (device, inode) a process, this one too, has open for writing."""
    found: set[tuple[int, int]] = set()
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or found == files:
            continue
        directory = f"/proc/{entry}/fd"
        try:
            names = os.listdir(directory)
        except OSError:  # gone, or another user's
            continue
        for name in names:
            identity = _regular(f"{directory}/{name}")
            if identity in files and _writes(f"/proc/{entry}/fdinfo/{name}"):
                found.add(identity)
    return found


def _writes(info: str) -> bool:
    try:
        with open(info, encoding="ascii") as file:
            flags = next(line for line in file if line.startswith("flags:"))
    except (OSError, StopIteration):
        return False
    return int(flags.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY


def _identity(path: str) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _with_descriptor(files: set[tuple[int, int]]) -> set[int]:
    pids = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit() and any(identity in files for identity in _open_files(f"/proc/{entry}/fd")):
            pids.add(int(entry))
    return pids


def _open_files(directory: str) -> list[tuple[int, int]]:
    try:
        names = os.listdir(directory)
    except OSError:  # gone, or another user's
        return []
    found = []
    for name in names:
        identity = _regular(f"{directory}/{name}")
        if identity is not None:
            found.append(identity)
    return found


def _regular(descriptor: str) -> tuple[int, int] | None:
    try:
        if not os.readlink(descriptor).startswith("/"):  # a pipe, a socket, an eventfd
            return None
        return _identity(descriptor)
    except OSError:
        return None


def _with_lock(inodes: set[int]) -> set[int]:
    pids = set()
    try:
        with open("/proc/locks", encoding="ascii", errors="replace") as file:
            lines = file.readlines()
    except OSError:
        return set()
    for line in lines:
        fields = line.split()
        pid, place = _pid_and_place(fields)
        if pid > 0 and place.rpartition(":")[2] in {str(i) for i in inodes}:
            pids.add(pid)
    return pids


def _pid_and_place(fields: list[str]) -> tuple[int, str]:
    offset = 1 if len(fields) > 1 and fields[1] == "->" else 0
    if len(fields) < 6 + offset:
        return 0, ""
    pid, place = fields[4 + offset], fields[5 + offset]
    return (int(pid) if pid.isdigit() else 0), place


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "a process"
