"""The Active's end of a database captured by rows (``core.dataset.Source``).

The event loop holds the state that others see; everything that touches SQLite runs in one thread of the source's own.
Hints of the kernel wake it, a slow tick backs them up. Times are monotonic seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ParamSpec, TypeVar

import apsw

from ha_sync.capture.rows.capture import Batch, Capture, Condition
from ha_sync.capture.rows.compare import Inventory
from ha_sync.capture.rows.session import RowsSession
from ha_sync.config import SqliteSettings
from ha_sync.core.dataset import DatasetReport, DatasetState, Report, Source
from ha_sync.core.lag import LagLedger
from ha_sync.core.position import NOWHERE, Answer, Epoch, Position, Sequence, answer_to
from ha_sync.database.connection import Unfit, unfit
from ha_sync.database.image import Facts
from ha_sync.database.snapshot import Snapshot, lock_free_snapshot
from ha_sync.database.wake import Wake
from ha_sync.errors import Retryable, WrongState

TICK_S = 1.0
UNASKED_EVERY_S = 0.25  # looks at hints while no Standby waits for the rows
SAVE_EVERY_S = 5.0
TROUBLE = (apsw.Error, OSError, Retryable, UnicodeDecodeError)

P = ParamSpec("P")
T = TypeVar("T")


class RowsSource(Source):
    """See ``core.dataset.Source``. ``snapshot`` makes the copies for long reads of rollback-journal databases."""

    def __init__(
        self,
        settings: SqliteSettings,
        *,
        state_path: str,
        report: Report,
        snapshot: Snapshot = lock_free_snapshot,
    ) -> None:
        self._settings = settings
        self._state_path = state_path
        self._report = report
        self._capture = Capture(settings, state_path=state_path, snapshot=snapshot)
        self._thread: ThreadPoolExecutor | None = None
        self._wake: Wake | None = None
        self._task: asyncio.Task[None] | None = None
        self._session: RowsSession | None = None
        self._ledger = LagLedger()
        self._condition = Condition(state=DatasetState.STARTING, reason="", method="rows")
        self._captured = NOWHERE
        self._acknowledged: Position | None = None
        self._saved_at = 0.0

    @property
    def path(self) -> str:
        """The database."""
        return self._settings.path

    @property
    def captured(self) -> Position:
        """The newest position noticed."""
        return self._captured

    async def open(self, epoch: Epoch) -> None:
        """Starts capture; an unfit database is a state with a reason."""
        if self._thread is not None:
            raise WrongState("the source is open already", subject=self.path)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"rows-{self._settings.name}")
        await self.in_thread(self._capture.open, epoch)
        self._wake = Wake(self.path)
        self._wake.start()
        await self._look()
        self._task = asyncio.create_task(self._watch(), name=f"rows source {self._settings.name}")

    async def subscribe(self, applied: Position) -> RowsSession:
        """Begins a session; the former one ends."""
        if self._session is not None:
            await self._session.close()
        await self._look()
        kept = await self.in_thread(self._oldest_kept) if self._captured.resumes(applied) else 0
        answer = answer_to(applied=applied, captured=self._captured, oldest_kept=Sequence(kept))
        session = RowsSession(
            self,
            answer=answer,
            applied=applied,
            captured=self._captured,
            inventory=Inventory(f"{self._state_path}.inventory"),
        )
        if answer is Answer.RESUME:
            self._acknowledged = applied
            self._ledger.acknowledged(applied.sequence, at=time.monotonic())
        else:
            self._ledger.forget_pending()
        self._session = session
        return session

    def report(self) -> DatasetReport:
        """How it is doing."""
        acknowledged = self._acknowledged
        behind = acknowledged.sequence if acknowledged is not None else 0
        condition = self._condition
        if condition.state is DatasetState.STREAMING and self._session is None:
            condition = replace(condition, state=DatasetState.WAITING, reason="no standby is connected")
        elif condition.state is DatasetState.STREAMING and self._session and not self._session.streaming:
            condition = replace(condition, state=DatasetState.SYNCING, reason="comparing with the standby")
        return DatasetReport(
            state=condition.state,
            reason=condition.reason,
            method=condition.method,
            absent=condition.missing and self._captured.sequence == 0,
            position=self._captured,
            acknowledged=acknowledged,
            backlog=max(0, self._captured.sequence - behind),
            lag=self._ledger.summary(now=time.monotonic()),
            counts=(("lock_free_copies", self._capture.copies),) if self._capture.copies else (),
        )

    async def settled(self) -> Position:
        """Notices everything that was durable before the call."""
        await self._guarded(self._capture.look, thorough=True)
        if self._session is not None:
            self._session.nudge()
        return self._captured

    async def resend(self, objects: tuple[bytes, ...]) -> None:
        """Sends the keys and spans of keys (``RowsObjects``) again with what comes next."""
        await self.in_thread(self._capture.send_again, objects)
        self._captured = self._capture.journal.captured
        if self._session is not None:
            self._session.nudge()

    @property
    def scratch(self) -> str:
        """Where the full backup may keep a copy; removed at the next opening."""
        return f"{self._state_path}.copy-examined"

    @property
    def proof(self) -> str:
        """Where the full backup keeps that both copies were equal."""
        return f"{self._state_path}.proof"

    async def copied(self, target: str) -> None:
        """Writes a lock-free copy to ``target``, in the source's thread. Raises ``Retryable`` where none can be had."""
        await self.in_thread(self._capture.copy, target)

    async def put_back(self) -> tuple[str, ...]:
        """Looks at once; tables whose triggers were gone and were made again since the last call."""
        await self._look()
        return await self.in_thread(self._capture.put_back)

    async def resume(self, *, accept_deletes: bool) -> None:
        """Rows are never halted by a guard: looks again at once."""
        del accept_deletes
        await self.settled()

    async def attach(self) -> None:
        """Installs the triggers although other processes have the database open (``ha-sync attach``)."""
        await self._guarded(self._capture.attach)
        if self._session is not None:
            self._session.nudge()

    async def detach(self) -> tuple[str, ...]:
        """Stops capture and removes every trace from the database."""
        await self._stop()
        return await self.in_thread(self._capture.detach)

    async def close(self) -> None:
        """Stops capture; triggers stay."""
        await self._stop()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._capture.close)
            thread.shutdown(wait=True)

    async def _stop(self) -> None:
        if self._session is not None:
            await self._session.close()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self._wake is not None:
            await asyncio.to_thread(self._wake.close)
            self._wake = None

    # ---- for the session ------------------------------------------------------------------------------------------

    async def in_thread(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Runs ``job`` in the source's thread."""
        if self._thread is None:
            raise WrongState("the source is closed", subject=self.path)
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: job(*args, **kwargs))

    async def next_batch(self, after: int, facts: Facts | None) -> Batch | None:
        """What a Standby at ``after`` has not got; None also while the database is unfit."""
        return await self._guarded(self._capture.batch, after, facts)

    async def compare_batch(self, inventory: Inventory) -> Batch | None:
        """What differs from the inventory; None while the database is unfit."""
        return await self._guarded(self._capture.compare, inventory)

    def acknowledged_by(self, session: RowsSession, position: Position) -> None:
        """The Standby made everything up to ``position`` durable."""
        if session is not self._session or self._thread is None:
            return
        self._acknowledged = position
        self._ledger.acknowledged(position.sequence, at=time.monotonic())
        self._thread.submit(self._capture.journal.acknowledge, position.sequence)

    def send_whole(self, paths: tuple[bytes, ...]) -> None:
        """The Standby cannot use these tables."""
        if self._thread is not None:
            names = frozenset(p.decode("utf-8", "surrogateescape") for p in paths)
            self._thread.submit(self._capture.send_whole, names)
            if self._session is not None:
                self._session.nudge()

    def ended(self, session: RowsSession) -> None:
        """A session was closed."""
        if self._session is session:
            self._session = None

    # ---- looking --------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        assert self._wake is not None
        while True:
            hinted = await self._wake.wait(TICK_S)
            if not hinted:
                await self._save()
                if self._wake.blind:
                    await self.in_thread(self._wake.revive)
                elif self._capture.unchanged() and self._condition.state is DatasetState.STREAMING:
                    continue  # two stats, here in the loop: handing them to the thread would cost more than they do
            if self._session is not None:
                self._session.nudge()
            if self._session is None or not self._session.streaming:
                if hinted:
                    # Nobody is waiting for the rows: looking at every commit would only disturb the writer.
                    await asyncio.sleep(UNASKED_EVERY_S)
                await self._look()

    async def _save(self) -> None:
        now = time.monotonic()
        if now - self._saved_at >= SAVE_EVERY_S:
            self._saved_at = now
            with contextlib.suppress(*TROUBLE):
                await self.in_thread(self._capture.save_if_moved)

    async def _look(self) -> None:
        await self._guarded(self._capture.look)

    async def _guarded(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
        """Runs a job on the database and turns what is wrong with it into a state."""
        wake = self._wake
        hinted_at = wake.take_hint() if wake is not None else None
        at = hinted_at if hinted_at is not None else time.monotonic()
        try:
            result = await self.in_thread(job, *args, **kwargs)
        except TROUBLE as error:
            if wake is not None:
                wake.give_back(hinted_at)  # nothing was read: what was hinted is as old as it was
            self._troubled(error)
            return None
        self._note_captured(at)
        self._show(self._capture.condition)
        return result

    def _note_captured(self, at: float) -> None:
        captured = self._capture.journal.captured
        if not captured.resumes(self._captured):
            # Sequences count anew, or go on where a former run stopped: its last one is no change of now.
            self._ledger.forget_pending()
            self._ledger.acknowledged(self._capture.journal.acknowledged, at=at)
        self._captured = captured
        self._ledger.noticed(captured.sequence, at=at)

    def _troubled(self, error: Exception) -> None:
        method = self._condition.method
        if isinstance(error, Retryable):
            self._show(Condition(state=DatasetState.DEGRADED, reason=error.sentence(), method=method))
            return
        why = unfit(self.path, error)
        state, reason = _state_of(why), why.reason
        if why.missing and self._capture.journal.identity.inode:
            state, reason = DatasetState.DEGRADED, "the file does not exist any more: what the standby has is kept"
        self._show(Condition(state=state, reason=reason, method=method, missing=why.missing))

    def _show(self, condition: Condition) -> None:
        if condition == self._condition:
            return
        before, self._condition = self._condition, condition
        if (before.state, before.reason) != (condition.state, condition.reason):
            healthy = condition.state in {DatasetState.STREAMING, DatasetState.WAITING}
            fields: dict[str, object] = {"dataset": self._settings.name, "state": condition.state.value}
            self._report(
                "info" if healthy else "warning",
                "rows capture changed state",
                {
                    **fields,
                    "reason": condition.reason,
                },
            )

    def _oldest_kept(self) -> int:
        with contextlib.suppress(*TROUBLE):
            return self._capture.oldest_sequence()
        return 0


def _state_of(why: Unfit) -> DatasetState:
    if why.missing:
        return DatasetState.WAITING
    return DatasetState.DEGRADED if why.busy or why.full else DatasetState.FAILED
