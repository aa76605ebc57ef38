"""The Standby's end of a database captured by rows (``core.dataset.Sink``).

Slices are put together in the event loop's turn, images are applied in one thread of the sink's own; at most
``GROUPS_MAX`` wait there, then ``receive`` waits. A group that cannot be applied is told through ``on_failure``; what
follows it is refused until the stream begins again. Times are monotonic seconds.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import apsw

from ha_sync.apply.rows.applier import Applier, Tampered
from ha_sync.apply.rows.incoming import Incoming
from ha_sync.config import SqliteSettings
from ha_sync.core.dataset import DatasetReport, DatasetState, Finished, Report, Sink
from ha_sync.core.frame import Body, Frame
from ha_sync.core.position import NOWHERE, Answer, Epoch, Position
from ha_sync.database.connection import unfit
from ha_sync.database.holders import holders
from ha_sync.errors import Fenced, HaSyncError, OperatorNeeded, ProtocolFault, RepairNeeded, Retryable, WrongState

GROUPS_MAX = 2
TICK_S = 1.0
NOTICED_MAX = 100
TROUBLE = (apsw.Error, OSError)

P = ParamSpec("P")
T = TypeVar("T")


class RowsSink(Sink):
    """See ``core.dataset.Sink``."""

    def __init__(self, settings: SqliteSettings, *, state_path: str, report: Report) -> None:
        self._settings = settings
        self._state_path = state_path
        self._report = report
        self._applier = Applier(settings)
        self._epoch = Epoch(0)
        self._applied = NOWHERE
        self._thread: ThreadPoolExecutor | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._groups: asyncio.Queue[tuple[Incoming | None, Position]] = asyncio.Queue(maxsize=GROUPS_MAX)
        self._incoming: Incoming | None = None
        self._count = 0
        self._broken: HaSyncError | None = None
        self._comparing = False
        self._subscribed = False
        self._condition = (DatasetState.STARTING, "")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._noticed: list[tuple[int, str]] = []  # what was put right, for the full backup's log
        self._noticed_count = 0
        self._durable: Callable[[Position], None] = lambda _position: None
        self._failure: Callable[[Exception], None] = lambda _error: None
        self._need: Callable[[tuple[bytes, ...]], None] = lambda _paths: None

    async def open(self, epoch: Epoch, *, active_at: str) -> None:
        """Installs the guards where there is a database; an unfit one is a state with a reason."""
        if self._thread is not None:
            raise WrongState("the sink is open already", subject=self._settings.path)
        self._epoch = epoch
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"sink-{self._settings.name}")
        await self._in_thread(self._sweep)
        try:
            await self._in_thread(self._applier.open, active_at)
            self._show(*self._healthy())
        except TROUBLE as error:
            self._troubled(error)
        self._applied = self._applier.position
        self._tasks = [
            asyncio.create_task(self._apply_groups(), name=f"rows sink {self._settings.name}"),
            asyncio.create_task(self._tick(), name=f"rows sink check {self._settings.name}"),
        ]

    @property
    def applied(self) -> Position:
        """What is durable here."""
        return self._applied

    async def partials(self) -> tuple[bytes, ...]:
        """Rows have none."""
        return ()

    async def begin(self, answer: Answer, method: str) -> None:
        """A stream starts: what was received in part is dropped, what is being applied is waited for."""
        del method
        await self._groups.join()
        self._drop_incoming()
        self._broken = None
        self._comparing = answer is Answer.COMPARE
        self._subscribed = True
        self._show(*self._healthy())

    async def inventory(self) -> AsyncIterator[bytes]:
        """What this node has."""
        chunks = self._applier.inventory()
        try:
            while True:
                try:
                    chunk = await self._in_thread(next, chunks, None)
                except TROUBLE as error:
                    raise self._troubled(error) from error
                if chunk is None:
                    return
                yield chunk
        finally:
            await self._in_thread(chunks.close)

    async def receive(self, frame: Frame) -> None:
        """Takes one frame."""
        if self._broken is not None:
            raise self._broken
        if frame.position.epoch < max(self._epoch, self._applied.epoch):
            raise Fenced("refused rows of a lower epoch", subject=self._settings.path)
        if frame.kind is Body.NOTHING:
            if self._incoming is not None:
                raise ProtocolFault("refused a frame of rows", reason="a group ended without its image")
            await self._groups.put((None, frame.position))
            return
        if frame.kind is not Body.ROWS:
            raise ProtocolFault("refused a frame", subject=self._settings.path, reason=f"its body is {frame.kind.name}")
        await self._take(frame)

    async def _take(self, frame: Frame) -> None:
        if self._incoming is None:
            self._count += 1
            self._incoming = Incoming(f"{self._state_path}.incoming-{self._count}")
        incoming = self._incoming
        try:
            if incoming.in_file:
                await self._in_thread(incoming.take, frame)
            else:
                incoming.take(frame)
        except HaSyncError:
            self._drop_incoming()
            raise
        except OSError as error:
            self._drop_incoming()
            raise Retryable("cannot keep an image of rows", subject=incoming.path, reason=str(error)) from error
        if frame.group_end:
            self._incoming = None
            await self._groups.put((incoming, frame.position))

    def on_durable(self, callback: Callable[[Position], None]) -> None:
        """See ``Sink``."""
        self._durable = callback

    def on_failure(self, callback: Callable[[Exception], None]) -> None:
        """See ``Sink``."""
        self._failure = callback

    def on_need(self, callback: Callable[[tuple[bytes, ...]], None]) -> None:
        """See ``Sink``; rows are repaired by a compare instead."""
        self._need = callback

    def report(self) -> DatasetReport:
        """How it is doing."""
        state, reason = self._condition
        if state is DatasetState.STREAMING and self._comparing:
            state, reason = DatasetState.SYNCING, "comparing with the active"
        return DatasetReport(
            state=state,
            reason=reason,
            method="rows",
            position=self._applied,
            consistent=self._applied != NOWHERE,
        )

    async def promote(self) -> tuple[Finished, ...]:
        """Removes the guards, after everything that was received whole is durable."""
        await self._groups.join()
        self._drop_incoming()
        removed = await self._in_thread(self._applier.promote)
        self._applied = NOWHERE
        if not removed:
            return ()
        return (Finished(what="guards removed", subject=self._settings.path, detail=f"{len(removed)} triggers"),)

    async def detach(self) -> tuple[str, ...]:
        """Removes every trace from the database."""
        await self._stop()
        removed = await self._in_thread(self._applier.detach)
        self._applied = NOWHERE
        return removed

    async def resume(self, *, accept_deletes: bool) -> None:
        """Rows are never halted by a guard: looks at once."""
        del accept_deletes
        await self._check()

    async def close(self) -> None:
        """Stops; guards stay in place."""
        await self._stop()
        thread, self._thread = self._thread, None
        if thread is not None:
            await asyncio.get_running_loop().run_in_executor(thread, self._applier.close)
            thread.shutdown(wait=True)

    # ---- for the full backup: called from a thread of its own ------------------------------------------------------

    @property
    def scratch(self) -> str:
        """Where the full backup may keep a copy; removed at the next opening."""
        return f"{self._state_path}.copy-examined"

    def looked(self) -> None:
        """Looks for guards that are gone and for a schema that was changed, and puts them right."""
        self._from_outside(self._check(thorough=True))

    def noticed(self, told: int) -> tuple[tuple[int, str], ...]:
        """What was put right, numbered; what has a number up to ``told`` is forgotten."""
        self._noticed = [(number, what) for number, what in self._noticed if number > told]
        return tuple(self._noticed)

    def copied(self, target: str) -> None:
        """Writes a copy of the database, page by page, between two applies."""
        self._from_outside(self._copy(target))

    def renewed(self) -> str:
        """Makes a damaged database anew from what can be read of it; says how. The rest comes by a full sync."""
        return self._from_outside(self._renew())

    def _from_outside(self, work: Coroutine[None, None, T]) -> T:
        if self._loop is None or self._thread is None:
            work.close()
            raise WrongState("the sink is closed", subject=self._settings.path)
        loop = self._loop
        waited = asyncio.run_coroutine_threadsafe(work, loop)
        while not concurrent.futures.wait((waited,), timeout=TICK_S).done:
            if loop.is_closed():  # an engine that ends must not wait for this thread for ever
                raise WrongState("the sink is closed", subject=self._settings.path)
        return waited.result()

    async def _copy(self, target: str) -> None:
        steps = self._applier.copy_to(target)
        try:
            while await self._in_thread(lambda: next(steps, self) is not self):
                pass
        finally:
            await self._in_thread(steps.close)

    async def _renew(self) -> str:
        how = await self._in_thread(self._applier.renew)
        fields = {"dataset": self._settings.name, "how": how}
        self._report("warning", "a damaged standby database was made anew", dict(fields))
        self._mend(RepairNeeded("the standby's copy was damaged", subject=self._settings.path, reason=how))
        return how

    # ---- applying -------------------------------------------------------------------------------------------------

    async def _apply_groups(self) -> None:
        while True:
            incoming, position = await self._groups.get()
            try:
                if self._broken is None:
                    await self._apply(incoming, position)
            finally:
                if incoming is not None:
                    incoming.discard()
                self._groups.task_done()

    async def _apply(self, incoming: Incoming | None, position: Position) -> None:
        try:
            await self._in_thread(self._applier.apply, incoming, position)
        except (HaSyncError, *TROUBLE) as error:
            if isinstance(error, Tampered):
                self._tampered(error.reason)
            self._broken = self._troubled(error)
            self._failure(self._broken)
            return
        self._applied = position
        self._comparing = False
        self._show(*self._healthy())
        self._durable(position)

    def _troubled(self, error: Exception) -> HaSyncError:
        """Shows what is wrong and names the remedy."""
        remedy = error if isinstance(error, HaSyncError) else self._remedy(error)
        if isinstance(remedy, RepairNeeded):
            self._applied = NOWHERE  # the next subscription compares
            self._show(DatasetState.DEGRADED, remedy.sentence())
        elif isinstance(remedy, OperatorNeeded):
            self._show(DatasetState.FAILED, remedy.reason)
        elif isinstance(error, FileNotFoundError) or not os.path.lexists(self._settings.path):
            self._show(DatasetState.WAITING, "the database is made by the first full sync")
        else:
            self._show(DatasetState.DEGRADED, remedy.sentence())
        return remedy

    def _remedy(self, error: Exception) -> HaSyncError:
        path = self._settings.path
        why = unfit(path, error)
        if why.full or isinstance(error, apsw.IOError) or why.missing:
            return Retryable("cannot make rows durable in", subject=path, reason=why.reason)
        if why.busy:
            others = ", ".join(str(h) for h in holders(path)) or "a process that cannot be seen"
            return Retryable("cannot write to", subject=path, reason=f"{others} has it locked", hint="stop it")
        if isinstance(error, (apsw.SQLError, apsw.ConstraintError, apsw.MismatchError, apsw.SchemaChangeError)):
            return RepairNeeded("rows do not fit", subject=path, reason=str(error), hint="it is mended by a compare")
        return OperatorNeeded("cannot use", subject=path, reason=why.reason)

    # ---- looking after the database -------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            # Two stats, here in the loop: handing them to the thread would cost more than they do.
            if not self._applier.unchanged() or self._condition[0] not in {
                DatasetState.STREAMING,
                DatasetState.WAITING,
            }:
                await self._check()

    async def _check(self, *, thorough: bool = False) -> None:
        try:
            tampered = await self._in_thread(self._applier.check, thorough=thorough)
        except TROUBLE as error:
            self._troubled(error)
            return
        if tampered:
            self._tampered(tampered)
            self._mend(RepairNeeded("the standby's copy was changed", subject=self._settings.path, reason=tampered))
        elif self._condition[0] in {DatasetState.FAILED, DatasetState.STARTING} and self._broken is None:
            self._applied = self._applier.position
            self._show(*self._healthy())

    def _tampered(self, what: str) -> None:
        fields: dict[str, object] = {"dataset": self._settings.name, "what": what}
        self._report("warning", "a standby database was tampered with", fields)
        self._noticed_count += 1
        self._noticed = [*self._noticed[1 - NOTICED_MAX :], (self._noticed_count, what)]

    def _mend(self, repair: RepairNeeded) -> None:
        """The stream begins anew, with a compare."""
        self._broken = repair
        self._troubled(repair)
        self._failure(repair)

    def _healthy(self) -> tuple[DatasetState, str]:
        if not self._subscribed:
            return DatasetState.WAITING, "not connected to the active"
        return DatasetState.STREAMING, ""

    def _show(self, state: DatasetState, reason: str) -> None:
        if (state, reason) == self._condition:
            return
        self._condition = (state, reason)
        severity = "warning" if state in {DatasetState.FAILED, DatasetState.DEGRADED} else "info"
        self._report(
            severity,
            "rows apply changed state",
            {
                "dataset": self._settings.name,
                "state": state.value,
                "reason": reason,
            },
        )

    def _drop_incoming(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            incoming.discard()

    def _sweep(self) -> None:
        directory, base = os.path.split(os.path.abspath(self._state_path))
        os.makedirs(directory, exist_ok=True)
        for name in os.listdir(directory):
            if name.startswith((f"{base}.incoming-", f"{base}.copy-")):
                os.unlink(os.path.join(directory, name))

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []
        self._drop_incoming()
        while not self._groups.empty():
            incoming, _ = self._groups.get_nowait()
            if incoming is not None:
                incoming.discard()
            self._groups.task_done()

    async def _in_thread(self, job: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._thread is None:
            raise WrongState("the sink is closed", subject=self._settings.path)
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: job(*args, **kwargs))
