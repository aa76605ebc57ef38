"""The Standby's end of a tree: the event loop's half.

Frames are checked, wait in a bounded queue (QUEUE_BYTES_MAX) and are taken by the applier in one thread; groups
that wait together share one commit. After a failure everything is dropped until the stream begins again, so no
group can be skipped. Callbacks are called in the event loop. Seconds are monotonic.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from ha_sync.apply.tree.applier import DISK_FULL, Applier, Progress
from ha_sync.apply.tree.changes import Piece, decode
from ha_sync.apply.tree.guard import Guard
from ha_sync.apply.tree.promotion import detach_tree, promote_tree
from ha_sync.apply.tree.publish import nothing_fails
from ha_sync.apply.tree.survey import Survey
from ha_sync.config import TreeSettings
from ha_sync.core.dataset import DatasetReport, DatasetState, Finished, Report
from ha_sync.core.frame import Frame
from ha_sync.core.position import Answer, Epoch, Position
from ha_sync.errors import Fenced, HaSyncError, OperatorNeeded, ProtocolFault, Retryable

QUEUE_BYTES_MAX = 16 * 1024 * 1024
RELEASE_BYTES = 1024 * 1024
"""A waiting sender is woken in steps of this."""
INLINE_BODY_MAX = 16 * 1024
"""A larger body is parsed in a thread: half a megabyte of small files takes milliseconds."""
HANGS_S = 5.0
SETTLE_S = 0.005
"""When nothing came for so long, renames are made durable by themselves and the trash is kept to its bound."""

_T = TypeVar("_T")


def as_remedy(error: BaseException, subject: str) -> Exception:
    """What went wrong, by what helps."""
    if isinstance(error, HaSyncError):
        return error
    if isinstance(error, OSError):
        reason = error.strerror or str(error)
        if error.errno in DISK_FULL:
            return Retryable("cannot store", subject=subject, reason="disk full", hint="goes on when there is room")
        return OperatorNeeded("cannot write", subject=subject, reason=reason)
    if isinstance(error, sqlite3.Error):
        return Retryable("cannot write the catalogue of", subject=subject, reason=str(error))
    return error if isinstance(error, Exception) else Retryable("was interrupted", subject=subject, reason=repr(error))


class TreeSink:
    """See the module; implements ``core.dataset.Sink``."""

    def __init__(
        self,
        settings: TreeSettings,
        *,
        catalogue_path: str,
        report: Report,
        fail_point: Callable[[str], None] = nothing_fails,
    ) -> None:
        self._settings = settings
        self._catalogue_path = catalogue_path
        self._report = report
        self._fail_point = fail_point
        self._epoch = Epoch(0)
        self._applier: Applier | None = None
        self._guard: Guard | None = None
        self._queue: deque[Piece] = deque()
        self._received_bytes = 0  # counted in the loop; never goes down
        self._taken_bytes = 0  # counted in the applier's thread; never goes down
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()
        self._room.set()
        self._streaming = False
        self._state = DatasetState.STARTING
        self._reason = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._forgetting: asyncio.Task[None] | None = None
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=f"tree-{settings.name}")
        self._parsers = ThreadPoolExecutor(1, thread_name_prefix=f"tree-{settings.name}-parse")
        self._durable_callbacks: list[Callable[[Position], None]] = []
        self._failure_callbacks: list[Callable[[Exception], None]] = []
        self._need_callbacks: list[Callable[[tuple[bytes, ...]], None]] = []

    # ---- callbacks

    def on_durable(self, callback: Callable[[Position], None]) -> None:
        """See Sink."""
        self._durable_callbacks.append(callback)

    def on_failure(self, callback: Callable[[Exception], None]) -> None:
        """See Sink."""
        self._failure_callbacks.append(callback)

    def on_need(self, callback: Callable[[tuple[bytes, ...]], None]) -> None:
        """See Sink."""
        self._need_callbacks.append(callback)

    def _durable(self, position: Position) -> None:
        for callback in self._durable_callbacks:
            callback(position)

    def _need(self, paths: tuple[bytes, ...]) -> None:
        if paths:
            for callback in self._need_callbacks:
                callback(paths)

    def _fail(self, error: Exception) -> None:
        self._streaming = False
        self._clear_queue()
        self._room.set()
        self._show(error)
        for callback in self._failure_callbacks:
            callback(error)

    def _compare_again(self, error: Exception) -> None:
        """So much was changed here that only a compare can tell what."""
        applier, _ = self._parts

        async def forget() -> None:
            await self._run(lambda: applier.forget_position(str(error)))
            self._fail(error)

        self._forgetting = asyncio.create_task(forget(), name="forget the position")

    def _show(self, error: Exception) -> None:
        before = (self._state, self._reason)
        failed = isinstance(error, OperatorNeeded) or not isinstance(error, HaSyncError)
        self._state = DatasetState.FAILED if failed else DatasetState.WAITING
        self._reason = error.sentence() if isinstance(error, HaSyncError) else repr(error)
        if (self._state, self._reason) != before:
            fields: dict[str, object] = {"dataset": self._settings.name, "reason": self._reason}
            self._report("error" if failed else "warning", "standby cannot apply", fields)

    # ---- life

    async def open(self, epoch: Epoch, *, active_at: str) -> None:
        """See Sink. A root that cannot be used is a state with a reason; it is tried again with every stream."""
        self._epoch = epoch
        loop = self._loop = asyncio.get_running_loop()

        def durable(position: Position) -> None:
            loop.call_soon_threadsafe(self._durable, position)

        def wake() -> None:
            loop.call_soon_threadsafe(self._arrived.set)

        self._applier = await self._run(
            lambda: Applier(
                self._settings,
                catalogue_path=self._catalogue_path,
                report=self._report_safely(loop),
                durable=durable,
                synced=wake,
                fail_point=self._fail_point,
            )
        )
        self._guard = Guard(
            self._applier,
            active_at=active_at,
            report=self._report,
            run=self._run,
            need=self._need,
            fail=self._compare_again,
        )
        self._state, self._reason = DatasetState.WAITING, "no stream yet"
        try:
            if self._applier.may_begin:
                await self._run(lambda: self._parts[0].ready(now=time.monotonic()))
        except (HaSyncError, OSError, sqlite3.Error) as error:
            self._show(as_remedy(error, self._settings.path))
        else:
            self._guard.start()
        self._task = asyncio.create_task(self._work(), name=f"sink of {self._settings.name}")

    def _report_safely(self, loop: asyncio.AbstractEventLoop) -> Report:
        """Events come from the thread too; they are handed to the loop."""

        def hand_over(severity: str, what: str, fields: dict[str, object]) -> None:
            loop.call_soon_threadsafe(self._report, severity, what, fields)

        return hand_over

    @property
    def _parts(self) -> tuple[Applier, Guard]:
        assert self._applier is not None, "open() comes first"
        assert self._guard is not None, "open() comes first"
        return self._applier, self._guard

    async def _run(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    async def close(self) -> None:
        """See Sink."""
        await self._in_time(self._close())

    async def _in_time(self, work: Coroutine[None, None, _T]) -> _T | None:
        """The thread of a storage may wait for a server that does not answer: a change of roles does not."""
        if self._settings.storage is None:
            return await work
        working = asyncio.ensure_future(work)
        done, _ = await asyncio.wait({working}, timeout=HANGS_S)
        if done:
            return working.result()
        working.cancel()
        self._report("error", "a storage does not answer and is given up", {"dataset": self._settings.name})
        return None

    async def _close(self) -> None:
        await self._stop_working()
        if self._guard is not None:
            await self._guard.stop()
        if self._applier is not None:
            applier, self._applier = self._applier, None
            await self._run(applier.close)
        self._threads.shutdown(wait=False)
        self._parsers.shutdown(wait=False)

    async def _stop_working(self) -> None:
        self._streaming = False
        for task in (self._task, self._forgetting):
            if task is not None:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self._task = self._forgetting = None
        # A thread that was working when its task was cancelled ends before anything else is done.
        await self._run(lambda: None)

    # ---- the stream

    @property
    def applied(self) -> Position:
        """See Sink."""
        return self._parts[0].applied

    async def partials(self) -> tuple[bytes, ...]:
        """See Sink: a ``Partial`` each. A tree that cannot be used has nothing; why is said when the stream begins."""
        applier, _ = self._parts
        with contextlib.suppress(HaSyncError, OSError, sqlite3.Error):
            partials = await self._run(lambda: applier.partials(now=time.monotonic()))
            return tuple(partial.SerializeToString() for partial in partials)
        return ()

    async def begin(self, answer: Answer, method: str) -> None:
        """See Sink."""
        if method != "tree":
            raise ProtocolFault("refused the stream", subject=self._settings.name, reason=f"its method is {method!r}")
        applier, guard = self._parts
        self._streaming = False
        comparing = answer is Answer.COMPARE
        try:
            await self._run(self._clear_queue)  # in the thread that takes from it
            await self._run(lambda: applier.begin(comparing=comparing, now=time.monotonic()))
        except (OSError, HaSyncError, sqlite3.Error) as error:
            remedy = as_remedy(error, self._settings.path)
            self._show(remedy)
            raise remedy from error
        self._streaming = True
        self._state = DatasetState.SYNCING if comparing else DatasetState.STREAMING
        self._reason = ""
        guard.start()
        self._need(guard.wanted)
        self._need(applier.lost)

    async def inventory(self) -> AsyncIterator[bytes]:
        """See Sink."""
        applier, _ = self._parts
        tree = await self._run(lambda: applier.ready(now=time.monotonic()))
        survey = Survey(tree.root, scope=applier.scope, catalogue=applier.catalogue, report=applier.report)
        chunks = survey.chunks()
        while (chunk := await self._run(lambda: next(chunks, None))) is not None:
            yield chunk
        applier.counters.extra["skipped_special"] = survey.specials

    async def receive(self, frame: Frame) -> None:
        """See Sink."""
        if frame.position.epoch < self._epoch:
            raise Fenced(
                "refused a frame", subject=f"of epoch {frame.position.epoch}", reason=f"{self._epoch} is newer"
            )
        if len(frame.body) <= INLINE_BODY_MAX:
            piece = decode(frame)
        else:
            piece = await asyncio.get_running_loop().run_in_executor(self._parsers, decode, frame)
        while self._streaming and self._received_bytes - self._taken_bytes >= QUEUE_BYTES_MAX:
            self._room.clear()
            await self._room.wait()
        if not self._streaming:
            return  # a failure was told; the stream is about to begin again
        self._queue.append(piece)
        self._received_bytes += piece.size
        self._arrived.set()

    def _take(self) -> Piece | None:
        """Called in the applier's thread; the deque is safe for one reader and one writer."""
        try:
            piece = self._queue.popleft()
        except IndexError:
            return None
        before, self._taken_bytes = self._taken_bytes, self._taken_bytes + piece.size
        if before // RELEASE_BYTES != self._taken_bytes // RELEASE_BYTES and self._loop is not None:
            self._loop.call_soon_threadsafe(self._room.set)
        return piece

    def _clear_queue(self) -> None:
        """Only while nothing takes from it."""
        while self._queue:
            self._taken_bytes += self._queue.popleft().size

    async def _work(self) -> None:
        applier, guard = self._parts
        wait_s: float | None = None
        settled = True
        while True:
            pause = wait_s if wait_s is not None else (None if settled else SETTLE_S)
            if not await self._arrival(pause) and wait_s is None:
                await self._settle(applier)
                settled = True
                continue
            progress = await self._run(lambda: applier.work(self._take, clock=time.monotonic))
            wait_s = progress.wait_s
            settled = False
            self._after(applier, guard, progress)

    async def _arrival(self, pause: float | None) -> bool:
        """Whether a frame arrived before the pause was over."""
        try:
            async with asyncio.timeout(pause):
                await self._arrived.wait()
        except TimeoutError:
            return False
        self._arrived.clear()
        return True

    async def _settle(self, applier: Applier) -> None:
        try:
            await self._run(applier.settle)
        except (OSError, sqlite3.Error) as error:
            # What is acknowledged stands in the intent; the next commit syncs again before it clears it.
            self._show(as_remedy(error, self._settings.path))

    def _after(self, applier: Applier, guard: Guard, progress: Progress) -> None:
        self._room.set()
        if progress.failure is not None:
            self._need(progress.needs)
            self._fail(as_remedy(progress.failure, self._settings.path))
            return
        if self._streaming and applier.consistent:
            self._state, self._reason = DatasetState.STREAMING, ""
        guard.applied()

    # ---- status and role

    def report(self) -> DatasetReport:
        """See Sink."""
        applier, guard = self._parts
        counters = applier.counters
        counts = {
            "published": counters.published,
            "removed": counters.removed,
            "groups": counters.groups,
            "commits": counters.commits,
            "needs": counters.needs,
            "recovered_steps": counters.recovered,
            **counters.extra,
            **guard.counts(),
        }
        return DatasetReport(
            state=self._state,
            reason=self._reason,
            method="tree",
            position=applier.applied,
            consistent=applier.consistent,
            counts=tuple(sorted(counts.items())),
        )

    async def promote(self) -> tuple[Finished, ...]:
        """See Sink."""
        return await self._in_time(self._promote()) or ()

    async def _promote(self) -> tuple[Finished, ...]:
        applier, guard = self._parts
        await self._stop_working()
        await guard.stop()
        return await self._run(lambda: promote_tree(applier, clock=time.monotonic))

    async def detach(self) -> tuple[str, ...]:
        """See Sink."""
        applier, guard = self._parts
        await self._stop_working()
        await guard.stop()
        return await self._run(lambda: detach_tree(applier))

    async def resume(self, *, accept_deletes: bool) -> None:
        """See Sink. ``accept_deletes``: the directory is taken as it is now, even if it is another one."""
        applier, _ = self._parts
        if accept_deletes and applier.tree is None:
            await self._run(applier.accept_root)
