"""Undoes local changes of a Standby's tree and says so: the Active's data is written on the Active.

inotify says where to look, the catalogue's witness says whether it was us: what still shows its witness is as it
was published. A changed or missing object is asked for again (kept among the *wanted* until it came), metadata is
put back, a stranger goes to the trash. The guard rests until the tree was equal to the Active's in this role
(before, a difference is data that was never replicated, not tampering) and while a full sync goes on; afterwards
everything is looked at once. A scan every ``reconcile_s`` backs up inotify. Looking is done in slices, between
groups, in the sink's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from ha_sync.apply.tree.applier import Applier, Tree
from ha_sync.apply.tree.content import witness_of
from ha_sync.apply.tree.survey import Found, Rows, Survey, holds
from ha_sync.catalogue.tree import TYPE_DIRECTORY, TYPE_SYMLINK, Entry, TreeCatalogue, key_of
from ha_sync.core.dataset import Report
from ha_sync.core.representation import Facts, facts
from ha_sync.errors import Refused, RepairNeeded
from ha_sync.files.confine import split
from ha_sync.files.metadata import (
    TYPE_SPECIAL,
    Metadata,
    apply_to_descriptor,
    apply_to_symlink,
    metadata_of,
    object_type,
)
from ha_sync.files.places import join
from ha_sync.files.watch import IS_DIRECTORY, Watcher

LOOK_DELAY_S = 0.1
"""After the first event: a program that writes makes many."""
LOOK_MAX = 5000
"""Paths of one look; with more, everything is looked at."""
SLICE = 2000
STRANGERS_MAX = 10_000
WANTED_MAX = 1000
"""Objects asked for by name; with more, the next stream compares."""

_GONE = (FileNotFoundError, NotADirectoryError, Refused)
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Run = Callable[[Callable[[], Any]], Awaitable[Any]]


@dataclass(slots=True)
class Findings:
    """What one look led to."""

    wanted: list[bytes] = field(default_factory=list)
    settled: list[bytes] = field(default_factory=list)
    told: list[tuple[str, bytes]] = field(default_factory=list)
    more: list[bytes] = field(default_factory=list)  # to be looked at too


class Inspector:
    """Looks at single objects; blocking, in the sink's thread."""

    def __init__(self, applier: Applier, tree: Tree, watcher: Watcher | None) -> None:
        self._applier = applier
        self.tree = self._tree = tree
        self._watcher = watcher
        self._catalogue: TreeCatalogue = applier.catalogue
        self._survey = Survey(tree.root, scope=applier.scope, catalogue=self._catalogue, report=applier.report)
        self.unwatched = 0

    def look(self, paths: Iterable[bytes], wanted: Iterable[bytes]) -> Findings:
        """Authoritative: compares each with the catalogue as it is now and undoes what it can."""
        self._tree.root.forget()
        findings = Findings()
        waiting = set(wanted)
        for path in sorted(set(paths), key=key_of):
            if not self._applier.scope.is_left_out(path):
                self._look_at(path, findings, waiting)
        return findings

    def _look_at(self, path: bytes, findings: Findings, waiting: set[bytes]) -> None:
        entry = self._catalogue.entry(path)
        status = self._status(path)
        if entry is None:
            if status is not None and path:
                self._stranger(path, status, findings)
        elif status is None:
            self._missing(path, entry, findings, waiting)
        elif object_type(status.st_mode) != entry.type:
            self._tree.publisher.take_away(path, status)
            self._missing(path, entry, findings, waiting)
        elif entry.type == TYPE_DIRECTORY:
            self._directory(path, entry, status, findings)
        elif _witnessed(entry, status):
            findings.settled.append(path)
        elif path not in waiting:
            self._changed(path, entry, status, findings)

    def _status(self, path: bytes) -> os.stat_result | None:
        with contextlib.suppress(*_GONE):
            return self._tree.root.lstat(self._applier.scope.place(path))
        return None

    def _stranger(self, path: bytes, status: os.stat_result, findings: Findings) -> None:
        if object_type(status.st_mode) == TYPE_SPECIAL or self._applier.scope.is_held(path):
            return
        if stat.S_ISDIR(status.st_mode) and self._catalogue.entries_below(path):
            return  # made for what was published below it
        if self._applier.settings.keeps_deleted:
            if path not in self._applier.strangers and len(self._applier.strangers) < STRANGERS_MAX:
                self._applier.strangers.add(path)
                findings.told.append(("a file that is not the active's was written to the storage; it stays", path))
            self._put_back_times(split(path)[0])
            return
        self._tree.publisher.take_away(path, status)
        findings.told.append(("a file that is not the active's was moved to the trash", path))
        self._put_back_times(split(path)[0])

    def _put_back_times(self, directory: bytes) -> None:
        known = self._catalogue.entry(directory)
        if known is not None and known.type == TYPE_DIRECTORY:
            with contextlib.suppress(*_GONE):
                os.utime(self._tree.root.directory(directory), ns=(known.mtime_ns, known.mtime_ns))

    def _missing(self, path: bytes, entry: Entry, findings: Findings, waiting: set[bytes]) -> None:
        if path in waiting:
            return
        findings.told.append(("a replicated object was gone and is asked for again", path))
        findings.wanted.append(path)
        if entry.type == TYPE_DIRECTORY:
            findings.wanted += self._catalogue.entries_below(path)
            if self._watcher is not None:
                self._watcher.forget(path)
        self._put_back_times(split(path)[0])

    def _changed(self, path: bytes, entry: Entry, status: os.stat_result, findings: Findings) -> None:
        found = Found(path, self._applier.scope.place(path), status)
        now = self._survey.read(found, block_size=entry.block_size or None)
        if now is None:
            findings.more.append(path)
        elif (now.size, now.link_target) != (entry.size, entry.link_target) or not _same_content(entry, now):
            findings.told.append(("a replicated object was changed and is asked for again", path))
            findings.wanted.append(path)
        else:
            self._put_back(found, entry, now, findings)

    def _put_back(self, found: Found, entry: Entry, now: Entry, findings: Findings) -> None:
        wanted = _metadata(entry)
        directory = entry.type == TYPE_DIRECTORY
        if self._held(wanted, directory=directory) != self._held(_metadata(now), directory=directory):
            with contextlib.suppress(*_GONE):
                self._apply(found.place, entry.type, wanted)
                findings.told.append(("changed metadata was put back", found.path))
        status = self._status(found.path)
        if status is not None and status.st_ino == now.witness.inode:
            with self._catalogue.transaction(durable=False):
                self._catalogue.put_entries([_with_witness(entry, status)])
        findings.settled.append(found.path)

    def _held(self, of: Metadata, *, directory: bool) -> Facts:
        """What of an object's metadata can be there."""
        return facts((of.mode, of.uid, of.gid, of.mtime_ns, of.xattrs), self._applier.holding, directory=directory)

    def _apply(self, place: bytes, kind: int, wanted: Metadata) -> None:
        root = self._tree.root
        if kind == TYPE_SYMLINK:
            directory, name = split(place)
            apply_to_symlink(root.directory(directory), name, wanted)
            return
        fd = root.open(place, os.O_RDONLY | os.O_NONBLOCK)
        try:
            apply_to_descriptor(fd, wanted)
        finally:
            os.close(fd)

    def _directory(self, path: bytes, entry: Entry, status: os.stat_result, findings: Findings) -> None:
        findings.settled.append(path)
        place = self._applier.scope.place(path)
        with contextlib.suppress(*_GONE):
            fd = self._tree.root.directory(place)
            if self.watch(place, fd, status):
                below = [join(path, os.fsencode(name)) for name in os.listdir(fd)]
                findings.more += [each for each in below if self._catalogue.entry(each) is None]
            told = self._held(replace(_metadata(entry), xattrs=b""), directory=True)
            here = self._held(metadata_of(status), directory=True)
            if told[:3] != here[:3]:
                apply_to_descriptor(fd, _metadata(entry))
                findings.told.append(("changed metadata was put back", path))
            elif told != here:
                os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def watch(self, place: bytes, fd: int, status: os.stat_result) -> bool:
        """Watches a directory; whether it was new."""
        if self._watcher is None or place != self._applier.scope.place(place):
            return False
        before = self._watcher.count
        if not self._watcher.add(place, fd, status.st_ino):
            self.unwatched += 1
        return self._watcher.count > before

    def suspects(self) -> Iterator[list[bytes]]:
        """Everything that does not look as it should, in slices; to be looked at again one by one."""
        rows = Rows(self._catalogue)
        gone: list[bytes] = []
        odd: list[bytes] = []
        for count, found in enumerate(self._survey.walk(), 1):
            row = rows.at(key_of(found.path), gone)
            if row is None or not holds(row, found.status):
                odd.append(found.path)
            if stat.S_ISDIR(found.status.st_mode):
                with contextlib.suppress(*_GONE):
                    self.watch(found.place, self._tree.root.directory(found.place), found.status)
            if count % SLICE == 0:
                yield gone + odd
                gone, odd = [], []
        rows.rest(gone)
        yield gone + odd


class Guard:
    """The loop's half."""

    def __init__(
        self,
        applier: Applier,
        *,
        active_at: str,
        report: Report,
        run: Run,
        need: Callable[[tuple[bytes, ...]], None],
        fail: Callable[[Exception], None],
    ) -> None:
        self._applier = applier
        self._active_at = active_at
        self._report = report
        self._run = run
        self._need = need
        self._fail = fail
        self._watcher: Watcher | None = None
        self._task: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._everything = True
        self._wanted: dict[bytes, None] = {}
        self._undone = 0

    @property
    def wanted(self) -> tuple[bytes, ...]:
        """What was asked for and has not come yet."""
        return tuple(self._wanted)

    def counts(self) -> dict[str, int]:
        """For `status`."""
        return {"tampered": self._undone, "wanted": len(self._wanted)}

    def start(self) -> None:
        """Begins to watch as soon as there is something to guard."""
        if self._task is None and self._applier.tree is not None and self._applier.guarded:
            self._everything = True
            self._wake.set()
            self._task = asyncio.create_task(self._watch(), name="guard")

    def applied(self) -> None:
        """A commit was made: what was asked for may have come."""
        self.start()
        if self._wanted:
            self._wake.set()

    async def stop(self) -> None:
        """Ends watching; nothing is undone any more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            await self._run(watcher.close)

    def _open_watcher(self) -> None:
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(self._wake.set)

        try:
            self._watcher = Watcher(wake)
        except OSError as error:
            self._report("warning", "the standby's files cannot be watched; they are scanned", {"reason": str(error)})

    async def _watch(self) -> None:
        self._open_watcher()
        while True:
            try:
                async with asyncio.timeout(self._applier.settings.reconcile_s):
                    await self._wake.wait()
            except TimeoutError:
                self._everything = True
                if self._wanted:
                    self._need(self.wanted)  # asked long ago and not answered
            self._wake.clear()
            await asyncio.sleep(LOOK_DELAY_S)
            try:
                await self._round()
            except OSError as error:
                self._report("warning", "the standby's files cannot be looked at", {"reason": str(error)})
                await asyncio.sleep(1.0)
                self._everything = True

    async def _round(self) -> None:
        paths = self._drained()
        if not self._applier.guarded or self._applier.tree is None:
            self._everything = True
            return
        inspector = Inspector(self._applier, self._applier.tree, self._watcher)
        if self._everything:
            self._everything = False
            suspects = inspector.suspects()
            while (part := await self._run(lambda: next(suspects, None))) is not None:
                await self._look(inspector, part)
        await self._look(inspector, paths | set(self._wanted))

    def _drained(self) -> set[bytes]:
        if self._watcher is None:
            return set()
        drained = self._watcher.drain()
        paths: set[bytes] = set()
        for directory, mask, _, name in drained.events:
            paths.add(join(directory, name) if name else directory)
            if name and not mask & IS_DIRECTORY:
                continue
            paths.add(directory)
        if drained.lost or len(paths) > LOOK_MAX:
            self._everything = True
            return set()
        return paths

    async def _look(self, inspector: Inspector, paths: Iterable[bytes]) -> None:
        pending = set(paths)
        for _ in range(3):  # what changed while it was looked at makes an event of its own
            if not pending:
                return
            findings: Findings | None = await self._run(partial(self._look_now, inspector, pending))
            if findings is None:
                self._wake.set()  # a group is being published: look afterwards
                self._everything = True
                return
            self._take_in(findings)
            pending = set(findings.more)

    def _look_now(self, inspector: Inspector, paths: set[bytes]) -> Findings | None:
        if not self._applier.idle or not self._applier.guarded or self._applier.tree is not inspector.tree:
            return None
        return inspector.look(paths, tuple(self._wanted))

    def _take_in(self, findings: Findings) -> None:
        for what, path in findings.told:
            self._undone += 1
            fields: dict[str, object] = {
                "dataset": self._applier.settings.name,
                "path": os.fsdecode(path),
                "write_to": self._active_at,
            }
            self._report("warning", what, fields)
        for path in findings.settled:
            self._wanted.pop(path, None)
        fresh = [path for path in findings.wanted if path not in self._wanted]
        if len(self._wanted) + len(fresh) > WANTED_MAX:
            self._wanted.clear()
            self._fail(RepairNeeded("must compare", reason="too many replicated objects were changed here"))
            return
        self._wanted.update(dict.fromkeys(fresh))
        if fresh:
            self._need(tuple(fresh))


def _witnessed(entry: Entry, status: os.stat_result) -> bool:
    witness = entry.witness
    return bool(witness.inode) and (witness.inode, witness.ctime_ns) == (status.st_ino, status.st_ctime_ns)


def _same_content(entry: Entry, now: Entry) -> bool:
    """By hash; blocks of another size than usual (a file that grew) cannot be compared and count as changed."""
    return entry.type == TYPE_SYMLINK or (entry.block_size, entry.hash) == (now.block_size, now.hash) or not now.size


def _metadata(entry: Entry) -> Metadata:
    mode = 0 if entry.type == TYPE_SYMLINK else entry.mode
    return Metadata(mode=mode, uid=entry.uid, gid=entry.gid, mtime_ns=entry.mtime_ns, xattrs=entry.xattrs)


def _with_witness(entry: Entry, status: os.stat_result) -> Entry:
    return Entry(
        path=entry.path,
        type=entry.type,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        mtime_ns=entry.mtime_ns,
        size=entry.size,
        hash=entry.hash,
        block_size=entry.block_size,
        block_hashes=entry.block_hashes,
        link_target=entry.link_target,
        xattrs=entry.xattrs,
        witness=witness_of(status),
    )
