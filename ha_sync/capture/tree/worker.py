"""Everything of a tree's capture that blocks: one object, used by one thread.

The source (event loop) tells it what became due; it marks, scans in slices, and produces the frames of one group after
the other: live changes first, then growing files, then the bulk of a sync. Times are monotonic seconds.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial

from ha_sync.capture.settle import Due
from ha_sync.capture.tree.appending import Appending
from ha_sync.capture.tree.comparing import Comparison
from ha_sync.capture.tree.frames import FrameBuilder, frames_of, nothing
from ha_sync.capture.tree.gathering import GROUP_CHANGES_MAX, Gathering
from ha_sync.capture.tree.guard import MASS_MIN, RESTORED, Accepted, RootGuard, boot_id
from ha_sync.capture.tree.journal import Journal
from ha_sync.capture.tree.links import Links
from ha_sync.capture.tree.losses import Losses
from ha_sync.capture.tree.mailboxes import Mailboxes
from ha_sync.capture.tree.parts import Parts
from ha_sync.capture.tree.reading import Group, Item, Met, Reader
from ha_sync.capture.tree.scan import Tally, Walk, Watch, differences
from ha_sync.capture.tree.terms import Terms
from ha_sync.capture.tree.told import RESUME_HINT, Told, Warnings
from ha_sync.catalogue.tree import COPY_SOURCE_MIN, TreeCatalogue, key_of
from ha_sync.config import TreeSettings
from ha_sync.core.frame import FRAME_TARGET_BYTES, Frame
from ha_sync.core.position import Epoch, Position, Sequence
from ha_sync.errors import HaSyncError
from ha_sync.files.confine import Root, components
from ha_sync.files.rules import Rules, unit_order

PRODUCED_BYTES = 2 * FRAME_TARGET_BYTES  # by one call: handing frames over between threads costs too
MISSING_MAX = 100_000  # missing paths kept until a scan ends; beyond it they are judged in portions
BULK_COPY_MIN = 64 * 1024
"""In a sync smaller content is not looked for under other names: the question would cost more than the bytes."""

DISTRUSTS = "distrusts"
"""Stored until everything that was dirty when a crash made us forget what was sent is acknowledged."""


class TreeWorker:
    """See the module."""

    def __init__(self, settings: TreeSettings, catalogue_path: str, rules: Rules) -> None:
        self._settings = settings
        self._rules = rules
        self.catalogue = TreeCatalogue(catalogue_path)
        self.journal = Journal(self.catalogue)
        self.root: Root | None = None
        self.guard: RootGuard | None = None
        self.halted = ""
        self.appending = Appending(self.catalogue, self.journal)
        self._mailboxes = Mailboxes(rules)
        self._links = Links()
        self._losses = Losses(self.catalogue, self.journal.counted, self._status)
        self.told = Told()
        self.tally = Tally()
        self.met = Met()
        self.session = 0
        self._directories: set[bytes] = set()
        self._current: Iterator[Frame] | None = None
        self._comparison: Comparison | None = None
        self.is_open: Callable[[bytes], bool] = lambda _: False  # a file that is being written: it is read when closed
        self._distrusts = False  # the Standby was sent what no catalogue of ours tells of: everything goes whole
        self._continued = False
        self._stored_acknowledged = Sequence(0)
        self._restored = catalogue_path + RESTORED
        self._accepted = Accepted.BEING_FOUND if os.path.exists(self._restored) else Accepted.NOTHING
        self._warnings = Warnings()
        self.terms = Terms(settings, self.catalogue)
        self.parts = Parts(
            self.catalogue,
            self.appending.files,
            self.terms,
            root=self._rooted,
            refuses=self._goes_whole,
            may_copy=self._may_copy,
        )
        self._gathering = Gathering(
            journal=self.journal, parts=self.parts, mailboxes=self._mailboxes, status_of=self._status
        )
        self.abandoned = False  # another has taken over: nothing is written any more

    # ---- life

    def open(self, epoch: Epoch) -> None:
        """Goes on in the stored journal, or begins a new one."""
        clean = self.catalogue.get("closed_in_boot") == "clean"
        same_boot = self.catalogue.get("boot") == boot_id()
        # Our notes are not synced: after a crash of the machine they may be older than what the Standby was sent.
        self.journal.open(epoch, trusted=(clean or same_boot) and not self.catalogue.lost)
        self._continued = self.journal.peer_known
        self._stored_acknowledged = self.journal.acknowledged
        self._distrusts = self.catalogue.get(DISTRUSTS) is not None
        with self.catalogue.transaction(durable=True):
            self.catalogue.put("boot", boot_id())
            self.catalogue.put("closed_in_boot", "no")

    def close(self) -> None:
        """Stores what is known and closes everything."""
        self._drop_current()
        if self.abandoned:
            self.catalogue.close()
            return
        with self.catalogue.transaction(durable=True):
            self.catalogue.mark_dirty([(path, seq) for path, (seq, _) in self.journal.live.items()])
            self.catalogue.mark_dirty([(path, self.journal.next_sequence()) for path in self.journal.held])
            self.catalogue.put("closed_in_boot", "clean")
        self.leave_root()
        self.catalogue.close()

    def enter_root(self) -> bool:
        """Opens the root if it is there; a guard may halt."""
        self.leave_root()
        if self.terms.gone():
            return False
        try:
            self.root = Root(self._settings.path)
        except OSError as error:
            self.terms.went(f"it cannot be opened: {error.strerror}")
            return False
        self.guard = self.terms.guard_of(self.root)
        try:
            reason = self.guard.enter()
        except OSError as error:
            reason = f"the root's marker cannot be written: {error.strerror}"
        if reason and not self._disbelieved(reason):
            return False
        self.told.reports += self.terms.entered(self.guard.kind)
        return True

    def _disbelieved(self, reason: str) -> bool:
        """A tree halts until an operator has looked at it; a storage is waited for. Whether the root stays open."""
        if self.terms.went(reason):
            self.leave_root()
            return False
        self.halt(reason)
        return True

    def look(self) -> None:
        """Whether the root is the one that it was."""
        if self.guard is not None and not self.halted and (reason := self.guard.look()):
            self._disbelieved(reason)

    def leave_root(self) -> None:
        """Closes the root's descriptors."""
        self._drop_current()
        if self.root is not None:
            self.root.close()
            self.root = None

    def halt(self, reason: str) -> None:
        """A guard stops the dataset: nothing is sent until an operator resumes it."""
        if not self.halted:
            self.halted = reason
            self.told.reports.append(
                ("error", "dataset halted: nothing is deleted on the standby", {"reason": reason, "hint": RESUME_HINT})
            )

    def resume(self, *, accept_deletes: bool) -> bool:
        """Goes on after a halt; the caller scans the whole tree afterwards. False where there is no root."""
        if self.terms.gone():
            return False
        self.halted = ""
        self.leave_root()
        try:
            self.root = Root(self._settings.path)
        except OSError:
            return False
        self.guard = self.terms.guard_of(self.root)
        if accept_deletes:
            self.guard.adopt()
        elif reason := self.guard.enter():
            self.halt(reason)
        self._accepted = Accepted.BEING_FOUND if accept_deletes else Accepted.NOTHING
        self.journal.forget_dirty()
        return True

    def take_told(self) -> Told:
        """What happened since the last time."""
        met = self.met
        self.told.again += met.again
        self.told.costs += met.costs
        self.told.reports += self._warnings.of(met)
        self.told.logs, self.appending.logs = self.appending.logs, []
        met.again, met.costs, met.errors, met.databases = [], [], [], []
        told, self.told = self.told, Told()
        return told

    # ---- noticing

    def mark(self, due: Due) -> None:
        """What became due is dirty now."""
        journal = self.journal
        if self.root is not None:
            self.root.forget()
        for path, noticed in due.ready.items():
            self._mark(path, noticed)
        for unit in due.units:
            for path, noticed in unit.paths.items():
                self._mark(path, noticed)
            if unit.overdue:
                self._mailboxes.is_overdue(unit.mailbox)
                self._report_overdue(unit.mailbox)
        for path in due.grow:
            self.appending.grew(path)
        for path in due.look:
            self._look(path)
        for path in self.appending.left_alone(self.root, due.left):
            self._mark(path, time.monotonic())
        self._judge(list(due.ready) + [path for unit in due.units for path in unit.paths])
        journal.spill()

    def _mark(self, path: bytes, noticed: float) -> None:
        if not self.journal.peer_known:
            return  # whoever comes first compares, and finds it
        notice = self.journal.mark(path, noticed)
        if notice is not None and noticed:
            self.told.notices.append(notice)

    def _report_overdue(self, mailbox: bytes) -> None:
        fields: dict[str, object] = {"mailbox": os.fsdecode(mailbox)}
        self.told.reports.append(("warning", "a mailbox stays locked: read as it is", fields))

    def _look(self, path: bytes) -> None:
        """Created or written and not closed: what is never closed, or known already, is shipped now."""
        try:
            status = self._rooted().lstat(path)
        except (OSError, HaSyncError):
            return
        linked = self._links.stands(path, status)
        self.told.linked |= linked
        if linked or not stat.S_ISREG(status.st_mode) or self._is_known(path):
            self._mark(path, time.monotonic())

    def _is_known(self, path: bytes) -> bool:
        return self.catalogue.knows(path) or self.journal.flies(path)

    def _judge(self, paths: Iterable[bytes]) -> None:
        """Counts the files that are lost with these paths, and looks for hard links."""
        if not self.journal.peer_known or self.root is None:
            return
        gone: list[bytes] = []
        for path in paths:
            status = self._status(path)
            if status is None:
                gone.append(path)
                self.told.linked |= self._links.went(path)
                continue
            self._losses.stands(path, status.st_ino)
            self.told.linked |= self._links.stands(path, status)
        self._may_go(gone)

    def _may_go(self, gone: list[bytes]) -> bool:
        """Whether the guard lets these go; halts where it does not."""
        if gone and not self._settings.keeps_deleted and (files := self._losses.files(gone)):
            self._deleting(files)
        return not self.halted and self.root is not None

    def _deleting(self, files: int) -> None:
        assert self.guard is not None
        reason = self.guard.look()
        if not reason and self._accepted is Accepted.NOTHING:
            reason = self.guard.deleting(files, now=time.monotonic())
        if reason and not (self.terms.is_storage and self.guard.look() and not self._disbelieved(reason)):
            self.halt(reason)

    def _rooted(self) -> Root:
        if self.root is None:
            raise FileNotFoundError(self._settings.path)
        return self.root

    # ---- scanning

    def scan(self, path: bytes, watch: Watch | None, *, noticed: float) -> Iterator[None]:
        """Finds what differs at and below ``path``; pausing often. ``noticed``: since when, 0 where nobody knows."""
        if self.root is None:
            return
        walk = Walk(self.root, self._rules, watch, self._links)
        if self.journal.peer_known:
            self._find_overtaken(path, noticed)
            yield from self._compared(walk, path, noticed)
        else:
            yield from self._watch_only(walk, path)
        self._count(walk.tally, path)
        if not path and self._accepted is Accepted.BEING_FOUND:
            self._accepted = Accepted.BEING_SENT

    def _find_overtaken(self, path: bytes, noticed: float) -> None:
        """Marks what is on its way and gone: the catalogue, which a scan is compared with, does not know it yet."""
        self._rooted().forget()
        below = path + b"/" if path else b""
        growing = [each for each in self.appending.files if each.startswith(below) or each == path]
        for each in {*self.journal.flying_below(path), *growing}:
            if self._status(each) is None:
                self._mark(each, noticed)

    def _compared(self, walk: Walk, path: bytes, noticed: float) -> Iterator[None]:
        missing: list[bytes] = []
        for found in differences(self.catalogue, walk, path, self.journal.flies, inodes=self.terms.holding.inodes):
            if found is not None:
                # Of a scan of everything the other names are compared too; of one directory they may lie elsewhere.
                self.told.linked |= found.linked and bool(path)
                for each in found.changed:
                    self._losses.is_back(each)
                for each, inode in found.appeared:
                    self._losses.stands(each, inode)
                # What is being written is read when it is closed.
                self._found(tuple(each for each in found.changed if not self.is_open(each)), noticed)
                missing += found.missing
                if len(missing) > MISSING_MAX:
                    self._lost(missing)
                    missing = []
            yield
        self._lost(missing)

    def _watch_only(self, walk: Walk, path: bytes) -> Iterator[None]:
        for steps, _ in enumerate(walk.below(path), 1):
            if steps % 500 == 0:
                yield

    def _count(self, tally: Tally, path: bytes) -> None:
        if not path:
            self.tally = tally
        else:
            self.tally.add(tally)

    def _found(self, paths: tuple[bytes, ...], noticed: float) -> None:
        if noticed and len(self.journal.live) + len(paths) <= GROUP_CHANGES_MAX:
            for path in paths:
                self._mark(path, noticed)
            return
        with self.catalogue.transaction(durable=False):
            self.journal.mark_bulk(path for path in paths if path not in self.journal.live)

    def _lost(self, missing: list[bytes]) -> None:
        if missing:
            self._may_go(missing)
            self._found(tuple(missing), 0.0)

    # ---- sessions

    def begin(self, applied: Position, *, resume: bool) -> None:
        """A session begins."""
        self._drop_current()
        self.appending.files.clear()
        self.parts.begin(applied.sequence if resume else None)
        self._directories.clear()
        journal = self.journal
        if resume:
            journal.acknowledge(applied.sequence)
            if self._continued and applied.sequence != self._stored_acknowledged:
                self._distrust()
        journal.ground()
        self._continued = False

    @property
    def idle(self) -> bool:
        """Whether the Standby has everything that was ever noticed; a group that is half handed out is not there."""
        return self._current is None and self.journal.peer_known and self.journal.idle

    def acknowledge(self, sequence: Sequence) -> None:
        """Everything up to ``sequence`` is durable on the Standby."""
        self.journal.acknowledge(sequence)
        if self.journal.idle:
            self.parts.all_landed()
        if self._distrusts and not self.journal.held and not self.catalogue.dirty(limit=1):
            self._trust()

    def _distrust(self) -> None:
        # By what was dirty then, not by its sequence: a path that changes again gets a new one.
        self._distrusts = True
        self.catalogue.put(DISTRUSTS, "1")
        self.journal.distrust_fallen()

    def _trust(self) -> None:
        self._distrusts = False
        self.catalogue.forget(DISTRUSTS)

    def begin_compare(self) -> None:
        """The Standby's inventory follows."""
        self._drop_current()
        self.journal.begin_sync()
        self._directories.clear()
        self._trust()
        if self.root is not None:
            self._comparison = Comparison(
                self.catalogue, self.journal, Walk(self.root, self._rules, None), self._rules
            )  # fmt: skip

    def feed(self, chunk: bytes) -> None:
        """A chunk of it."""
        if self._comparison is not None:
            self._comparison.feed(chunk)

    def end_compare(self) -> None:
        """All of it."""
        comparison, self._comparison = self._comparison, None
        if comparison is None:
            return
        comparison.end()
        if comparison.lost_files >= MASS_MIN and not self._settings.keeps_deleted:
            self._deleting(comparison.lost_files)

    def need(self, paths: tuple[bytes, ...]) -> None:
        """The Standby cannot use what it has of these."""
        for path in paths:
            components(path)  # it came from outside
            self.appending.files.pop(path, None)
            self._directories.discard(path)
        with self.catalogue.transaction(durable=False):
            self.catalogue.remove_entries(paths)
            self.journal.mark_bulk(paths)
        self.journal.resend.update(paths)

    def end(self) -> None:
        """The session is over; what the Standby has of what is in flight is known when it comes back."""
        self._drop_current()
        self._comparison = None

    def _drop_current(self) -> None:
        if self._current is not None:
            current, self._current = self._current, None
            current.close()  # type: ignore[attr-defined]

    # ---- producing

    def produce(self) -> list[Frame]:
        """The next frames; empty where there is nothing to send."""
        frames: list[Frame] = []
        size = 0
        # A group that was begun is finished after a halt too: the guard let all that it deletes go.
        while size < PRODUCED_BYTES and (self._current is not None or not (self.halted or self.terms.hold)):
            if self._current is None:
                if frames:
                    break
                self._current = self._begin_group()
                if self._current is None:
                    break
            frame = next(self._current, None)
            if frame is None:
                self._current = None
                continue
            frames.append(frame)
            size += frame.size
        return frames

    def _begin_group(self) -> Iterator[Frame] | None:
        if self.root is None or self.halted or self._comparison is not None or not self.journal.peer_known:
            return None
        journal = self.journal
        # A directory of this tree may have been renamed since its descriptor was opened.
        self.root.forget()
        journal.hold()
        self.told.notices += journal.release()
        if journal.live and (items := self._gathering.live()):
            return self._live_group(items)
        if paths := self.appending.take():
            return self._growth_group(lambda builder: self.appending.steps(self._rooted(), paths, builder))
        if journal.crowded:
            return None
        if bulk := journal.take_bulk(GROUP_CHANGES_MAX):
            return self._bulk_group(bulk)
        if journal.synced_at is None and not journal.held:
            journal.next_sequence()
            journal.end_sync()
        if journal.sent < journal.captured.sequence and not journal.held:
            return self._nothing_group()
        if self._accepted is Accepted.BEING_SENT and not journal.held:
            self._accepted = Accepted.NOTHING
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._restored)
        return None

    def _consistent(self, sequence: Sequence) -> bool:
        synced = self.journal.synced_at
        return synced is not None and sequence >= synced

    def _nothing_group(self) -> Iterator[Frame]:
        journal = self.journal
        position = journal.captured
        journal.flew(position.sequence, [])
        yield nothing(position, consistent=self._consistent(position.sequence))

    def _live_group(self, items: list[Item]) -> Iterator[Frame]:
        last = items[-1].mark
        items = self._with_units(items)
        self.journal.leave((item.path, item.mark) for item in items)
        return self._group(items, last)

    def _bulk_group(self, taken: list[tuple[bytes, Sequence]]) -> Iterator[Frame]:
        if items := self._gathering.bulk(taken):
            return self._group(self._with_units(items), self.journal.next_sequence(), copy_from_size=BULK_COPY_MIN)
        path, _ = taken[0]
        return self._growth_group(partial(self.parts.steps, path))

    def _with_units(self, items: list[Item]) -> list[Item]:
        items, waiting = self._mailboxes.units(self._rooted(), items)
        self.told.relocked += waiting
        return items

    def _status(self, path: bytes) -> os.stat_result | None:
        parent, _, name = path.rpartition(b"/")
        try:
            root = self._rooted()
            if not path:
                return os.fstat(root.fd)
            return os.stat(name, dir_fd=root.directory(parent), follow_symlinks=False)
        except (OSError, HaSyncError) as error:
            self.terms.must_not_vanish(error)
            return None

    def _group(
        self, items: list[Item], sequence: Sequence, *, copy_from_size: int = COPY_SOURCE_MIN
    ) -> Iterator[Frame]:
        journal = self.journal
        reader = Reader(
            root=self._rooted(), catalogue=self.catalogue, growing=self.appending.files, directories=self._directories,
            may_copy=self._may_copy, falls=journal.falls, resend=journal.resend, met=self.met,
            leaves=lambda path: journal.leave(((path, sequence),)), sequence=sequence,
            copy_from_size=copy_from_size, whole=self._distrusts, keeps=self._settings.keeps_deleted,
            racy_ns=self.terms.racy_ns, shifts=self.terms.is_storage, hashes_of=self.parts.take_hashes,
        )  # fmt: skip
        items.sort(key=_order)
        builder = FrameBuilder()
        group = Group(reader, builder)
        finished = False
        journal.building.update(item.path for item in items)
        try:
            if not self._may_go(group.losses(items)):
                return
            sent = False
            held: Frame | None = None
            for frame in frames_of(
                builder, group.steps(items), journal.position(sequence), consistent=self._consistent(sequence)
            ):  # fmt: skip
                if held is not None:
                    yield held
                held, sent = frame, True
            if sent:
                journal.flew(sequence, group.outcomes)
                self.parts.whole((item.path for item in items), sequence)
            else:
                journal.settle(group.outcomes)
            finished = True
            journal.resend.difference_update(journal.building)
            journal.built()
            if held is not None:
                yield held
        finally:
            if not finished:
                journal.built()
                for item in items:
                    journal.live.setdefault(item.path, (journal.next_sequence(), item.noticed))

    def _growth_group(self, steps_of: Callable[[FrameBuilder], Iterator[None]]) -> Iterator[Frame]:
        journal = self.journal
        sequence = journal.next_sequence()
        builder = FrameBuilder()
        held: Frame | None = None
        for frame in frames_of(
            builder, steps_of(builder), journal.position(sequence), consistent=self._consistent(sequence)
        ):
            if held is not None:
                yield held
            held = frame
        if held is not None:
            # Where nothing was appended the position moves by a frame without changes.
            journal.flew(sequence, [])
            yield held

    def _goes_whole(self, path: bytes) -> bool:
        return self._settings.mailboxes or path in self.journal.resend

    def _may_copy(self, path: bytes) -> bool:
        """Whether the Standby has this content under this name when the group that is being built arrives."""
        if self._distrusts:
            return False  # it was sent things that we do not remember
        journal = self.journal
        return path in journal.building or not journal.flies(path)


def _order(item: Item) -> tuple[int, bool, bytes]:
    if item.unit:
        last, path = unit_order(item.path)
        return item.unit, last, key_of(path)
    return 0, False, key_of(item.path)
