"""Puts the content of a package beside the data that it shall replace, on the same filesystem, durably.

Nothing that a program knows of is touched: a tree is staged in a hidden folder of its root, a database in a hidden file
beside it. What is the node's own by this node's settings is left out, whatever the package holds. Room is checked
first. Blocking; for a process of its own (``child``).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from ha_sync.backup.package.format import Entry, EntryType
from ha_sync.backup.package.places import Place, place_of, times_kept
from ha_sync.backup.package.plan import DatasetPlan
from ha_sync.backup.package.reader import Package
from ha_sync.database.soundness import damage_of_file
from ha_sync.errors import OperatorNeeded, Refused
from ha_sync.files.confine import Root, split
from ha_sync.files.metadata import Metadata, NotApplied, apply_to_descriptor, apply_to_symlink
from ha_sync.files.rules import Rules

MARGIN_BYTES: Final = 32 * 1024 * 1024
ENTRY_BYTES: Final = 512  # of a directory's or inode's own, beside the content
CLUSTER: Final = 4096

Spend = Callable[[int], None]
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """What was put beside the data."""

    entries: int
    content_bytes: int
    left_out: int  # of the package: the node's own here
    not_applied: tuple[str, ...]  # what the kernel refused, by what; e.g. owners, where this is not root


def require_room(package: Package, plans: dict[str, DatasetPlan]) -> None:
    """Raises OperatorNeeded where a filesystem has no room for what it must take beside what it has."""
    needed: dict[str, list[int]] = {name: [0, 0] for name in plans}
    for entry in package.entries():
        if entry.dataset in needed:
            sums = needed[entry.dataset]
            sums[0] += -(-entry.size // CLUSTER) * CLUSTER + ENTRY_BYTES
            sums[1] += 1
    by_device: dict[int, list[int]] = {}
    folders: dict[int, str] = {}
    for name, plan in plans.items():
        folder = place_of(plan).existing_folder()
        device = os.stat(folder).st_dev
        folders.setdefault(device, folder)
        sums = by_device.setdefault(device, [0, 0])
        sums[0] += needed[name][0]
        sums[1] += needed[name][1]
    for device, (content, objects) in by_device.items():
        found = os.statvfs(folders[device])
        free = found.f_bavail * found.f_frsize
        if content + MARGIN_BYTES > free or (found.f_files and objects > found.f_favail):
            raise OperatorNeeded(
                "no room to restore at",
                subject=folders[device],
                reason=f"{content + MARGIN_BYTES} bytes and {objects} files are needed beside what is there, "
                f"{free} bytes and {found.f_favail} files are free",
                hint="make room, or choose fewer datasets",
            )


class Stager:
    """Stages the chosen datasets of one package."""

    def __init__(self, plans: dict[str, DatasetPlan], *, spend: Spend) -> None:
        self._plans = plans
        self._spend = spend
        self._entries = self._bytes = self._left_out = 0
        self._not_applied: dict[str, int] = {}
        self._tree: _Tree | None = None

    def stage(self, package: Package) -> Staged:
        """Raises Refused where the package turns out to be none, OSError of the disk."""
        try:
            for entry, content in package.contents():
                plan = self._plans.get(entry.dataset)
                if plan is None:
                    continue
                self._stage(plan, entry, content)
            self._leave_tree()
        finally:
            if self._tree is not None:
                self._tree.close()
        refused = tuple(f"{what} of {count} objects" for what, count in sorted(self._not_applied.items()))
        return Staged(
            entries=self._entries, content_bytes=self._bytes, left_out=self._left_out, not_applied=refused
        )  # fmt: skip

    def _stage(self, plan: DatasetPlan, entry: Entry, content: Iterator[bytes]) -> None:
        if entry.type is EntryType.DATABASE:
            self._leave_tree()
            self._note(_database(place_of(plan), entry, self._spent(content)))
        else:
            if self._tree is None or self._tree.plan is not plan:
                self._leave_tree()
                self._tree = _Tree(plan)
            if self._tree.rules.skips_path(entry.path):
                self._left_out += 1
                return
            self._note(self._tree.put(entry, self._spent(content)))
        self._entries += 1
        self._bytes += entry.size

    def _spent(self, content: Iterator[bytes]) -> Iterator[bytes]:
        for piece in content:
            self._spend(len(piece))
            yield piece

    def _leave_tree(self) -> None:
        tree, self._tree = self._tree, None
        if tree is not None:
            try:
                self._note(tree.finish())
            finally:
                tree.close()

    def _note(self, refused: tuple[NotApplied, ...]) -> None:
        for one in refused:
            self._not_applied[one.what] = self._not_applied.get(one.what, 0) + 1


class _Tree:
    """A tree below its hidden folder. Directories get their times when all that lies in them is there."""

    def __init__(self, plan: DatasetPlan) -> None:
        self.plan = plan
        self.rules: Rules = plan.rules
        place = place_of(plan)
        os.makedirs(place.path, exist_ok=True)
        with times_kept(place.path):
            os.mkdir(place.hidden, 0o700)
        os.mkdir(place.new, 0o700)
        os.mkdir(place.old, 0o700)
        self._root = Root(os.fsdecode(place.new))
        self._open: list[Entry] = []

    def put(self, entry: Entry, content: Iterator[bytes]) -> tuple[NotApplied, ...]:
        parent, name = split(entry.path)
        refused = self._leave(entry.path)
        if entry.type is EntryType.DIRECTORY:
            if entry.path:
                os.mkdir(name, 0o700, dir_fd=self._root.directory(parent))
            self._open.append(entry)
        elif entry.type is EntryType.SYMLINK:
            folder = self._root.directory(parent)
            os.symlink(entry.target, name, dir_fd=folder)
            refused += apply_to_symlink(folder, name, _metadata(entry))
        else:
            fd = self._root.open(entry.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
            try:
                _write_all(fd, content)
                refused += apply_to_descriptor(fd, _metadata(entry))
            finally:
                os.close(fd)
        return refused

    def finish(self) -> tuple[NotApplied, ...]:
        refused = self._leave(None)
        if _libc.syncfs(ctypes.c_int(self._root.fd)) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return refused

    def close(self) -> None:
        self._root.close()

    def _leave(self, path: bytes | None) -> tuple[NotApplied, ...]:
        """Finishes the directories that ``path`` does not lie in."""
        refused: tuple[NotApplied, ...] = ()
        while self._open:
            inside = path is not None and (not self._open[-1].path or path.startswith(self._open[-1].path + b"/"))
            if inside:
                break
            entry = self._open.pop()
            refused += apply_to_descriptor(self._root.directory(entry.path), _metadata(entry))
        return refused


def _database(place: Place, entry: Entry, content: Iterator[bytes]) -> tuple[NotApplied, ...]:
    fd = os.open(place.new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        _write_all(fd, content)
        refused = apply_to_descriptor(fd, _metadata(entry))
        os.fsync(fd)
    finally:
        os.close(fd)
    damage = damage_of_file(os.fsdecode(place.new))
    if damage:
        raise Refused(
            "refused the package", subject=entry.dataset, reason=f"the database in it is damaged: {damage}",
            hint="it was damaged when the package was made; choose the other datasets with --dataset",
        )  # fmt: skip
    return refused


def _metadata(entry: Entry) -> Metadata:
    return Metadata(mode=entry.mode, uid=entry.uid, gid=entry.gid, mtime_ns=entry.mtime_ns, xattrs=entry.xattrs)


def _write_all(fd: int, content: Iterator[bytes]) -> None:
    for piece in content:
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view) :]
