"""Is the process there, and still the same one? Through ``/proc``, and a pidfd that tells its end at once.

A process is known by its pid and its start time (proc_pid_stat(5), field 22): a pid alone is given anew. Bad looks:
*gone* (no such process, or a zombie), *restarted* (another one than at the last look: it died and somebody else, such
as ``safe_asterisk`` or systemd, started it; said once, then the new one is the one that is watched), *core dumped*
(``CoreDumping: 1`` in /proc/<pid>/status, Linux 4.15: while a large core is written, the process looks alive),
*stopped* (state T). A process that dumped its core and is gone is said to be gone: only its parent learns more.

Found by a pid file, by the kernel's name of it (``comm``), or by both, which guards against a stale pid file. Of
several of one name the oldest counts: it started the others. The tree of /proc is a setting; pidfds are used with the
real one only. Blocking: a few small reads of a file system in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from ha_agent.health.look import GOOD, Look, Reason, bad

PROC = "/proc"
READ_BYTES = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """A process as it was seen."""

    pid: int
    started: int  # clock ticks since boot; with the pid it names one process
    comm: str
    state: str  # one letter
    dumping: bool

    @property
    def alive(self) -> bool:
        """Whether it can still run."""
        return self.state not in {"Z", "X", "x"}

    def is_same(self, other: Sight) -> bool:
        """Whether both are one process."""
        return (self.pid, self.started) == (other.pid, other.started)


class ProcessProbe:
    """Watches one process."""

    def __init__(self, *, pid_file: str = "", process: str = "", proc_dir: str = PROC) -> None:
        assert pid_file or process, "nothing to find it by"
        self._pid_file = pid_file
        self._process = process
        self._proc_dir = proc_dir
        self._known: Sight | None = None
        self._pidfd = -1
        self._rouse: Callable[[], None] = lambda: None

    async def look(self) -> tuple[Look, ...]:
        """One look."""
        found = self._find()
        if found is None or not found.alive:
            self._forget_end()
            return (bad(Reason.GONE, self._named()),)
        known, self._known = self._known, found
        if known is None or not known.is_same(found):
            self._await_end(found)
        if known is not None and not known.is_same(found):
            return (bad(Reason.RESTARTED, f"pid {known.pid} is now {found.pid}"),)
        if found.dumping:
            return (bad(Reason.CORE_DUMPED, f"pid {found.pid}"),)
        return (bad(Reason.STOPPED, f"pid {found.pid}"),) if found.state == "T" else (GOOD,)

    def rouse_with(self, rouse: Callable[[], None]) -> None:
        """Called when the process has ended."""
        self._rouse = rouse

    def restart(self) -> None:
        """The next process is a new one by right."""
        self._known = None
        self._forget_end()

    async def close(self) -> None:
        """Closes the pidfd."""
        self._forget_end()

    def _find(self) -> Sight | None:
        if self._pid_file:
            seen = self._by_file()
            return seen if seen is None or not self._process or seen.comm == self._process else None
        named = (pid for pid in self._pids() if _read(f"{self._proc_dir}/{pid}/comm").rstrip("\n") == self._process)
        seen_all = [seen for pid in named if (seen := sight(self._proc_dir, pid))]
        return min(seen_all, key=lambda seen: (not seen.alive, seen.started, seen.pid), default=None)

    def _by_file(self) -> Sight | None:
        words = _read(self._pid_file)[:64].split()
        if not words or not words[0].isascii() or not words[0].isdigit() or len(words[0]) >= 11:
            return None
        return sight(self._proc_dir, int(words[0]))

    def _pids(self) -> list[int]:
        # The one that is known is asked first: walking all of /proc every second costs what a small PBX has to give.
        if self._known is not None:
            seen = sight(self._proc_dir, self._known.pid)
            if seen is not None and seen.alive and seen.is_same(self._known):
                return [seen.pid]
        try:
            return [int(name) for name in os.listdir(self._proc_dir) if name.isdigit()]
        except OSError:
            return []

    def _named(self) -> str:
        known = f", was pid {self._known.pid}" if self._known is not None else ""
        return (self._process or self._pid_file) + known

    def _await_end(self, found: Sight) -> None:
        self._forget_end()
        if self._proc_dir != PROC:
            return
        with contextlib.suppress(OSError):  # gone in between: the next look sees it
            self._pidfd = os.pidfd_open(found.pid)
            asyncio.get_running_loop().add_reader(self._pidfd, self._end)

    def _end(self) -> None:
        self._forget_end()
        self._rouse()

    def _forget_end(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def sight(proc_dir: str, pid: int) -> Sight | None:
    """The process as it is now; None: there is none."""
    stat = _read(f"{proc_dir}/{pid}/stat")
    # The name stands in parentheses and may hold blanks and parentheses itself: the last one ends it.
    before, closing, after = stat.rpartition(")")
    fields = after.split()
    if not closing or len(fields) < 20 or not fields[19].isdigit():
        return None
    return Sight(
        pid=pid,
        started=int(fields[19]),
        comm=before.partition("(")[2],
        state=fields[0],
        dumping="\nCoreDumping:\t1" in _read(f"{proc_dir}/{pid}/status"),
    )


def _read(path: str) -> str:
    # By the system's calls: Python's file objects take three more of them for each look.
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        return os.read(descriptor, READ_BYTES).decode(errors="replace")
    except OSError:
        return ""
    finally:
        os.close(descriptor)
