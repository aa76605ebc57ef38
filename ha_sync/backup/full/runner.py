"""Runs full backups, on the Active only: one at a time, dataset after dataset, each by its examiner.

A run survives the Standby's absence (it waits) and a restart of this engine (it goes on from its cursors), but not a
change of roles or of the epoch. Whoever asks for one while it goes on joins it. What was found goes to the backup log
object by object; what differed, could not be verified or failed is an event besides. Runs in the engine's event loop;
seconds are monotonic but where the name says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Protocol

from ha_sync.backup.full.desk import Desk
from ha_sync.backup.full.going import Going
from ha_sync.backup.full.memory import NOTHING, Memory, RunState, plus
from ha_sync.backup.full.progress import Done
from ha_sync.backup.full.schedule import Schedule, local_zone
from ha_sync.config import BackupSettings
from ha_sync.core.dataset import DatasetName, Report, Role
from ha_sync.core.examine import Depth, Examined, Examiner, Fault, Finding, Peer, Side
from ha_sync.core.position import Epoch
from ha_sync.errors import HaSyncError, PeerUnreachable, Refused, Retryable, WrongState
from ha_sync.logs.runs import Kind, Result, RunLog, Tally, Trigger
from ha_sync.logs.writer import wall_clock

log = logging.getLogger(__name__)

LOOK_S = 1.0
WATCH_S = 0.5
SCHEDULE_LOOK_S = 15.0
MAKE_UP_AFTER_S = 60.0
"""After its start an engine has better things to do than to make up for a run that was missed."""

PEER_WAIT_S = {Trigger.MANUAL: 30.0, Trigger.SCHEDULE: 3600.0}
PEER_BACK_S = 3600.0
"""So long a run waits for a Standby: at its beginning, and when it went away in the middle."""

RETRY_S = 1.0
FRUITLESS_MAX = 10
"""Attempts at one dataset in a row that did not move its cursor."""

EXIT_CODES = {Result.DONE: 0, Result.PARTIAL: 4, Result.REFUSED: Refused.exit_code}
EXIT_FAILED = 1


class Host(Protocol):
    """The node, as a full backup sees it."""

    @property
    def role(self) -> Role | None:
        """Now."""

    @property
    def epoch(self) -> Epoch:
        """Of that role."""

    def examined(self) -> dict[DatasetName, int]:
        """The datasets in order of priority, and about how many objects each has."""

    def examiner(self, name: DatasetName) -> Examiner:
        """Raises Retryable where the dataset is not open now."""

    async def replicated(self, name: DatasetName) -> None:
        """The barrier of one dataset. Raises Retryable, or OperatorNeeded at a halt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Purpose:
    """What the runs are for: a full backup, or the sync of one storage, which runs in the same way."""

    words: str = "full backup"
    kind: Kind = Kind.FULL_BACKUP
    announced: bool = True  # the Standby hears of each
    hint: str = "on both nodes' cron: `ha-sync full-backup --if-active`"
    facts: tuple[tuple[str, str], ...] = ()  # for the log
    sent: Callable[[], int] = int  # bytes of the stream that a run has to answer for, since the engine's start


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """The state of the full backup for those who watch."""

    running: bool
    run: str = ""
    depth: Depth = Depth.CONTENT
    trigger: str = ""
    phase: str = ""
    dataset: str = ""
    done: Done | None = None
    tally: Examined = NOTHING
    result: str = ""
    exit_code: int = 0
    reason: str = ""
    elapsed_s: float = 0.0
    next_unix_s: float | None = None
    wire_bytes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Where the schedule has its times from."""

    wall: Callable[[], float] = wall_clock
    zone: Callable[[], dt.tzinfo] = local_zone
    make_up_after_s: float = MAKE_UP_AFTER_S
    look_s: float = SCHEDULE_LOOK_S


class FullBackup:
    """See the module."""

    def __init__(
        self,
        host: Host,
        *,
        desk: Desk,
        memory: Memory,
        runs: RunLog,
        settings: BackupSettings,
        report: Report,
        peer: Callable[[], str],
        times: Times | None = None,
        purpose: Purpose | None = None,
    ) -> None:
        self.host = host
        self._purpose = purpose or Purpose()
        self.desk = desk
        self.runs = runs
        self.settings = settings
        self._memory = memory
        self._report = report
        self._peer = peer
        self._schedule = Schedule(settings.full) if settings.full else None
        self._run: Going | None = None
        self._task: asyncio.Task[None] | None = None
        self._last = Standing(running=False)
        self._why = ""  # it is being cancelled
        self._changed = asyncio.Event()
        self._next_unix_s: float | None = None
        self._forgetful = False  # the disk does not take our state
        self._times = times or Times()
        self._began = time.monotonic()
        if self._purpose.announced:
            desk.begun_unix_s = memory.now.last_begun_unix_s

    # ---- life

    async def run(self) -> None:
        """Until cancelled: starts what is due, goes on with what was interrupted, ends what may not go on."""
        looked_at = float("-inf")
        try:
            while True:
                if self.host.role is not Role.ACTIVE:
                    self.desk.hang_up()
                await self._end_of_role()
                if self.host.role is Role.ACTIVE and self._task is None:
                    await self._go_on()
                    if time.monotonic() - looked_at >= self._times.look_s:
                        looked_at = time.monotonic()
                        await self._look_at_schedule()
                await asyncio.sleep(LOOK_S)
        finally:
            # The run is not over: it goes on when the engine is started again.
            await self._stop_task()

    async def _end_of_role(self) -> None:
        run = self._run
        if run is not None and (self.host.role, self.host.epoch) != (Role.ACTIVE, run.state.epoch):
            await self.cancel("the role of this node changed")

    async def _go_on(self) -> None:
        left = self._memory.now.run
        if left is None:
            return
        if left.epoch != self.host.epoch:
            await self.store(None)
            words = f"an interrupted {self._purpose.words} is not gone on with"
            self._report("warning", words, {"reason": "another epoch", **self._facts})
            return
        self._begin(left, reason="goes on where an interrupted run was")

    async def _look_at_schedule(self) -> None:
        if self._schedule is None:
            return
        zone = await asyncio.to_thread(self._times.zone)
        now_unix_s = self._times.wall()
        now = dt.datetime.fromtimestamp(now_unix_s, zone)
        if not self._memory.now.last_begun_unix_s:
            # A node that never made one begins with the next night, not with its installation.
            await self.noted(now_unix_s)
        last = dt.datetime.fromtimestamp(self._memory.now.last_begun_unix_s, zone)
        following = self._schedule.next_after(max(last, now), zone)
        self._next_unix_s = following.timestamp() if following else None
        if self._schedule.due(last, now, zone) and time.monotonic() - self._began >= self._times.make_up_after_s:
            with contextlib.suppress(WrongState):
                await self.start(Depth.CONTENT, Trigger.SCHEDULE)

    async def noted(self, unix_s: float) -> None:
        """A full backup began at that time, here or on the other node."""
        await self._remember(lambda: self._memory.begun(unix_s))

    async def store(self, state: RunState | None) -> None:
        """Durable when it returns, unless the disk is full: then a restart begins anew, which costs time only."""
        remembered = replace(self._memory.now, run=state)
        await self._remember(lambda: self._memory.store(remembered))

    async def _remember(self, write: Callable[[], None]) -> None:
        try:
            await asyncio.to_thread(write)
        except OSError as error:
            if not self._forgetful:
                self._report("warning", "the state of full backups cannot be stored", {"reason": str(error)})
            self._forgetful = True
        else:
            self._forgetful = False

    async def _stop_task(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # ---- what an operator asks

    async def start(self, depth: Depth, trigger: Trigger) -> bool:
        """Begins a run; whether one was going on already, which is joined. Raises WrongState on a Standby."""
        if self.host.role is not Role.ACTIVE:
            raise WrongState(
                f"cannot make a {self._purpose.words}",
                reason="this node is not the Active",
                hint=self._purpose.hint,
            )
        if self._task is not None:
            return True
        begun = self._times.wall()
        state = RunState(depth=depth, trigger=trigger.value, epoch=self.host.epoch, begun_unix_s=begun)
        self._begin(state, reason="")  # before any await: whoever comes next joins
        return False

    def _begin(self, state: RunState, *, reason: str) -> None:
        trigger = Trigger(state.trigger)
        entry = self.runs.begin(
            self._purpose.kind,
            trigger,
            now=time.monotonic(),
            peer=self._peer(),
            reason=reason,
            facts={"verify": state.depth.value, **self._facts},
        )
        self._why = ""
        self._run = run = Going(self, state, entry, self.host.examined())
        fields: dict[str, object] = {"run": entry, "trigger": trigger.value, "verify": state.depth.value, **self._facts}
        self._report("info", f"{self._purpose.words} begins", fields)
        self._task = asyncio.create_task(self._perform(run), name=self._purpose.words)
        self.news()

    async def pause(self) -> None:
        """Holds the run before its next piece of reading."""
        self._running("pause").going.clear()
        self.news()

    async def resume(self) -> None:
        """Lets it go on."""
        self._running("resume").going.set()
        self.news()

    async def cancel(self, why: str) -> None:
        """Ends the run; what it repaired stays so."""
        run, task = self._running("cancel"), self._task
        self._why = why
        if task is not None:
            if not run.ending:
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _running(self, what: str) -> Going:
        if self._run is None or self._task is None:
            raise WrongState(f"cannot {what} the {self._purpose.words}", reason="none is going on")
        return self._run

    # ---- performing

    async def _perform(self, run: Going) -> None:
        result, reason = Result.FAILED, "internal error"
        unreachable = False
        try:
            if self._purpose.announced:
                await self.noted(run.state.begun_unix_s)
            await self.store(run.state)
            await self._await_peer(run, PEER_WAIT_S[Trigger(run.state.trigger)])
            if self._purpose.announced:
                await self.desk.announce(run.state.begun_unix_s)
            for name in run.names:
                await self._examine(run, name)
            result, reason = self._verdict(run)
        except asyncio.CancelledError:
            if not self._why:
                raise  # the engine ends: the run goes on when it is started again
            result, reason = Result.CANCELLED, self._why
        except PeerUnreachable as error:
            reason, unreachable = error.sentence(), True
        except Refused as error:
            result, reason = Result.REFUSED, error.sentence()
        except HaSyncError as error:
            reason = error.sentence()
        except Exception as error:  # a bug here must not end the engine; it is reported
            log.exception("a run failed", extra={"run": run.entry, "purpose": self._purpose.words})
            reason = f"internal error: {error!r}"
        # Forgotten before anybody may think that none goes on: else it would be gone on with.
        run.ending = True
        await self.store(None)
        self._run, self._task = None, None
        code = PeerUnreachable.exit_code if unreachable else EXIT_CODES.get(result, EXIT_FAILED)
        self._finish(run, result, reason, code)

    def _verdict(self, run: Going) -> tuple[Result, str]:
        tally = run.tally
        left = tally.differing - tally.repaired
        said = []
        if run.state.troubled:
            said.append("not examined: " + ", ".join(run.state.troubled))
        if run.active_side:
            said.append(f"{run.active_side} damaged on the active")
        if left:
            said.append(f"{left} differ still")
        if tally.unverified:
            said.append(f"{tally.unverified} not verified")
        return (Result.PARTIAL, "; ".join(said)) if said else (Result.DONE, "")

    def _finish(self, run: Going, result: Result, reason: str, exit_code: int) -> None:
        tally = run.tally
        facts: dict[str, object] = {"verify": run.depth.value, "in_motion": tally.in_motion, **self._facts}
        self.runs.end(
            run.entry,
            result,
            now=time.monotonic(),
            tally=Tally(
                objects=tally.objects,
                differing=tally.differing,
                repaired=tally.repaired,
                unverified=tally.unverified,
                bytes_read=tally.content_bytes,
                bytes_sent=self.wire_bytes - run.wire_before,
            ),
            error=reason if result is not Result.CANCELLED else "",
            reason=reason if result is Result.CANCELLED else "",
            facts=facts,
        )
        self._last = self._standing_of(run, running=False, result=result, reason=reason, exit_code=exit_code)
        failed = {Result.FAILED, Result.PARTIAL, Result.REFUSED}
        severity = "error" if result in failed or tally.differing else "info"
        fields: dict[str, object] = {
            **self._facts,
            "run": run.entry, "result": result.value, "objects": tally.objects, "differing": tally.differing,
            "repaired": tally.repaired, "unverified": tally.unverified,
        }  # fmt: skip
        if reason:
            fields["reason"] = reason
        if run.subjects:
            fields["found"] = "; ".join(run.subjects)
        self._report(severity, f"{self._purpose.words} ended", fields)
        self.news()

    async def _await_peer(self, run: Going, within_s: float) -> None:
        if self.desk.connected:
            return
        run.phase = "waiting for the standby"
        self.news()
        if not await self.desk.until_connected(within_s):
            raise PeerUnreachable(
                f"cannot make a {self._purpose.words}",
                reason=f"no standby answered within {within_s:g} s",
                hint="`ha-sync status`",
            )
        run.phase = "comparing"

    async def _examine(self, run: Going, name: DatasetName) -> None:
        """One dataset, again and again until it is done or in vain."""
        known = run.state.datasets.get(name)
        if (known is not None and known.done is not None) or name in run.state.troubled:
            return
        equal_until = await asyncio.to_thread(self.runs.last_equal, name)
        peer: Peer = self.desk.peer(name)
        fruitless = 0
        while True:
            run.turn_to(name, equal_until_unix_s=equal_until)
            before = run.part.cursor
            self.news()
            try:
                examined = await self.host.examiner(name).examine(peer, run)
            except Retryable as error:
                fruitless = 0 if run.part.cursor != before else fruitless + 1
                if fruitless >= FRUITLESS_MAX:
                    await self._trouble(run, name, error)
                    return
                await self.store(run.state)
                await asyncio.sleep(RETRY_S)
                await self._await_peer(run, PEER_BACK_S)
            except HaSyncError as error:
                if isinstance(error, Refused) and self._purpose.kind is Kind.STORAGE_SYNC:
                    raise  # a storage is refused as a whole
                await self._trouble(run, name, error)
                return
            else:
                await self._over(run, name, examined)
                return

    async def _over(self, run: Going, name: DatasetName, examined: Examined) -> None:
        total = plus(run.before, examined)
        run.put(replace(run.part, done=total))
        run.live = NOTHING
        run.meter.over(name)
        clean = total.differing == total.repaired and not total.unverified
        if clean and run.depth is Depth.CONTENT:
            self.runs.equal(run.entry, name, run.part.begun_unix_s)
        await self.store(run.state)
        self.news()

    async def _trouble(self, run: Going, name: DatasetName, error: HaSyncError) -> None:
        run.found(Finding(dataset=name, subject="", fault=Fault.UNVERIFIED, side=Side.ACTIVE, detail=error.sentence()))
        run.put(replace(run.part, so_far=plus(run.before, run.live)))
        run.live = NOTHING
        run.state = replace(run.state, troubled=(*run.state.troubled, str(name)))
        await self.store(run.state)

    # ---- watching

    def standing(self) -> Standing:
        """How it is now."""
        run = self._run
        if run is None:
            return replace(self._last, next_unix_s=self._next_unix_s)
        return self._standing_of(run, running=True)

    def _standing_of(
        self, run: Going, *, running: bool, result: Result | None = None, reason: str = "", exit_code: int = 0
    ) -> Standing:
        now = time.monotonic()
        done = run.meter.done(now=now)
        if result in {Result.DONE, Result.PARTIAL}:
            done = replace(done, percent=100.0, left_s=None)
        return Standing(
            running=running,
            run=run.entry,
            depth=run.depth,
            trigger=run.state.trigger,
            phase=(run.phase if run.going.is_set() else "paused") if running else "",
            dataset=run.name if running else "",
            done=done,
            tally=run.tally,
            result=result.value if result else "",
            exit_code=exit_code,
            reason=reason,
            elapsed_s=now - run.began,
            next_unix_s=self._next_unix_s,
            wire_bytes=self.wire_bytes - run.wire_before,
        )

    @property
    def wire_bytes(self) -> int:
        """Sent and received for runs since the engine's start."""
        return self.desk.wire_bytes + self._purpose.sent()

    @property
    def _facts(self) -> dict[str, str]:
        return dict(self._purpose.facts)

    @property
    def running(self) -> bool:
        """Whether one goes on."""
        return self._run is not None

    def news(self) -> None:
        """Whoever watches looks again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def watch(self, run: str, *, every_s: float = WATCH_S) -> AsyncIterator[Standing]:
        """The state again and again; with ``run`` until that one is over."""
        while True:
            changed = self._changed
            now = self.standing()
            yield now
            if run and (not now.running or now.run != run):
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(every_s):
                    await changed.wait()
