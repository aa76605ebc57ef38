"""Packs the datasets of a node into one stream. Blocking; for a process of its own (``child``).

The configuration goes first, in the order of the settings: what is lost when a reader goes away is the bulk. What could
not be read, and a database that SQLite finds damaged, are *faults*: the package is written, and its maker is told.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from ha_sync.backup.package.databases import COMPANIONS, copy_database, remove_copy
from ha_sync.backup.package.format import PIECE_BYTES, Described, Entry, EntryType, Head, blake2b
from ha_sync.backup.package.plan import DatasetPlan
from ha_sync.backup.package.trees import TreeReader, measure
from ha_sync.backup.package.writer import Out, PackageWriter
from ha_sync.core.examine import Fault
from ha_sync.errors import OperatorNeeded

NAMED_MAX: Final = 100

Spend = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What there is to pack, before it is read."""

    objects: int
    content_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """What was packed."""

    entries: int
    content_bytes: int
    package_bytes: int
    digest: str  # of the whole
    moving: tuple[str, ...]  # the first of those that did not hold still
    moving_count: int
    faults: tuple[tuple[str, str, str, str], ...]  # dataset, subject, kind, in words
    absent: tuple[str, ...]  # datasets of which this node has nothing


def expect(plans: tuple[DatasetPlan, ...], *, spool_dir: str) -> Expected:
    """Counts. Raises OperatorNeeded where the largest database would not fit beside the state for its copy."""
    objects = content = largest = 0
    for plan in plans:
        if plan.kind == "tree":
            found = measure(plan.path, plan.rules) if os.path.isdir(plan.path) else (0, 0)
        else:
            size = sum(_size(plan.path + end) for end in ("", *COMPANIONS[:1]))
            largest = max(largest, size)
            found = (1, size)
        objects, content = objects + found[0], content + found[1]
    free = _free(spool_dir)
    if largest > free:
        raise OperatorNeeded(
            "no room to copy a database in",
            subject=spool_dir,
            reason=f"{largest} bytes are needed, {free} are free",
            hint="make room below state_dir",
        )
    return Expected(objects=objects, content_bytes=content)


class Exporter:
    """One export."""

    def __init__(self, plans: tuple[DatasetPlan, ...], head: Head, *, spool_dir: str, spend: Spend) -> None:
        self._plans = plans
        self._head = head
        self._spool_dir = spool_dir
        self._spend = spend
        self._moving: list[str] = []
        self._faults: list[tuple[str, str, str, str]] = []

    def pack(self, out: Out) -> Packed:
        """All of it. Raises Retryable, OperatorNeeded, OSError of ``out``."""
        announced = tuple(
            Described(name=plan.name, kind=plan.kind, position=plan.position, present=os.path.lexists(plan.path))
            for plan in self._plans
        )
        head = replace(self._head, datasets=announced)
        found: list[Described] = []
        with (
            tempfile.TemporaryDirectory(prefix="package-", dir=self._spool_dir) as folder,
            PackageWriter(out, head, spool_dir=folder) as writer,
        ):
            for plan, one in zip(self._plans, announced, strict=True):
                pack = self._pack_tree if plan.kind == "tree" else self._pack_database
                found.append(pack(plan, one, writer, folder))
            trailer = writer.finish(head, tuple(found))
            return Packed(
                entries=writer.entries,
                content_bytes=writer.content_bytes,
                package_bytes=writer.written,
                digest=trailer.digest.hex(),
                moving=tuple(self._moving),
                moving_count=writer.moving,
                faults=tuple(self._faults),
                absent=tuple(one.name for one in found if not one.present),
            )

    def _pack_tree(self, plan: DatasetPlan, one: Described, writer: PackageWriter, folder: str) -> Described:
        if not os.path.isdir(plan.path):
            return replace(one, present=False)
        reader = TreeReader(plan.name, plan.path, plan.rules, spool_dir=folder, spend=self._spend)
        for read in reader.objects():
            writer.add(read.entry, read.content())
            if read.entry.moving:
                self._note_moving(read.entry)
        tally = reader.tally
        for text in tally.unreadable:
            subject, _, reason = text.rpartition(": ")
            self._fault(plan.name, subject, Fault.UNVERIFIED, reason)
        notes = []
        if tally.special:
            notes.append(f"{tally.special} sockets, FIFOs or devices left out")
        if tally.too_long:
            notes.append(f"{tally.too_long} paths left out: too long")
        return replace(one, present=True, notes=tuple(notes))

    def _pack_database(self, plan: DatasetPlan, one: Described, writer: PackageWriter, folder: str) -> Described:
        copied = copy_database(plan.path, os.path.join(folder, "copy"), plan.locality)
        if copied is None:
            return replace(one, present=False)
        try:
            if copied.damage:
                self._fault(plan.name, plan.path, Fault.DAMAGED, copied.damage)
            digest = blake2b()
            for piece in _pieces(copied.path):
                digest.update(piece)
            entry = Entry(
                dataset=plan.name,
                path=b"",
                type=EntryType.DATABASE,
                offset=0,
                size=copied.size,
                digest=digest.digest(),
                mode=copied.mode if plan.mode is None else plan.mode,
                uid=copied.uid,
                gid=copied.gid,
                mtime_ns=copied.mtime_ns,
            )
            writer.add(entry, self._spent(_pieces(copied.path)))
        finally:
            remove_copy(copied.path)
        return replace(one, present=True, schema=copied.schema, notes=copied.notes)

    def _spent(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._spend(len(piece))
            yield piece

    def _note_moving(self, entry: Entry) -> None:
        if len(self._moving) < NAMED_MAX:
            self._moving.append(f"{entry.dataset}/{os.fsdecode(entry.path)}")

    def _fault(self, dataset: str, subject: str, fault: Fault, detail: str) -> None:
        self._faults.append((dataset, subject, fault.value, detail))


def _pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _free(path: str) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize
