"""Which processes have a file of the datasets open for writing: the last question of a quiesce (DESIGN 8).

From ``/proc/<pid>/fd`` (where it leads) and ``fdinfo`` (the access mode in ``flags``, octal; proc_pid_fdinfo(5)). A
file that was deleted is not counted: what is written to it is lost anyway and no capture can have it. Not seen: a
mapping whose descriptor was closed. Other users' processes are seen by root only; ``unseen`` says how many were not.
Blocking: walks all descriptors of the machine, a few tens of ms on a busy one; run it on a thread.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import dataclass

PROC = "/proc"
WRITERS_MAX = 64  # enough to name; more are not looked for
SQLITE_COMPANIONS = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Writer:
    """A process that could still write."""

    pid: int
    command: str
    path: str

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid}) has {self.path} open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What was found."""

    writers: tuple[Writer, ...]
    unseen: int  # processes whose descriptors this user may not see

    @property
    def quiet(self) -> bool:
        """Whether nobody was seen to write."""
        return not self.writers


def survey(paths: Collection[str], *, but: Collection[int] = (), proc_dir: str = PROC) -> Survey:
    """Who writes to a file of ``paths`` (files, or folders with all below). ``but``: processes that may, the engine."""
    wanted = tuple(os.path.realpath(path) for path in paths)
    found: list[Writer] = []
    unseen = 0
    left_out = {os.getpid(), *but}
    for name in os.listdir(proc_dir):
        if not name.isdigit() or int(name) in left_out:
            continue
        try:
            found += _of_process(proc_dir, int(name), wanted)
        except PermissionError:
            unseen += 1
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
        if len(found) >= WRITERS_MAX:
            break
    return Survey(writers=tuple(found[:WRITERS_MAX]), unseen=unseen)


def _of_process(proc_dir: str, pid: int, wanted: tuple[str, ...]) -> list[Writer]:
    folder = f"{proc_dir}/{pid}/fd"
    found = {}
    for descriptor in os.listdir(folder):
        try:
            target = os.readlink(f"{folder}/{descriptor}")
        except FileNotFoundError:  # closed meanwhile
            continue
        if target not in found and _below(target, wanted) and _writes(f"{proc_dir}/{pid}/fdinfo/{descriptor}"):
            found[target] = Writer(pid=pid, command=_command(proc_dir, pid), path=target)
    return list(found.values())


def _below(target: str, wanted: tuple[str, ...]) -> bool:
    if not target.startswith("/") or target.endswith(" (deleted)"):
        return False
    return any(
        target == path or target.startswith(path + "/") or target in {path + end for end in SQLITE_COMPANIONS}
        for path in wanted
    )


def _writes(fdinfo: str) -> bool:
    try:
        with open(fdinfo, encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("flags:"):
                    return int(line.split()[1], 8) & os.O_ACCMODE != os.O_RDONLY
    except FileNotFoundError:
        pass
    return False


def _command(proc_dir: str, pid: int) -> str:
    try:
        with open(f"{proc_dir}/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError:
        return "a process"
