"""The blocking half of the sink: takes checked frames, stages them, commits whole groups.

Order of a commit, and why nothing acknowledged can be lost:
1. everything staged and every partial that grew is synced;
2. one durable transaction stores the steps (the intent), the position and what is durable of the partials: from here
   on the groups survive anything, because the next open finishes them;
3. the steps are performed; 4. the position counts as applied, which is the acknowledgement;
5. entries are noted; 6. when nothing else waits, the directories are synced and the intent is cleared. Before 2
   nothing is visible, so a failure drops the groups whole. One thread at a time. Seconds are monotonic.

In a full sync 1 takes as long as everything else, and is only waiting: a second thread waits, while the next batch is
staged. At most one batch is *syncing*; it is committed before any other.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.apply.tree.changes import Piece
from ha_sync.apply.tree.partials import Partials
from ha_sync.apply.tree.publish import Outcome, Publisher, nothing_fails
from ha_sync.apply.tree.rooting import forget_all, is_same, open_root, open_storage
from ha_sync.apply.tree.staging import Batch, Stager
from ha_sync.apply.tree.steps import Step, in_order
from ha_sync.apply.tree.syncing import syncfs_and_drop
from ha_sync.apply.tree.trash import Trash, hidden_directory, remove_tree
from ha_sync.apply.tree.unheld import Unheld
from ha_sync.catalogue.tree import ADMITTED, TreeCatalogue
from ha_sync.config import TreeSettings
from ha_sync.core.dataset import Report
from ha_sync.core.position import NOWHERE, Position
from ha_sync.core.representation import EVERYTHING, Holding, holding_of
from ha_sync.errors import RepairNeeded, Retryable
from ha_sync.files.confine import Root
from ha_sync.files.places import STAGE, Scope
from ha_sync.files.watch import filesystem_type

BATCH_S_MAX = 0.5
BATCH_BULK_S_MAX = 3.0
"""However much comes, what is whole is committed after so long: in a full sync nobody waits for a single file."""
GROWTH_SYNC_S = 0.25
"""Growing files are synced and acknowledged at most this often, unless something else commits anyway."""

MIB = 1024 * 1024
DROP_MIN = 32 * 1024
"""Smaller files are not worth the three calls that drop them from the page cache."""

DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
UNHELD_TOLD_MAX = 1000


@dataclass(slots=True, kw_only=True)
class Tree:
    """What exists only while the root can be used."""

    root: Root
    trash: Trash
    partials: Partials
    publisher: Publisher
    stager: Stager

    def close(self) -> None:
        """Releases every descriptor."""
        self.stager.close()
        self.partials.close()
        self.trash.close()
        self.root.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a round of work led to."""

    wait_s: float | None = None  # growth waits so long for its sync
    failure: Exception | None = None
    needs: tuple[bytes, ...] = ()


@dataclass(slots=True)
class Counters:
    """For `status`."""

    published: int = 0
    removed: int = 0
    groups: int = 0
    commits: int = 0
    needs: int = 0
    recovered: int = 0
    extra: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Syncing:
    """A batch whose files the other thread makes durable."""

    batch: Batch
    done: Future[None]


def _is_full(error: Exception | None) -> bool:
    return isinstance(error, OSError) and error.errno in DISK_FULL


class Applier:
    """See the module."""

    def __init__(
        self,
        settings: TreeSettings,
        *,
        catalogue_path: str,
        report: Report,
        durable: Callable[[Position], None],
        synced: Callable[[], None] = lambda: None,
        fail_point: Callable[[str], None] = nothing_fails,
    ) -> None:
        """``synced`` is called in another thread when ``work`` should be called again, whatever comes."""
        self.settings = settings
        self.scope = Scope.of(settings)
        self.catalogue = TreeCatalogue(catalogue_path, ordered=True)
        self.report = report
        self.counters = Counters()
        self.applied = self.catalogue.position("applied")
        self.consistent = self.catalogue.get("consistent") == "1"
        self.tree: Tree | None = None
        self.holding: Holding = EVERYTHING  # what the filesystem of a storage can represent
        self.strangers: set[bytes] = set()  # what others wrote to an add-only storage, once it was told
        self.lost: tuple[bytes, ...] = ()  # of an interrupted group: to be asked for
        self._durable = durable
        self._synced = synced
        self._fail_point = fail_point
        self._batch = Batch()
        self._syncing: _Syncing | None = None
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix=f"tree-{settings.name}-sync")
        self._comparing = False
        self._next_growth_sync = 0.0
        self._unfinished = bool(self.catalogue.intent())
        self._settled = not self._unfinished
        self._names = 0
        # Where calls must not suffer much is not synced at once, either.
        bounded = settings.storage is not None and settings.storage.rate_mib_per_s > 0
        self._bulk_s = BATCH_S_MAX if bounded else BATCH_BULK_S_MAX
        self._session = os.urandom(6).hex().encode("ascii")

    def unused_name(self) -> bytes:
        """A name in our hidden directories that was never used."""
        self._names += 1
        return b"%s-%x" % (self._session, self._names)

    # ---- opening

    @property
    def may_begin(self) -> bool:
        """Whether the tree may be made ready before a stream begins: nothing is written to a storage until then."""
        return self.settings.storage is None or self.applied != NOWHERE

    def ready(self, *, now: float) -> Tree:
        """The tree, after what a crash left half done was finished. Raises OperatorNeeded, or OSError."""
        if self.tree is not None and not is_same(self.tree.root):
            self.close_tree()
            raise Retryable("lost the dataset's directory", subject=self.settings.path, reason="another one is there")
        if self.tree is None:
            self.tree = self._open_tree(now=now)
        elif self._unfinished:
            self._finish_intent(self.tree, now=now)
        return self.tree

    def _open_tree(self, *, now: float) -> Tree:
        if self.settings.storage is not None:
            root = open_storage(self.settings.path, self.catalogue)
            self.holding = holding_of(filesystem_type(self.settings.path))
        else:
            root = open_root(self.settings.path, self.catalogue, report=self.report)
        self._read_state()
        with contextlib.ExitStack() as undo:
            undo.callback(root.close)
            tree = self._parts(root, undo)
            if self._unfinished:
                self._finish_intent(tree, now=now)
            self._sweep(root)
            tree.partials.load(same_boot=self._same_boot())
            undo.pop_all()
        return tree

    def _read_state(self) -> None:
        self.applied = self.catalogue.position("applied")
        self.consistent = self.catalogue.get("consistent") == "1"
        self._unfinished = bool(self.catalogue.intent())

    def _parts(self, root: Root, undo: contextlib.ExitStack) -> Tree:
        os.close(hidden_directory(root, STAGE))
        trash = Trash(root, limit=self.settings.trash_mib * MIB)
        undo.callback(trash.close)
        partials = Partials(root, self.catalogue, unused_name=self.unused_name)
        undo.callback(partials.close)
        publisher = Publisher(
            root,
            scope=self.scope,
            catalogue=self.catalogue,
            trash=trash,
            unused_name=self.unused_name,
            report=self.report,
            fail_point=self._fail_point,
        )
        unheld = Unheld(self.holding, root, self.catalogue, tell=self._unheld) if not self.holding.complete else None
        stager = Stager(
            root,
            scope=self.scope,
            catalogue=self.catalogue,
            partials=partials,
            unused_name=self.unused_name,
            refused=publisher.tell_refused,
            unheld=unheld,
            fail_point=self._fail_point,
        )
        undo.callback(stager.close)
        return Tree(root=root, trash=trash, partials=partials, publisher=publisher, stager=stager)

    def _unheld(self, path: bytes, reason: str, *, first: bool) -> None:
        extra = self.counters.extra
        extra["unrepresented"] = extra.get("unrepresented", 0) + first
        if first and extra["unrepresented"] <= UNHELD_TOLD_MAX:
            fields: dict[str, object] = {"dataset": self.settings.name, "path": os.fsdecode(path), "reason": reason}
            self.report("warning", "an object cannot lie on this storage and is left out", fields)

    def _same_boot(self) -> bool:
        """Whether the machine has run on since the partials were written; stores this boot."""
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            boot = file.read().strip()
        same = self.catalogue.get("boot") == boot
        if not same:
            with self.catalogue.transaction(durable=False):
                self.catalogue.put("boot", boot)
        return same

    @staticmethod
    def _sweep(root: Root) -> None:
        """Leftovers of groups that were never whole."""
        stage = os.open(STAGE, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root.fd)
        try:
            for name in os.listdir(stage):
                remove_tree(stage, os.fsencode(name))
        finally:
            os.close(stage)

    def _finish_intent(self, tree: Tree, *, now: float) -> None:
        steps = [Step.decode(data) for data in self.catalogue.intent()]
        outcome = tree.publisher.perform(steps, now=now, again=True)
        self._note(outcome)
        if outcome.lost:
            self.lost = tuple(outcome.lost)
            self.forget_entries(self.lost)
        self._unfinished, self._settled = False, False
        self.counters.recovered += len(steps)
        self.settle()
        self.report("info", "finished what was interrupted", {"dataset": self.settings.name, "steps": len(steps)})

    def close_tree(self) -> None:
        """Forgets the root; what was staged is swept when it is opened again."""
        self._forget_batches()
        if self.tree is not None:
            self.tree.close()
            self.tree = None

    def close(self) -> None:
        """Releases everything."""
        if self.tree is not None and not self._unfinished:
            with contextlib.suppress(OSError):
                self.drop(everything=True)
                self.settle()
                self._sweep(self.tree.root)
        self.close_tree()
        self._syncer.shutdown(wait=False)
        self.catalogue.close()

    # ---- taking frames

    def partials(self, *, now: float) -> list[pb.Partial]:
        """What came in parts and is not whole here; all of it, whether it is durable yet or not."""
        found = self.ready(now=now).partials.in_parts() if self.may_begin else []
        return [pb.Partial(path=each.path, version=each.version, size=each.size) for each in found]

    def begin(self, *, comparing: bool, now: float) -> None:
        """A stream (re)starts."""
        before = self.applied
        tree = self.ready(now=now)
        if self.applied != before:
            raise RepairNeeded("must compare", subject=self.settings.name, reason="what was here is gone")
        self.drop(everything=True)
        self._clear_stage(tree)
        self._comparing = comparing
        if comparing:
            tree.partials.begin_compare()

    def drop(self, *, everything: bool) -> None:
        """Forgets the open group, or the whole batch."""
        if self.tree is None:
            return
        self.tree.stager.drop_open()
        if everything:
            self._forget_batches()
            self.tree.partials.release(everything=True)
            self.tree.stager.committed()

    def _forget_batches(self) -> None:
        self._batch = Batch()
        if self._syncing is not None:
            self._syncing.done.exception()  # it has the stage's descriptor until then
            self._syncing = None

    def _give_up(self) -> None:
        """A commit failed. Where its intent is durable already, it is finished when the tree is opened again."""
        if self._unfinished:
            self.close_tree()
        else:
            self.drop(everything=True)

    def work(self, take: Callable[[], Piece | None], *, clock: Callable[[], float]) -> Progress:
        """Stages what ``take`` gives until it gives None; commits what is whole."""
        failure: Exception | None = None
        needs: tuple[bytes, ...] = ()
        began = clock()
        try:
            tree = self.ready(now=began)
            try:
                while (piece := take()) is not None:
                    self._stage(tree, piece, now=clock())
                    if self._batch.full or clock() - began > (BATCH_S_MAX if piece.consistent else self._bulk_s):
                        self._commit_or_sync(tree, now=clock())
                        began = clock()
            except Exception as error:  # noqa: BLE001 - every failure is handed on; whole groups before it still count
                failure, needs = error, tuple(tree.stager.group.needs)
                self.drop(everything=False)
            wait_s = self._commit_if_due(tree, now=clock(), failed=failure is not None)
            if _is_full(failure):
                self._make_room(tree)
        except Exception as error:  # noqa: BLE001 - handed on to the stream
            self._give_up()
            if _is_full(error) and self.tree is not None:
                with contextlib.suppress(OSError):
                    self._make_room(self.tree)
            return Progress(failure=failure or error, needs=needs)
        self.counters.needs += len(needs)
        return Progress(wait_s=wait_s, failure=failure, needs=needs)

    def _clear_stage(self, tree: Tree) -> None:
        """What dropped groups left is removed; nothing may be staged."""
        self.settle()
        tree.stager.nothing_unsynced()
        self._sweep(tree.root)

    def _make_room(self, tree: Tree) -> None:
        """The disk is full: what only we need goes first, or the stream would wait for room that we hold."""
        if not self.idle:
            return
        self._clear_stage(tree)
        if freed := tree.trash.empty():
            fields: dict[str, object] = {"dataset": self.settings.name, "bytes": freed}
            self.report("info", "emptied the trash, the disk is full", fields)

    def _stage(self, tree: Tree, piece: Piece, *, now: float) -> None:
        for part in piece.parts:
            tree.stager.take(part)
        if not piece.group_end:
            return
        if tree.partials.leaving:
            self._commit_synced(tree, now=now)  # with whose commit they would leave
        group = tree.stager.end_group()
        batch = self._batch
        batch.steps += in_order(group.steps)
        batch.position = self._later(batch.position or self.applied, piece.position)
        batch.consistent = piece.consistent
        batch.staged_bytes += group.staged_bytes
        batch.only_growth = batch.only_growth and group.grew and not group.steps
        self.counters.groups += 1

    @staticmethod
    def _later(before: Position, after: Position) -> Position:
        """A resend of an object repeats an earlier position: that never moves the journal back."""
        return before if before.resumes(after) and after.sequence < before.sequence else after

    def _commit_if_due(self, tree: Tree, *, now: float, failed: bool) -> float | None:
        if self._syncing is not None and self._syncing.done.done():
            self._commit_synced(tree, now=now)
        if failed:
            self._commit(tree, now=now)
        elif self._batch.empty or (self._syncing is not None and self._in_bulk(tree)):
            return None
        elif self._batch.only_growth and now < self._next_growth_sync:
            return self._next_growth_sync - now
        else:
            self._commit_or_sync(tree, now=now)
        return None

    def _in_bulk(self, tree: Tree) -> bool:
        """Whether the batch is of a full sync, and its files are too many to be synced one by one."""
        return not self._batch.empty and not self._batch.consistent and tree.stager.many_unsynced

    # ---- committing

    def _commit_or_sync(self, tree: Tree, *, now: float) -> None:
        if not self._in_bulk(tree):
            self._commit(tree, now=now)
            return
        self._commit_synced(tree, now=now)
        self._fail_point("SYNC")
        batch, self._batch = self._batch, Batch()
        tree.stager.nothing_unsynced()
        done = self._syncer.submit(syncfs_and_drop, tree.stager.fd, batch.staged_names(DROP_MIN))
        self._syncing = _Syncing(batch=batch, done=done)
        self._syncing.done.add_done_callback(lambda _: self._synced())

    def _commit_synced(self, tree: Tree, *, now: float) -> None:
        """The batch that is syncing, if there is one, when it is durable."""
        if self._syncing is None:
            return
        syncing, self._syncing = self._syncing, None
        try:
            syncing.done.result()
            # What was renamed before the sync began is durable with it, and nothing was since.
            tree.publisher.synced()
            tree.partials.sync()
            self._perform(tree, syncing.batch, now=now)
        except BaseException:
            self._batch = Batch()  # what comes after it must not be committed without it
            raise

    def _commit(self, tree: Tree, *, now: float) -> None:
        """Everything that is whole."""
        self._commit_synced(tree, now=now)
        if self._batch.empty:
            return
        batch, self._batch = self._batch, Batch()
        if batch.consistent and self._comparing:
            tree.partials.finish_compare()
            tree.partials.end_group()
        self._fail_point("SYNC")
        tree.partials.sync()
        if tree.stager.sync():
            tree.publisher.synced()
        elif tree.publisher.unsynced:
            tree.publisher.sync_directories()
        self._perform(tree, batch, now=now)

    def _perform(self, tree: Tree, batch: Batch, *, now: float) -> None:
        """Its files are durable, and every rename before it."""
        assert batch.position is not None
        self._fail_point("SYNCED")
        self._store(tree, batch)
        self._fail_point("DURABLE")
        self._unfinished = True
        outcome = tree.publisher.perform(batch.steps, now=now)
        self._fail_point("PERFORMED")
        tree.partials.published()
        self._unfinished, self._settled = False, False
        self.applied, self.consistent = batch.position, batch.consistent
        self._comparing = self._comparing and not batch.consistent
        self._next_growth_sync = now + GROWTH_SYNC_S
        self._durable(batch.position)
        self._note(outcome)
        tree.stager.committed(self._batch.steps)
        self.counters.commits += 1
        self._fail_point("NOTED")

    def _store(self, tree: Tree, batch: Batch) -> None:
        assert batch.position is not None
        with self.catalogue.transaction(durable=True):
            self.catalogue.clear_intent()  # of the commit before, whose renames are durable now
            if batch.steps:
                self.catalogue.put_intent([step.encode() for step in batch.steps])
            self.catalogue.put_position("applied", batch.position)
            self.catalogue.put("consistent", "1" if batch.consistent else "0")
            if batch.consistent:
                self.catalogue.put("guarded", "1")
                if self.settings.storage is not None:
                    self.catalogue.put(ADMITTED, "1")  # as Active this node goes on with it
            tree.partials.store()
        tree.partials.stored()

    def _note(self, outcome: Outcome) -> None:
        self.counters.published += len(outcome.entries)
        self.counters.removed += len(outcome.removed)
        if not outcome.entries and not outcome.removed:
            return
        with self.catalogue.transaction(durable=False):
            for path in outcome.removed:
                self.catalogue.remove_below(path)
            self.catalogue.put_entries(outcome.entries.values())

    def settle(self) -> None:
        """Nothing waits: makes the renames durable by themselves, clears the intent, keeps the trash to its bound."""
        if self.tree is None or self._settled or self._unfinished or self._syncing is not None:
            return
        self.tree.publisher.sync_directories()
        with self.catalogue.transaction(durable=False):
            self.catalogue.clear_intent()
        self._settled = True
        self.tree.trash.purge()

    # ---- for the guard and the operator

    @property
    def idle(self) -> bool:
        """Whether no group is staged or half published."""
        return self._batch.empty and self._syncing is None and not self._unfinished

    @property
    def guarded(self) -> bool:
        """Whether the tree was equal to the Active's in this role: only then a difference is tampering."""
        return self.catalogue.get("guarded") == "1" and not self._comparing

    def forget_position(self, reason: str) -> RepairNeeded:
        """Too much differs to name it: the next stream compares."""
        self.drop(everything=True)
        with self.catalogue.transaction(durable=True):
            self.catalogue.forget("applied")
        self.applied = NOWHERE
        return RepairNeeded("must compare", subject=self.settings.name, reason=reason)

    def accept_root(self) -> None:
        """The operator takes the directory as it is: everything known of another one is forgotten."""
        self.close_tree()
        with self.catalogue.transaction(durable=True):
            forget_all(self.catalogue)
        self._read_state()

    def forget_entries(self, paths: Iterable[bytes]) -> None:
        """What is known of these is not true any more."""
        with self.catalogue.transaction(durable=False):
            self.catalogue.remove_entries(paths)
