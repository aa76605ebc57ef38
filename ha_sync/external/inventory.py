"""What a node's configured storages are now: from the kernel's table of mounts, statvfs and the marker.

The table is read without touching the filesystems. What touches one (statvfs, the marker) runs in a thread of that
storage's own with a deadline: a server that does not answer costs that thread, is told as trouble, and is asked again
only when the thread has come back. Sizes in bytes, seconds are monotonic.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

from ha_sync.config import TreeSettings
from ha_sync.files.mounts import Mount, mounted_at, table
from ha_sync.files.places import MARKER, PARTIAL, STAGE

DEADLINE_S = 2.0
MARKER_MAX = 256
BLOCK_BYTES = 512
"""Of st_blocks, whatever the filesystem's own are."""
BY_UUID = "/dev/disk/by-uuid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One storage as it was found."""

    name: str
    medium: str
    mode: str
    path: str
    mounted: bool = False
    filesystem: str = ""
    source: str = ""
    uuid: str = ""
    identity: str = ""  # of the marker; empty: none yet, or unreadable
    size_bytes: int = 0
    free_bytes: int = 0
    free_files: int = 0
    read_only: bool = False
    trouble: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Touched:
    """What only the filesystem itself tells."""

    size_bytes: int
    free_bytes: int
    free_files: int
    read_only: bool
    fsid: int
    identity: str


class Inventory:
    """Of one node; one per engine."""

    def __init__(self, settings: Iterable[TreeSettings], *, deadline_s: float = DEADLINE_S) -> None:
        self._settings = tuple(settings)
        self._deadline_s = deadline_s
        self._threads: dict[str, ThreadPoolExecutor] = {}
        self._asked: dict[str, Future[_Touched]] = {}

    async def look(self) -> tuple[Found, ...]:
        """All of them, in the order of the settings; at the latest after the deadline."""
        if not self._settings:
            return ()
        mounts = await asyncio.to_thread(table)
        return tuple(await asyncio.gather(*(self._look_at(one, mounts) for one in self._settings)))

    async def _look_at(self, settings: TreeSettings, mounts: tuple[Mount, ...]) -> Found:
        mount, found = await asyncio.to_thread(_from_table, settings, mounts)
        if mount is None:
            return found
        try:
            return _with(found, await self._touch(settings))
        except TimeoutError:
            return replace(found, trouble=f"no answer within {self._deadline_s:g} s")
        except OSError as error:
            return replace(found, trouble=error.strerror or str(error))

    async def _touch(self, settings: TreeSettings) -> _Touched:
        asked = self._asked.get(settings.name)
        if asked is None or asked.done():
            # A thread that hangs holds the next question up: at most one waits for a dead server.
            if settings.name not in self._threads:
                self._threads[settings.name] = ThreadPoolExecutor(1, thread_name_prefix=f"storage-{settings.name}")
            asked = self._asked[settings.name] = self._threads[settings.name].submit(touch, settings.path)
        async with asyncio.timeout(self._deadline_s):
            return await asyncio.shield(asyncio.wrap_future(asked))

    def close(self) -> None:
        """Ends the threads that can end."""
        for thread in self._threads.values():
            thread.shutdown(wait=False, cancel_futures=True)


def look_now(settings: TreeSettings) -> Found:
    """One storage, blocking for as long as its filesystem likes."""
    mount, found = _from_table(settings, table())
    if mount is None:
        return found
    try:
        return _with(found, touch(settings.path))
    except OSError as error:
        return replace(found, trouble=error.strerror or str(error))


def _from_table(settings: TreeSettings, mounts: tuple[Mount, ...]) -> tuple[Mount | None, Found]:
    assert settings.storage is not None, settings.name
    found = Found(
        name=settings.name,
        medium=settings.storage.medium.value,
        mode=settings.storage.mode.value,
        path=settings.path,
    )
    mount = mounted_at(settings.path, mounts)
    if mount is None:
        return None, replace(found, trouble="nothing is mounted there")
    return mount, replace(
        found,
        mounted=True,
        filesystem=mount.kind,
        source=mount.source,
        uuid=_uuid_of(mount),
        read_only=mount.read_only,
    )


def _with(found: Found, touched: _Touched) -> Found:
    return replace(
        found,
        uuid=found.uuid or f"{touched.fsid:016x}",
        identity=touched.identity,
        size_bytes=touched.size_bytes,
        free_bytes=touched.free_bytes,
        free_files=touched.free_files,
        read_only=touched.read_only or found.read_only,
    )


def touch(path: str) -> _Touched:
    """Blocking, for as long as the filesystem likes."""
    status = os.statvfs(path)
    return _Touched(
        size_bytes=status.f_blocks * status.f_frsize,
        # The engine runs as root, or as a user with its own share: what it may use.
        free_bytes=(status.f_bfree if os.geteuid() == 0 else status.f_bavail) * status.f_frsize + _staged(path),
        free_files=status.f_ffree,
        read_only=bool(status.f_flag & os.ST_RDONLY),
        fsid=status.f_fsid,
        identity=_identity(path),
    )


def _staged(path: str) -> int:
    """What was received and not yet published takes the room of what is still to be sent, or goes."""
    found = 0
    for name in (STAGE, PARTIAL):
        with contextlib.suppress(OSError), os.scandir(os.path.join(path, os.fsdecode(name))) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # published meanwhile
                    if entry.is_file(follow_symlinks=False):
                        found += entry.stat(follow_symlinks=False).st_blocks * BLOCK_BYTES
    return found


def _identity(path: str) -> str:
    try:
        fd = os.open(os.path.join(path, os.fsdecode(MARKER)), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        return os.read(fd, MARKER_MAX).decode("ascii", "replace").strip()
    finally:
        os.close(fd)


def _uuid_of(mount: Mount) -> str:
    """By the links that the system makes of what the kernel says; empty where there are none."""
    try:
        with os.scandir(BY_UUID) as entries:
            for entry in entries:
                status = os.stat(entry.path)
                if f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}" == mount.device:
                    return entry.name
    except OSError:
        pass
    return ""
