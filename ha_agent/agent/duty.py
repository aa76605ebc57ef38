"""The services of this node at a switch: start after the promotion, stop, quiesce, start again.

One duty at a time: a new order ends the one that runs (its hook is killed), but a stop is not ended by another stop. An
order that is performed is told by a callback in the loop; a quiesce that failed leaves the services stopped, and who
ordered it says what next. The engine's part (promotion, drain) is asked through ``EngineLink``. What fails unforeseen
is reported and ends nothing. Seconds are monotonic, of the loop's clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from ha_agent import services
from ha_agent.engine_link import Drained, EngineLink
from ha_agent.services import Outcome, Report, Services

log = logging.getLogger("ha_agent")

PROMOTION_S = 30.0
"""The engine finishes what the dead node left; past this the services start all the same, with an alarm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quieted:
    """What came of a quiesce: the digest of the final positions, or why there is none."""

    digest: str | None
    reason: str = ""
    stop_s: float = 0.0
    drain_s: float = 0.0


class Duty:
    """See the module."""

    def __init__(
        self,
        services: Services,
        engine: EngineLink,
        report: Report,
        *,
        expect: Callable[[bool], None],
    ) -> None:
        """``expect``: whether the services are meant to run from now on, for the health probes."""
        self._services = services
        self._engine = engine
        self._report = report
        self._expect = expect
        self._running: asyncio.Task[None] | None = None
        self._is_stop = False  # what the newest order is

    async def close(self) -> None:
        """Ends what runs. A stop that runs is waited for: the services of a node without the role must end."""
        task = self._running
        if task is None:
            return
        if not self._is_stop:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def warm(self) -> None:
        """Starts what runs in both roles; failures are reported by the services."""
        await self._services.warm()

    def start(self, epoch: int, *, done: Callable[[Outcome], None]) -> None:
        """After a take-over: wait for the promotion, then start in order."""
        self._order(self._start(epoch, done))

    def stop(self) -> None:
        """The role is gone."""
        if self._is_stop and self._running is not None and not self._running.done():
            return
        self._order(self._stop(), is_stop=True)

    def quiesce(self, *, deadline: float, end_backup: bool, done: Callable[[Quieted], None]) -> None:
        """Stop, see that nobody writes, drain."""
        self._order(self._quiesce(deadline, end_backup, done))

    def restore(self, serial: int, *, within_s: float) -> None:
        """The engine exchanges the data: the services stop, and start again when it says that this is over."""
        self._order(self._restore(serial, within_s))

    def resume(self, epoch: int) -> None:
        """The hand-over was given up: the services start again."""
        self._engine.resume()
        self._order(self._again(epoch))

    def _order(self, work: Coroutine[Any, Any, None], *, is_stop: bool = False) -> None:
        before = self._running
        self._is_stop = is_stop
        self._running = asyncio.get_running_loop().create_task(self._after(before, work))

    async def _after(self, before: asyncio.Task[None] | None, work: Coroutine[Any, Any, None]) -> None:
        """Ends what ran, then does the work. The end of a hook takes its group's death, at most a second."""
        if not await _ended(before):
            work.close()
            raise asyncio.CancelledError
        try:
            await work
        except Exception as failed:
            log.exception("the services: an order failed", extra={"reason": str(failed)})
            self._report("error", "an order to the services failed", {"reason": repr(failed)})

    async def _start(self, epoch: int, done: Callable[[Outcome], None]) -> None:
        if not await self._engine.promoted(epoch, within_s=PROMOTION_S):
            self._report("error", "the engine did not finish its promotion", {"epoch": epoch, "seconds": PROMOTION_S})
        await self._engine.restored()
        outcome = await self._services.start(epoch=epoch)
        self._expect(True)
        done(outcome)

    async def _again(self, epoch: int) -> None:
        await self._engine.restored()
        await self._services.start(epoch=epoch)
        self._expect(True)

    async def _stop(self) -> None:
        self._expect(False)
        await self._services.stop()

    async def _restore(self, serial: int, within_s: float) -> None:
        self._expect(False)
        found = await self._quieted(asyncio.get_running_loop().time() + within_s)
        reason = "" if found.quiet else _why_unquiet(found)
        self._engine.answer_restore(serial, stopped=found.quiet, reason=reason)
        self._report("warning", "the services are stopped for a restore", {"reason": reason})
        await self._engine.restored()
        epoch = self._engine.directed
        # An engine that was cut off begins anew: its captures first, then the services.
        if not await self._engine.promoted(epoch, within_s=PROMOTION_S):
            self._report("error", "the engine did not finish its promotion", {"epoch": epoch, "seconds": PROMOTION_S})
        await self._services.start(epoch=epoch)
        self._expect(True)
        self._report("info", "the restore is over: the services were started", {"epoch": epoch})

    async def _quieted(self, deadline: float) -> services.Quieted:
        engine = self._engine.report
        paths, pids = (tuple(engine.paths), (engine.pid,)) if engine is not None else ((), ())
        return await self._services.quiesce(paths, deadline=deadline, but=pids)

    async def _quiesce(self, deadline: float, end_backup: bool, done: Callable[[Quieted], None]) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        self._expect(False)
        found = await self._quieted(deadline)
        stopped = loop.time()
        if not found.quiet:
            done(Quieted(digest=None, reason=_why_unquiet(found), stop_s=stopped - began))
            return
        drained: Drained = await self._engine.quiesce(within_s=max(0.1, deadline - loop.time()), end_backup=end_backup)
        reason = "" if drained.digest is not None else "not on the Standby: " + "; ".join(drained.waiting_for)
        done(Quieted(digest=drained.digest, reason=reason, stop_s=stopped - began, drain_s=loop.time() - stopped))


def _why_unquiet(found: services.Quieted) -> str:
    writers = ", ".join(str(writer) for writer in found.survey.writers[:3])
    late = ", ".join(step.service for step in found.stopped.failures)
    return writers or f"not stopped: {late}"


async def _ended(task: asyncio.Task[None] | None) -> bool:
    """Cancels it and waits for its end. False: whoever waits was cancelled meanwhile; it has ended all the same."""
    wanted = True
    while task is not None and not task.done():
        task.cancel()
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            wanted = False
    return wanted
