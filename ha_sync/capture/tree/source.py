"""The Active's end of a tree: an event loop's face on a worker thread (``worker.py``).

One task per source drains the watcher, asks ``Settle`` what is due, advances scans in slices and keeps the guards;
frames are produced when the session asks. Everything that blocks runs in one thread, in order, so the catalogue has one
user.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from ha_sync.capture.settle import Due, Settle, SettleRules
from ha_sync.capture.tree import examined
from ha_sync.capture.tree.events import Heard, Hearing
from ha_sync.capture.tree.scan import Scan, Scans
from ha_sync.capture.tree.session import TreeSession
from ha_sync.capture.tree.standing import state_of
from ha_sync.capture.tree.terms import Terms
from ha_sync.capture.tree.told import RESUME_HINT, Told
from ha_sync.capture.tree.waiting import pass_fence, permitted
from ha_sync.capture.tree.worker import TreeWorker
from ha_sync.catalogue.tree import Entry
from ha_sync.config import TreeSettings
from ha_sync.core.dataset import DatasetReport, DatasetState, Report
from ha_sync.core.lag import LagLedger
from ha_sync.core.position import NOWHERE, Answer, Epoch, Position, Sequence, answer_to
from ha_sync.errors import OperatorNeeded, Retryable, WrongState
from ha_sync.files.rules import Rules
from ha_sync.files.watch import Watcher, needs_polling

T = TypeVar("T")

TICK_S = 0.1
"""How often files that are being written are looked at."""

SLICE_S = 0.02
RECONCILE_DUTY = 0.1
"""The share of the thread's time that a reconcile may take while it runs."""

ROOT_EVERY_S = 2.0
POLL_DEFAULT_S = 5.0
POLL_DUTY = 0.05
LINKED_EVERY_S = 10.0
ACK_EVERY_S = 0.02
STOP_S = 30.0
HANGS_S = 5.0


class TreeSource:
    """See the module; the methods are those of ``core.dataset.Source``."""

    def __init__(self, settings: TreeSettings, *, catalogue_path: str, report: Report) -> None:
        self._settings = settings
        self._catalogue_path = catalogue_path
        self._report = report
        self._rules = Rules(settings.exclude + settings.node_local, mailboxes=settings.mailboxes)
        self._settle = Settle(SettleRules(quiet_s=settings.quiet_ms / 1000, growing=settings.growing))
        self._hearing = Hearing(self._rules, self._settle)
        self._ledger = LagLedger()
        self._executor: ThreadPoolExecutor | None = None
        self._made: TreeWorker | None = None
        self._watcher: Watcher | None = None
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake = asyncio.Event()
        self._noticing = asyncio.Lock()
        self._moved = asyncio.Event()  # something was acknowledged, scanned or sent
        self._scans = Scans()
        self._session: TreeSession | None = None
        self._acked = Sequence(0)
        self._ack_due = False
        self._started = asyncio.Event()
        self._acknowledged: Position | None = None
        self._failed = ""
        self._absent = False
        self._polling = False
        self._poll_s = math.inf
        self._epoch = Epoch(0)
        self._next_reconcile = math.inf
        self._next_look = 0.0
        self._linked_at = math.inf  # when the other names of hard links are looked for
        self._linked_last = -math.inf
        self.sent_bytes = 0
        self._refused = ""
        self._hangs = False  # the thread did not come back in time

    # ---- life

    async def open(self, epoch: Epoch) -> None:
        """Starts capture; a root that is not there yet is waited for."""
        self._epoch = epoch
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"tree-{self._settings.name}")
        self._made = await self.run(self._begin)
        self._task = asyncio.create_task(self._main(), name=f"capture {self._settings.name}")

    def _begin(self) -> TreeWorker:
        worker = TreeWorker(self._settings, self._catalogue_path, self._rules)
        worker.open(self._epoch)
        worker.is_open = self._settle.is_open
        return worker

    @property
    def worker(self) -> TreeWorker:
        """The blocking half; raises WrongState before ``open``."""
        if self._made is None:
            raise WrongState("the dataset is not open", subject=self._settings.name)
        return self._made

    async def run(self, work: Callable[[], T]) -> T:
        """Runs blocking work in the dataset's thread."""
        assert self._loop is not None
        assert self._executor is not None
        return await self._loop.run_in_executor(self._executor, work)

    def queue(self, work: Callable[[TreeWorker], object]) -> None:
        """Has the dataset's thread do this, in order; nothing where it is not open."""
        worker, executor = self._made, self._executor
        if worker is not None and executor is not None:
            executor.submit(work, worker)

    async def close(self) -> None:
        """Stops capture."""
        if self._session is not None:
            await self._session.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._made is not None:
            worker, self._made = self._made, None
            await self._ended(worker)
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None

    async def _ended(self, worker: TreeWorker) -> None:
        if not await self.in_time(asyncio.ensure_future(self.run(lambda: self._end(worker)))):
            worker.abandoned = True
            self._report("error", "a storage does not answer and is given up", {"dataset": self._settings.name})

    async def in_time(self, work: asyncio.Future[T]) -> bool:
        """Whether work of the thread ended. That of a storage may wait for a server: a change of roles does not."""
        if self._settings.storage is not None:
            done, _ = await asyncio.wait({work}, timeout=HANGS_S / 20 if self._hangs else HANGS_S)
            self._hangs = not done
            if self._hangs:
                return False
        await work
        return True

    def _end(self, worker: TreeWorker) -> None:
        if self._watcher is not None:
            self._watcher.close()
            self._watcher = None
        worker.close()

    async def detach(self) -> tuple[str, ...]:
        """Removes the marker from the root."""
        return await self.run(self._remove_marker)

    def _remove_marker(self) -> tuple[str, ...]:
        guard = self.worker.guard
        return guard.remove_marker() if guard is not None else ()

    # ---- the task

    async def _main(self) -> None:
        while True:
            try:
                await self._capture()
            except asyncio.CancelledError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it was, the dataset says so and tries again
                self._failed = f"{type(error).__name__}: {error}"
                self._report("error", "capture failed and starts again", {"reason": self._failed})
                await asyncio.sleep(ROOT_EVERY_S)

    async def _capture(self) -> None:
        await self._enter()
        while self.worker.root is not None:
            await self._sleep()
            self._wake.clear()
            now = time.monotonic()
            self.drain(now)
            await self._notice(partial(self._settle.due, now))
            await self._advance_scan(now)
            await self._keep(now)

    async def _sleep(self) -> None:
        now = time.monotonic()
        scan = self._scans.first
        at = min(self._settle.next_at(), self._next_look, self._linked_at)
        at = min(at, self._next_reconcile if scan is None else scan.not_before)
        if self._wake.is_set() or at <= now:
            await asyncio.sleep(0)
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(asyncio.get_running_loop().time() + at - now):
                await self._wake.wait()

    async def _enter(self) -> None:
        while not await self.run(self.worker.enter_root):
            self._absent = True
            self.worker.told.reports += self.worker.terms.news()
            self._tell(self.worker.take_told())
            await asyncio.sleep(ROOT_EVERY_S if self._started.is_set() else 0.2)
        self._tell(await self.run(self.worker.take_told))
        await self.run(self._start_watching)
        self._failed = ""
        self._absent = False
        now = time.monotonic()
        self._scans.anew()
        self._next_reconcile = now + self._settings.reconcile_s
        self._next_look = now + ROOT_EVERY_S

    def _start_watching(self) -> None:
        guard = self.worker.guard
        assert guard is not None
        polled = needs_polling(guard.kind)
        self._polling = polled
        self._poll_s = math.inf
        if self.worker.terms.is_storage and self._watcher is not None:
            self._watcher.close()  # it may have been another filesystem
            self._watcher = None
        if polled or self._settings.poll_s is not None:
            self._poll_s = self._settings.poll_s if self._settings.poll_s is not None else POLL_DEFAULT_S
        if not polled and self._watcher is None:
            self._watcher = Watcher(partial(self._in_loop, self._wake.set), modified=self._modified)

    def _modified(self) -> None:
        self._in_loop(lambda: asyncio.get_running_loop().call_later(TICK_S, self._wake.set))

    def _in_loop(self, call: Callable[[], object]) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            loop.call_soon_threadsafe(call)

    def drain(self, now: float) -> None:
        """Takes what the watcher heard."""
        if self._watcher is None:
            return
        drained = self._watcher.drain()
        if drained.lost:
            self._report("warning", "file events were lost: the tree is scanned again", {})
            self._settle.doubt(b"")
            self._scan(b"", noticed=now)
        if drained.events:
            self._hear(self._hearing.hear(drained.events, now), now)

    def _hear(self, heard: Heard, now: float) -> None:
        watcher = self._watcher
        for path in (*heard.forget, *heard.scan):
            self._settle.doubt(path)
        if heard.forget and watcher is not None and self._executor is not None:
            for path in heard.forget:
                # In order before any scan that follows: the same directory under its new name has the same watch.
                self._executor.submit(watcher.forget, path)
        for path in heard.scan:
            self._scan(path, noticed=now)
        if heard.root_lost:
            self._next_look = 0.0

    def _scan(self, path: bytes, *, noticed: float, slow: bool = False) -> None:
        self._scans.add(path, noticed=noticed, slow=slow, started=self._started.is_set())

    async def _notice(self, take: Callable[[], Due]) -> None:
        """Marks what is due and rouses the session."""
        # What was taken and is not marked is nowhere: a barrier must not look in between.
        async with self._noticing:
            due = take()
            if not (due.ready or due.units or due.grow or due.look):
                return
            worker = self.worker
            work = asyncio.ensure_future(self.run(lambda: self._mark(worker, due)))
            if self._session is not None:
                # Its work queues up behind the marking, so no time is lost by waiting here first.
                await asyncio.sleep(0)
                self._session.rouse()
            self._tell(await asyncio.shield(work))

    @staticmethod
    def _mark(worker: TreeWorker, due: Due) -> Told:
        worker.mark(due)
        return worker.take_told()

    def _tell(self, told: Told) -> None:
        now = time.monotonic()
        for sequence, noticed in told.notices:
            self._ledger.noticed(sequence, at=noticed)
        for path in told.again:
            self._settle.retry(path, now)
        for path, cost in told.costs:
            self._settle.spent(path, cost, now)
        for path in told.logs:
            self._settle.publish_open(path, now)
        for waits in told.relocked:
            self._settle.locked(waits.mailbox, waits.folder, now)
            for path, noticed in waits.paths.items():
                self._settle.unit_changed(waits.mailbox, path, noticed or now)
        if told.linked and self._linked_at == math.inf:
            self._linked_at = max(now, self._linked_last + LINKED_EVERY_S)
        if told.again or told.costs or told.logs or told.relocked or told.linked:
            self._wake.set()  # something may be due sooner than the task sleeps
        for severity, what, fields in told.reports:
            self._report(severity, what, {"dataset": self._settings.name, **fields})
        self._moved.set()

    async def _advance_scan(self, now: float) -> None:
        scan = self._scans.first
        if scan is None or scan.not_before > now:
            return
        done, told = await self.run(lambda: self._slice(scan))
        self._tell(told)
        if scan.slow:
            scan.not_before = time.monotonic() + SLICE_S / RECONCILE_DUTY
        if self._session is not None:
            self._session.rouse()
        if done:
            self._scans.over(scan)
            if not scan.path:
                self._started.set()
                self._rearm(time.monotonic() - now)

    def _slice(self, scan: Scan) -> tuple[bool, Told]:
        until = time.monotonic() + SLICE_S
        if scan.steps is None:
            watch = self._watcher.add if self._watcher is not None else None
            scan.steps = self.worker.scan(scan.path, watch, noticed=scan.noticed)
        for _ in scan.steps:
            if time.monotonic() >= until:
                return False, self.worker.take_told()
        return True, self.worker.take_told()

    def _rearm(self, took_s: float) -> None:
        unwatched = self.worker.tally.unwatched
        if unwatched and not self._polling:
            self._report(
                "warning", "directories cannot be watched: the tree is scanned instead",
                {"dataset": self._settings.name, "directories": unwatched, "hint": "raise fs.inotify.max_user_watches"},
            )  # fmt: skip
            self._poll_s = min(self._poll_s, POLL_DEFAULT_S)
        self._next_reconcile = time.monotonic() + min(
            self._settings.reconcile_s, max(self._poll_s, took_s / POLL_DUTY)
        )  # fmt: skip

    async def _keep(self, now: float) -> None:
        if now >= self._next_reconcile and self._scans.first is None:
            self._next_reconcile = math.inf
            self._scan(b"", noticed=0.0, slow=self._poll_s == math.inf)
        if now >= self._linked_at:
            self._look_for_links(now)
        if now >= self._next_look:
            self._next_look = now + ROOT_EVERY_S
            self._tell(await self.run(self._look))

    def _look_for_links(self, now: float) -> None:
        self._linked_at, self._linked_last = math.inf, now
        self._scan(b"", noticed=0.0)

    def _look(self) -> Told:
        self.worker.look()
        return self.worker.take_told()

    # ---- a storage

    @property
    def terms(self) -> Terms | None:
        """On what terms it is sent; None: not open."""
        return self._made.terms if self._made is not None else None

    async def admit(self, *, admitted: bool) -> None:
        """An operator asked for the first sync, or ended it."""
        await self.run(lambda: self.worker.terms.admit(admitted))
        self.rouse()

    def pause_after(self, size: int) -> float:
        """Seconds before the next frame, after one of this size was sent."""
        self.sent_bytes += size
        storage = self._settings.storage
        return size / (storage.rate_mib_per_s * 1024 * 1024) if storage is not None and storage.rate_mib_per_s else 0.0

    def rouse(self) -> None:
        """The terms have changed."""
        self._wake.set()
        self._moved.set()
        if self._session is not None:
            self._session.rouse()

    # ---- sessions

    async def subscribe(self, applied: Position) -> TreeSession:
        """Begins a session; an earlier one ends."""
        if self._session is not None:
            await self._session.close()
        worker = self.worker
        await self._started_or_waiting()
        self._refused = await permitted(worker.terms, self._moved, told=self._refused)
        if self._refused:
            raise Retryable("does not send", subject=self._settings.name, reason=self._refused)
        journal = worker.journal
        answer = answer_to(applied=applied, captured=journal.captured, oldest_kept=Sequence(0))
        if not journal.peer_known:
            answer = Answer.COMPARE
        await self.run(lambda: worker.begin(applied, resume=answer is Answer.RESUME))
        if answer is Answer.RESUME:
            self.note_acknowledged(applied.sequence)
        else:
            self._ledger.forget_pending()
        session = TreeSession(self, answer)
        self._session = session
        return session

    async def _started_or_waiting(self) -> None:
        while not (self._started.is_set() or self._absent or self.worker.halted or self._failed):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await self._started.wait()

    def ended(self, session: TreeSession) -> None:
        """Called by a session that closes."""
        if self._session is session:
            if self._ack_due:
                # What was acknowledged last must not be taken for what the Standby lacks.
                self._flush_acks()
            self._session = None

    def tell(self, told: Told) -> None:
        """What a session's work has brought up."""
        self._tell(told)

    def note_acknowledged(self, sequence: Sequence) -> None:
        """The Standby has everything up to here; the catalogue learns it in batches."""
        now = time.monotonic()
        self._ledger.acknowledged(sequence, at=now)
        self._acked = max(self._acked, sequence)
        self._acknowledged = self.worker.journal.position(self._acked)
        if not self._ack_due and self._loop is not None:
            self._ack_due = True
            self._loop.call_later(ACK_EVERY_S, self._flush_acks)
        self._moved.set()

    def need(self, paths: tuple[bytes, ...]) -> None:
        """The Standby cannot use what it has of these."""
        self.queue(lambda worker: worker.need(paths))
        if self._session is not None:
            self._session.rouse()

    def _flush_acks(self) -> None:
        self._ack_due = False
        if self._session is not None:
            self.queue(partial(TreeWorker.acknowledge, sequence=self._acked))
            self._session.rouse()
            self._moved.set()

    # ---- barrier and operator

    async def settled(self) -> Position:
        """Notices everything that was durable before the call. Raises OperatorNeeded where a guard holds it back."""
        await self._started.wait()
        if self._watcher is not None and not self._polling:
            watcher, place = self._watcher, os.fsencode(self._catalogue_path) + b".fence"
            await pass_fence(lambda passed: self.run(lambda: watcher.fence(place, passed)), timeout_s=STOP_S)
        else:
            self._scan(b"", noticed=0.0)
            self._wake.set()
        while self._scans.urgent:
            await self._progress()
        self.drain(time.monotonic())
        while self._scans.urgent:
            await self._progress()
        await self._notice(self._settle.flush)
        if self._linked_at < math.inf:
            self._look_for_links(time.monotonic())
            self._wake.set()
        while self._scans.urgent:
            await self._progress()
        while (position := await self.run(self._cover)) is None:
            self._check_halted()
            await self._progress()
        return position

    def _check_halted(self) -> None:
        """What is held back is sent when an operator says so: a barrier must not wait for that in silence."""
        if halted := self.worker.halted:
            raise OperatorNeeded("cannot replicate", subject=self._settings.name, reason=halted, hint=RESUME_HINT)

    def _cover(self) -> Position | None:
        """The position that covers everything noticed; None while something is held back or not handed out."""
        journal = self.worker.journal
        journal.hold()
        journal.look_whether_all_went_again()
        if (
            self.worker.halted
            or journal.synced_at is None
            or journal.held
            or journal.bulk
            or self.worker.appending.is_due
        ):
            return None
        if self.worker.idle:
            # Numbers that were reserved and never used (a restart) belong to no change: nobody acknowledges them.
            return journal.position(self._acked)
        return journal.captured

    async def _progress(self) -> None:
        self._moved.clear()
        if self._session is not None:
            self._session.rouse()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TICK_S):
                await self._moved.wait()

    async def resume(self, *, accept_deletes: bool) -> None:
        """Goes on after a halt."""
        worker = self.worker
        if not worker.halted and not (accept_deletes and worker.terms.away):
            raise WrongState("nothing to resume", subject=self._settings.name, reason="the dataset is not halted")
        if not await self.run(lambda: worker.resume(accept_deletes=accept_deletes)):
            raise WrongState("cannot resume", subject=self._settings.name, reason="its root is not there")
        self._tell(await self.run(worker.take_told))
        if self._watcher is not None:
            watcher = self._watcher
            await self.run(lambda: watcher.forget(b""))
        self._scans.anew()
        self._wake.set()

    # ---- the full backup's questions

    async def remembered(self, paths: tuple[bytes, ...]) -> dict[bytes, Entry]:
        """What was captured of these and acknowledged by the Standby."""
        self._flush_acks()
        worker = self.worker
        return await self.run(lambda: worker.catalogue.entries_of(paths))

    async def moving(self, paths: tuple[bytes, ...]) -> frozenset[bytes]:
        """Which of these are being written, or on their way."""
        self._flush_acks()  # the catalogue learns of acknowledgements in batches
        return await self.run(partial(examined.moving, self.worker, paths))

    async def resend(self, objects: tuple[bytes, ...]) -> None:
        """Sends these whole again; what is not here is deleted on the Standby. Raises OperatorNeeded at a halt."""
        await self._again(partial(examined.resend, self.worker, objects, now=time.monotonic()))

    async def restate(self, paths: tuple[bytes, ...]) -> None:
        """Sends the metadata of these again."""
        await self._again(partial(examined.restate, self.worker, paths))

    async def _again(self, work: Callable[[], None]) -> None:
        try:
            await self.run(work)
        finally:
            self._tell(await self.run(self.worker.take_told))
            if self._session is not None:
                self._session.rouse()

    def expected(self) -> int:
        """About how many objects there are."""
        return self._made.tally.objects if self._made is not None else 0

    def report(self) -> DatasetReport:
        """How it is doing."""
        worker = self._made
        if worker is None:
            return DatasetReport(state=DatasetState.STARTING, position=NOWHERE)
        state, reason = state_of(
            worker, self._settings.path, failed=self._failed, started=self._started.is_set(),
            served=self._session is not None, absent=self._absent, polling=self._polling,
        )  # fmt: skip
        journal, tally = worker.journal, worker.tally
        watches = self._watcher.count if self._watcher is not None else 0
        backlog = journal.backlog + self._settle.waiting if journal.peer_known else tally.objects
        return DatasetReport(
            state=state,
            reason=reason,
            method="tree: inotify" if not self._polling else f"tree: scanned every {self._poll_s:g} s",
            position=journal.captured,
            acknowledged=journal.covered(self._acknowledged),
            backlog=backlog,
            absent=worker.root is None and journal.captured.sequence == 0,
            lag=self._ledger.summary(now=time.monotonic()),
            counts=(
                ("entries", tally.objects),
                ("skipped_special", tally.skipped_special),
                ("too_long", tally.too_long),
                ("unreadable", tally.unreadable + worker.met.unreadable),
                ("watches", watches),
                ("growing", len(worker.appending.files)),
                ("sent_bytes", self.sent_bytes),
            ),
        )
