"""The Active's end of a database captured as pages.

Looks are taken only while a Standby is subscribed (or somebody asks for a barrier): without one a change costs
nothing but a notice. A sequence stands for one committed state that differs from the one before. All blocking work
runs in one thread, the only one that touches the file. Sizes in bytes, times monotonic seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from ha_sync.capture.pages.content import Known
from ha_sync.capture.pages.journal import Journal
from ha_sync.capture.pages.pace import LOOK_AGAIN_S, SLOW_TICK_S, Pace
from ha_sync.capture.pages.session import PagesSession
from ha_sync.config import SqliteSettings
from ha_sync.core.dataset import DatasetReport, DatasetState, Report
from ha_sync.core.lag import LagLedger
from ha_sync.core.position import NOWHERE, Answer, Epoch, Position, Sequence
from ha_sync.database.lockfree import Copy, LockFreeReader, Refusal, Rejected, Unchanged
from ha_sync.database.notice import LOST, MODIFY, VANISHED, FolderNotice
from ha_sync.database.soundness import damage_of_image
from ha_sync.files.blocks import MIB

CHECK_ALWAYS_BYTES = MIB
CHECK_EVERY_S = 60.0
ACKNOWLEDGED_STORE_S = 5.0

_Result = TypeVar("_Result")

_STATE_OF = {
    Refusal.MISSING: DatasetState.WAITING,
    Refusal.EMPTY: DatasetState.WAITING,
    Refusal.UNREADABLE: DatasetState.FAILED,
    Refusal.NOT_A_DATABASE: DatasetState.FAILED,
    Refusal.TOO_LARGE: DatasetState.DEGRADED,
}
"""Refusals that time alone does not mend; the others are ordinary business of a living database."""

_NOTHING_THERE = frozenset({Refusal.MISSING, Refusal.EMPTY})

_HINT_OF = {
    Refusal.UNREADABLE: "give the engine's user read permission",
    Refusal.NOT_A_DATABASE: "set the path of a SQLite database, or restore it",
    Refusal.TOO_LARGE: "raise pages_max_mib, or set capture = rows and run `ha-sync attach` while its program is down",
    Refusal.WRITING: "a program that locks the file for good (locking_mode=EXCLUSIVE) cannot be captured",
}


class PagesSource:
    """A `Source` (core/dataset.py)."""

    def __init__(self, settings: SqliteSettings, *, state_path: str | os.PathLike[str], report: Report) -> None:
        self._settings = settings
        self._path = os.path.realpath(settings.path)
        self._state_path = os.fspath(state_path)
        self._report_event = report
        self._reader = LockFreeReader(self._path, bytes_max=settings.pages_max_mib * MIB)
        self._executor: ThreadPoolExecutor | None = None
        self._notice: FolderNotice | None = None
        self._journal: Journal | None = None
        self._session: PagesSession | None = None
        self._ledger = LagLedger()
        self._pace = Pace()
        self._looking = asyncio.Lock()
        self._storing: set[asyncio.Task[None]] = set()
        self._polls = False  # no notices: the tick looks
        self._ticker: asyncio.Task[None] | None = None
        self._event = asyncio.Event()  # something was heard: look again
        self._again: asyncio.TimerHandle | None = None  # a commit may come that is not heard
        self._dirty_since: float | None = None
        self._last_check = float("-inf")
        self._last_store = float("-inf")
        self._refused: Rejected | None = None
        self._alarm = ""
        self._looked_once = False
        self._look_processor_s = 0.0  # of the last look; written in the thread, read when it has ended
        self._content: Known | None = None  # the last accepted one
        self._noticed_at = 0.0
        self._log = False  # the database has a write-ahead log
        self._counts = {"copies_accepted": 0, "copies_rejected": 0, "looks_refused": 0, "checks": 0}

    # ---- Source ---------------------------------------------------------------------------------------------------

    async def open(self, epoch: Epoch) -> None:
        """Starts to listen; the file need not exist."""
        assert self._executor is None, "opened twice"
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"pages-{self._settings.name}")
        self._journal = await self.work(lambda: Journal.open(self._state_path, epoch))
        self._dirty_since = time.monotonic()
        await self._listen()
        self._ticker = asyncio.create_task(self._tick(), name=f"pages tick {self._settings.name}")

    async def subscribe(self, applied: Position) -> PagesSession:
        """Resumes where it is known what the Standby has; else compares (one small inventory)."""
        journal = self._opened()
        if self._session is not None:
            await self._session.close()
        known = journal.standby if applied.sequence == journal.acknowledged else None
        resumes = known is not None and self.position.resumes(applied)
        answer = Answer.RESUME if resumes else Answer.COMPARE
        self._session = PagesSession(self, answer=answer, base=known if resumes else None)
        self._event.set()
        return self._session

    def report(self) -> DatasetReport:
        """State, reason and figures."""
        now = time.monotonic()
        state, reason = self._state()
        journal = self._journal
        acknowledged = None
        if journal is not None:
            acknowledged = Position(epoch=journal.epoch, incarnation=journal.incarnation, sequence=journal.acknowledged)
        behind = 0 if journal is None else int(journal.sequence > journal.acknowledged)
        return DatasetReport(
            state=state,
            reason=reason,
            method="pages: write-ahead log" if self._log else "pages: rollback journal",
            position=self.position,
            acknowledged=acknowledged,
            backlog=max(behind, int(self._dirty_since is not None and self._looked_once)),
            absent=self._refused is not None and self._refused.why in _NOTHING_THERE and self.position.sequence == 0,
            lag=self._ledger.summary(now=now),
            counts=tuple(self._counts.items()),
        )

    async def settled(self) -> Position:
        """Takes a look that began after the call, and names the sequence of what it found."""
        self._opened()
        while True:
            async with self._looking:
                found = await self._try_look(base=self._content, skip_unchanged=self._content is not None)
                if isinstance(found, Copy):
                    await self._note(found)
                if not isinstance(found, Rejected) or found.why in _STATE_OF:
                    return self.position
            await self._pause()

    async def resend(self, objects: tuple[bytes, ...]) -> None:  # noqa: ARG002 - there is only one object
        """Sends the file whole, under a new sequence: a barrier waits for it."""
        journal = self._opened()
        async with self._looking:
            await self.work(self._reader.forget)
            self._content, journal.mark = None, b""
        self._event.set()
        if self._session is not None:
            self._session.need((b"",))

    async def standing(self) -> tuple[Sequence, Known] | None:
        """What the Standby has, as far as it acknowledged; None: not known."""
        journal = self._opened()
        return (journal.acknowledged, journal.standby) if journal.standby is not None else None

    async def fresh(self, *, within_s: float) -> tuple[Copy | Rejected, bool]:
        """Reads the file now, whatever is remembered of it; and whether it is rotten.

        That is: nobody wrote since the last accepted copy, and yet the content is another. It is not sent then.
        """
        deadline = time.monotonic() + within_s
        while True:
            async with self._looking:
                base = self._content
                found, untouched = await self.work(lambda: self._read_anew(base))  # noqa: B023 - awaited at once
                if isinstance(found, Copy):
                    rotten = untouched and base is not None and found.hashes != base.hashes
                    if not rotten:
                        await self._note(found)
                    return found, rotten
            if found.why in _STATE_OF or time.monotonic() >= deadline:
                return found, False
            await asyncio.sleep(self._pace.retry_s)

    def _read_anew(self, base: Known | None) -> tuple[Copy | Rejected, bool]:
        before = self._reader.accepted
        found = self._reader.attempt(
            block_size=None if base is None else base.block_size,
            known=b"" if base is None else base.hashes,
            patient=self._pace.patient(now=time.monotonic()),
        )
        assert not isinstance(found, Unchanged)
        return found, before is not None and before == self._reader.accepted

    async def resume(self, *, accept_deletes: bool) -> None:  # noqa: ARG002 - the protocol's
        """Nothing of this kind halts; an alarm's slow tick is ended."""
        self._pace = Pace()
        self._event.set()

    async def detach(self) -> tuple[str, ...]:
        """Nothing was ever put into the database."""
        return ()

    async def close(self) -> None:
        """Stops capture and remembers where it stood."""
        if self._executor is None:
            return
        if self._session is not None:
            await self._session.close()
        if self._ticker is not None:
            self._ticker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._ticker
        if self._again is not None:
            self._again.cancel()
        await asyncio.gather(*self._storing)
        notice, self._notice = self._notice, None
        journal = self._opened()

        if notice is not None:
            notice.stop()

        def end() -> None:
            self._reader.close()
            journal.close()

        async with self._looking:
            await self.work(end)
        self._executor.shutdown(wait=False)
        self._executor = None

    # ---- for the session ------------------------------------------------------------------------------------------

    @property
    def position(self) -> Position:
        """The newest captured state."""
        if self._journal is None:
            return NOWHERE
        return Position(
            epoch=self._journal.epoch, incarnation=self._journal.incarnation, sequence=self._journal.sequence
        )

    async def work(self, job: Callable[[], _Result]) -> _Result:
        """Runs ``job`` in the one thread. Not left before it has ended, even when cancelled."""
        assert self._executor is not None
        future = asyncio.get_running_loop().run_in_executor(self._executor, job)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await future
            raise

    async def changed_copy(
        self, base: Known | None, *, told: Sequence, force: bool
    ) -> tuple[Copy, Known, Position] | None:
        """Waits for a change, then for an accepted copy of it; None when the change turned out to be none.

        ``told`` is the last sequence that the session sent.
        """
        while not force and self._dirty_since is None and self.position.sequence <= told and told > 0:
            await self._wait_event(SLOW_TICK_S)
        await self._await_moment()
        while True:
            async with self._looking:
                skip = not force and 0 < self.position.sequence <= told
                found = await self._try_look(base=base, skip_unchanged=skip)
                if isinstance(found, Copy):
                    return found, await self._note(found), self.position
            if isinstance(found, Unchanged):
                return None
            await self._pause()

    async def _note(self, copy: Copy) -> Known:
        """Gives a new state its sequence."""
        journal = self._opened()
        known = Known(
            size=copy.size,
            block_size=copy.block_size,
            hashes=copy.hashes,
            owner_and_mode=(copy.uid, copy.gid, copy.mode),
        )
        mark = known.whole + repr(known.owner_and_mode).encode()
        self._content = known
        if mark != journal.mark:
            sequence, reserve = journal.next_sequence()
            journal.mark = mark
            self._ledger.noticed(sequence, at=self._noticed_at)
            if reserve:
                # Durably before it is used: a sequence lost in a crash may be skipped, never used twice.
                await self.work(journal.store)
            self._event.set()
        return known

    def acknowledged(self, sequence: Sequence, known: Known | None) -> None:
        """The Standby has this state durably."""
        journal = self._opened()
        now = time.monotonic()
        self._ledger.acknowledged(sequence, at=now)
        if sequence >= journal.acknowledged:
            if known is not None or sequence > journal.acknowledged:
                journal.standby = known  # not known: a reconnect compares
            journal.acknowledged = sequence
        if now - self._last_store >= ACKNOWLEDGED_STORE_S:
            self._last_store = now
            task = asyncio.create_task(self.work(lambda: journal.store(durable=False)), name="pages store")
            self._storing.add(task)
            task.add_done_callback(self._storing.discard)

    def forget(self, session: PagesSession) -> None:
        """The session has ended."""
        if self._session is session:
            self._session = None
            self._ledger.forget_pending()

    # ---- looking --------------------------------------------------------------------------------------------------

    async def _try_look(self, *, base: Known | None, skip_unchanged: bool) -> Copy | Rejected | Unchanged:
        began = now = time.monotonic()
        since, self._dirty_since = self._dirty_since, None
        self._event.clear()
        check = now - self._last_check >= CHECK_EVERY_S
        patient = self._pace.patient(now=now)
        found: Copy | Rejected | Unchanged | None = None
        try:
            with self._deaf():
                found = await self.work(
                    lambda: self._look(base, patient=patient, check=check, skip_unchanged=skip_unchanged)
                )
        finally:
            # Refused or cancelled: the change is still to be captured, and as old as it was.
            if found is None or isinstance(found, Rejected):
                self._dirty_since = since if since is not None else self._dirty_since or now
        now = time.monotonic()
        if isinstance(found, Copy | Unchanged) and found.look_again and self._again is None:
            self._again = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again, began)
        if isinstance(found, Rejected):
            self._on_refused(found, now)
        elif isinstance(found, Unchanged):
            self._on_unchanged()
        elif isinstance(found, Copy):
            self._noticed_at = since if since is not None else now
            self._on_accepted(found, now)
        return found

    def _look(
        self, base: Known | None, *, patient: bool, check: bool, skip_unchanged: bool
    ) -> Copy | Rejected | Unchanged:
        """In the thread: one attempt, and now and then a check of what it brought."""
        began = time.thread_time()
        try:
            return self._look_and_check(base, patient=patient, check=check, skip_unchanged=skip_unchanged)
        finally:
            self._look_processor_s = time.thread_time() - began

    def _look_and_check(
        self, base: Known | None, *, patient: bool, check: bool, skip_unchanged: bool
    ) -> Copy | Rejected | Unchanged:
        try:
            small = os.stat(self._path).st_size <= CHECK_ALWAYS_BYTES
        except OSError:
            small = False
        found = self._reader.attempt(
            block_size=None if base is None else base.block_size,
            known=b"" if base is None else base.hashes,
            whole=small or check,
            patient=patient,
            skip_unchanged=skip_unchanged,
        )
        if not isinstance(found, Copy) or found.image is None or not found.changed:
            return found
        self._counts["checks"] += 1
        if damage := damage_of_image(found.image):
            self._reader.forget()
            return Rejected(why=Refusal.NOT_A_DATABASE, detail=f"damaged: {damage[:200]}", read_in_vain=True)
        return replace(found, image=None)  # it is large, and nobody needs it any more

    def _look_again(self, since: float) -> None:
        self._again = None
        if self._dirty_since is None:
            self._dirty_since = since
        self._event.set()

    def _on_refused(self, found: Rejected, now: float) -> None:
        self._refused = found
        self._looked_once = True
        self._counts["copies_rejected" if found.read_in_vain else "looks_refused"] += 1
        self._pace.refused(now=now, read_in_vain=found.read_in_vain)
        if found.read_in_vain:
            self._pace.looked(found.seconds, processor_s=self._look_processor_s, now=now)
        state, reason = self._state()
        if state in {DatasetState.DEGRADED, DatasetState.FAILED} and self._alarm != state.name:
            self._alarm = state.name
            severity = "error" if state is DatasetState.FAILED else "warning"
            self._tell(severity, "database cannot be captured as pages", reason=reason)

    def _on_unchanged(self) -> None:
        self._refused = None
        self._pace.accepted()
        self._end_alarm()

    def _on_accepted(self, found: Copy, now: float) -> None:
        self._refused = None
        self._looked_once = True
        self._log = found.header.write_ahead_log
        self._counts["copies_accepted"] += 1
        if found.image is not None:
            self._last_check = now
        self._pace.accepted()
        self._pace.looked(found.seconds, processor_s=self._look_processor_s, now=now)
        self._end_alarm()

    def _end_alarm(self) -> None:
        if self._alarm:
            self._alarm = ""
            self._tell("info", "database is captured again")

    async def _await_moment(self) -> None:
        """Waits until a look is affordable, and, where it takes long, until a commit has just ended."""
        if (rest := self._pace.rest_s(now=time.monotonic())) > 0:
            with self._deaf():
                await asyncio.sleep(rest)
        wait = self._pace.hint_wait_s(now=time.monotonic())
        if wait > 0:
            deadline = time.monotonic() + wait
            started = self._pace.commit_ended
            while self._pace.commit_ended == started and (left := deadline - time.monotonic()) > 0:
                await self._wait_event(left)

    async def _pause(self) -> None:
        """Between a refusal and the next try."""
        now = time.monotonic()
        refused = self._refused
        lasting = refused is not None and refused.why in _STATE_OF
        if lasting or self._pace.hopeless(now=now):
            await self._wait_event(SLOW_TICK_S, only_slow=not lasting)
            return
        rest = self._pace.rest_s(now=now)
        if rest > 0:
            await self._await_moment()
        else:
            # The quarter bounds what a long writer's stream of events can cost.
            await asyncio.sleep(self._pace.retry_s / 4)
            await self._wait_event(self._pace.retry_s)

    async def _wait_event(self, seconds: float, *, only_slow: bool = False) -> None:
        if only_slow:
            await asyncio.sleep(seconds)
            return
        with contextlib.suppress(TimeoutError):
            # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()

    def _state(self) -> tuple[DatasetState, str]:
        now = time.monotonic()
        refused = self._refused
        if refused is not None:
            reason = refused.why.value + (f" ({refused.detail})" if refused.detail else "")
            hint = _HINT_OF.get(refused.why, "")
            sentence = f"{reason}: {hint}" if hint else reason
            if refused.why in _NOTHING_THERE and self.position.sequence:
                return DatasetState.DEGRADED, f"{sentence}: what the standby has is kept"
            if refused.why in _STATE_OF:
                return _STATE_OF[refused.why], sentence
            if self._pace.hopeless(now=now):
                return DatasetState.DEGRADED, f"no copy was accepted; last: {sentence}"
        if self._session is None:
            return DatasetState.WAITING, "no peer"
        if not self._looked_once:
            return DatasetState.STARTING, ""
        if self._session.comparing:
            return DatasetState.SYNCING, ""
        return DatasetState.STREAMING, ""

    # ---- hearing --------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        folder, name = os.path.split(self._path)
        names = frozenset(os.fsencode(name + end) for end in ("", "-journal", "-wal"))
        notice = FolderNotice(folder, names, self._on_heard)
        try:
            await self.work(notice.start)
        except OSError as error:
            if not self._polls:
                self._tell("warning", "changes of a database are polled", reason=str(error))
            self._polls = True
            return
        self._polls = False
        self._notice = notice
        notice.hear()

    def _on_heard(self, which: bytes, mask: int, at: float) -> None:
        journal = which.endswith(b"-journal")
        wrote = mask == LOST or not journal
        # The journal's disappearance, or its change where it is kept, ends a commit. One that was heard late is no
        # hint: the next commit may have begun.
        ended = bool(mask & (VANISHED | MODIFY)) and (journal or which.endswith(b"-wal"))
        if ended:
            self._pace.commit_ended = at
        if wrote and self._dirty_since is None:
            self._dirty_since = at
        if wrote or ended:
            self._event.set()

    @contextlib.contextmanager
    def _deaf(self) -> Iterator[None]:
        """While a look is certain anyway, the program's writes need not wake us."""
        if self._notice is not None:
            self._notice.pause()
        try:
            yield
        finally:
            if self._notice is not None and self._notice.alive:
                self._notice.hear()

    async def _tick(self) -> None:
        """Backs up the notices, and begins to listen again when the directory has come (back)."""
        while True:
            await asyncio.sleep(SLOW_TICK_S if self._notice is not None else 1.0)
            if self._notice is not None and not self._notice.alive:
                stale, self._notice = self._notice, None
                stale.stop()
            if self._notice is None and await self.work(lambda: os.path.isdir(os.path.dirname(self._path))):
                await self._listen()
            self._dirty_since = self._dirty_since or time.monotonic()
            self._event.set()

    def _tell(self, severity: str, what: str, **fields: object) -> None:
        self._report_event(severity, what, {"dataset": self._settings.name, "path": self._path, **fields})

    def _opened(self) -> Journal:
        assert self._journal is not None, "not open"
        return self._journal
