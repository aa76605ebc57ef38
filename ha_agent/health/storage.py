"""Do folders still take data? Read-only, full, gone, or not the mount it should be.

``statvfs`` tells space and inodes for ordinary users (``f_bavail``, ``f_favail``: what root keeps back does not help a
PBX of its own user) and the read-only flag; /proc/self/mountinfo tells the mount point, the options of the mount and
of the file system under it (field 6 and the last, proc_pid_mountinfo(5)): a file system that the kernel made read-only
after an error shows ``ro`` there. A dead network mount hangs: looks run on threads, one that is not back at the
deadline makes its folder *silent* (the others keep their own verdict), and no second one is begun while it hangs.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ha_agent.health.look import Look, Reason, bad
from ha_agent.health.probe import Plain

MOUNTINFO = "/proc/self/mountinfo"
MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of mountinfo."""

    point: str
    read_only: bool  # the mount, or the file system under it


def mounts(text: str) -> tuple[Mount, ...]:
    """All mounts, in the order of the kernel: of two on one point the later one is seen."""
    found = []
    for line in text.splitlines():
        fields = line.split(" ")
        if len(fields) < 10 or "-" not in fields[6:]:
            continue
        options = {*fields[5].split(","), *fields[-1].split(",")}
        found.append(Mount(point=_unescaped(fields[4]), read_only="ro" in options))
    return tuple(found)


def mount_of(path: str, listed: tuple[Mount, ...]) -> Mount | None:
    """The mount that a real path lies on."""
    best: Mount | None = None
    for mount in listed:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


class StorageProbe(Plain):
    """Looks at some folders; one subject for each, its path."""

    def __init__(
        self,
        executor: ThreadPoolExecutor,
        paths: tuple[str, ...],
        *,
        deadline_s: float,
        min_free_mib: int,
        mounted: bool = False,
    ) -> None:
        self._executor = executor
        self._paths = paths
        self._deadline_s = deadline_s
        self._min_free_mib = min_free_mib
        self._mounted = mounted
        self._running: dict[str, Future[Look]] = {}

    async def look(self) -> tuple[Look, ...]:
        """One look at every folder."""
        futures = {path: asyncio.wrap_future(self._ask(path)) for path in self._paths}
        await asyncio.wait(futures.values(), timeout=self._deadline_s)
        return tuple(
            future.result() if future.done() else bad(Reason.SILENT, f"{path}: does not answer", subject=path)
            for path, future in futures.items()
        )

    def _ask(self, path: str) -> Future[Look]:
        running = self._running.get(path)
        if running is None or running.done():
            running = self._executor.submit(self._look, path)
            self._running[path] = running
        return running

    def _look(self, path: str) -> Look:
        try:
            facts = os.statvfs(path)
            with open(MOUNTINFO, encoding="utf-8", errors="surrogateescape") as file:
                mount = mount_of(os.path.realpath(path), mounts(file.read()))
        except FileNotFoundError:
            return bad(Reason.GONE, path, subject=path)
        except OSError as failed:
            return bad(Reason.UNREADABLE, f"{path}: {failed.strerror}", subject=path)
        if self._mounted and (mount is None or mount.point != os.path.realpath(path)):
            return bad(Reason.NOT_MOUNTED, path, subject=path)
        if facts.f_flag & os.ST_RDONLY or (mount is not None and mount.read_only):
            return bad(Reason.READ_ONLY, path, subject=path)
        free_mib = facts.f_bavail * facts.f_frsize / MIB
        if free_mib < self._min_free_mib or facts.f_bavail == 0:
            return bad(Reason.FULL, f"{path}: {free_mib:.1f} MiB free", subject=path)
        if facts.f_files and not facts.f_favail:  # a file system without inodes of its own says 0 of 0
            return bad(Reason.FULL, f"{path}: no inode free", subject=path)
        return Look(good=True, subject=path)


def _unescaped(text: str) -> str:
    for code, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, char)
    return text
