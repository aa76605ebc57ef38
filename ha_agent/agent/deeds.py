"""Performs the arbiter's actions. What takes time answers with an event, through ``tell``.

Invariants: the calls that touch the cluster IP run one after the other in the order of the actions, as do the writes of
the book (of several that wait only the newest is written). Nothing here calls ``tell`` before ``perform`` has returned.
Whatever a deed raises is told and ends nothing. Overflow: of calls for the cluster IP at most ``CALLS_MAX`` wait; more
are left out, which is safe, because the arbiter asks again for what it misses. One event loop; seconds are monotonic.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

from ha_agent.agent.duty import Quieted
from ha_agent.agent.parts import Parts
from ha_agent.agent.requests import Requests
from ha_agent.arbiter import actions as act
from ha_agent.arbiter import events as ev
from ha_agent.arbiter.state import Book, State
from ha_agent.arbiter.values import SERVING, Cause, Digest
from ha_agent.cluster_ip.lease import Answer, Outcome
from ha_agent.services import Outcome as ServicesOutcome
from ha_agent.settings import AfterSwitch, PairSettings, Settings

log = logging.getLogger("ha_agent")

CALLS_MAX = 64  # a kernel that stands still for ten seconds
REBOOT_AFTER_S = 3.0
REBOOT_DEADLINE_S = 60.0

Tell = Callable[..., None]
"""``tell(kind, **facts)``: hands an event to the arbiter."""


class Deeds:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        parts: Parts,
        *,
        tell: Tell,
        state: Callable[[], State],
        send_beat: Callable[[], None],
        requests: Requests,
        clock: Callable[[], float],
    ) -> None:
        assert settings.pair is not None
        self._node = settings.node
        self._pair: PairSettings = settings.pair
        self._parts = parts
        self._tell = tell
        self._state = state
        self._send_beat = send_beat
        self._requests = requests
        self._clock = clock
        self._deeds: asyncio.Queue[Coroutine[Any, Any, None]] = asyncio.Queue()
        self._calls: asyncio.Queue[Coroutine[Any, Any, None]] = asyncio.Queue(maxsize=CALLS_MAX)
        self._seen_held_at = float("-inf")
        self._book: Book | None = None
        self._book_waits = asyncio.Event()
        self._served = False  # since this agent started, and not followed since
        self._how: dict[type, Callable[[Any], None]] = {
            act.StoreBook: self._store,
            act.Probe: self._probe,
            act.AddAddress: self._add,
            act.RenewAddress: self._renew,
            act.RemoveAddress: self._remove,
            act.Announce: self._announce,
            act.SendBeat: self._beat,
            act.DirectEngine: self._direct,
            act.StartServices: self._start_services,
            act.StopServices: self._stop_services,
            act.Quiesce: self._quiesce,
            act.ResumeServices: self._resume_services,
            act.Refused: self._refused,
            act.Moved: self._moved,
            act.Alarm: self._alarm,
            act.WouldDo: self._would,
        }

    def perform(self, actions: tuple[act.Action, ...]) -> None:
        """Begins them in order."""
        for action in actions:
            self._how[type(action)](action)

    async def run(self) -> None:
        """Does what was begun, until cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._make_calls(), name="cluster ip")
                tasks.create_task(self._store_books(), name="book")
                while True:
                    tasks.create_task(self._kept(await self._deeds.get()))
        finally:
            for waiting in (self._calls, self._deeds):
                while not waiting.empty():
                    waiting.get_nowait().close()

    def look_whether_held(self, *, unless_seen_since: float = float("inf")) -> None:
        """After all calls that were ordered before: is the address there? A renewal that was done has seen it."""
        if self._seen_held_at < unless_seen_since:
            self._call(self._see())

    def _call(self, call: Coroutine[Any, Any, None]) -> None:
        if self._calls.full():
            call.close()
        else:
            self._calls.put_nowait(call)

    async def _make_calls(self) -> None:
        while True:
            await self._kept(await self._calls.get())

    async def _kept(self, deed: Coroutine[Any, Any, None]) -> None:
        try:
            await deed
        except Exception as failed:
            log.exception("a deed failed", extra={"reason": str(failed)})
            self._parts.events.append("error", "a deed of the agent failed", {"reason": repr(failed)})

    # ---- the book

    def _store(self, action: act.StoreBook) -> None:
        self._book = action.book
        self._book_waits.set()

    async def _store_books(self) -> None:
        while True:
            await self._book_waits.wait()
            self._book_waits.clear()
            book, self._book = self._book, None
            if book is None:
                continue
            try:
                await asyncio.to_thread(self._parts.store.store, book)
            except (OSError, RuntimeError) as failed:  # the latter: no thread could be started
                log.error("the book could not be stored", extra={"reason": str(failed)})
                self._tell(ev.BookFailed)
            else:
                self._tell(ev.BookStored, book=book)

    # ---- the cluster IP

    def _probe(self, action: act.Probe) -> None:
        self._deeds.put_nowait(self._ask_the_lan(action))

    async def _ask_the_lan(self, action: act.Probe) -> None:
        answered_by, sent = None, False
        try:
            found = await self._parts.holder.probe(count=action.count, wait_s=action.wait_s)
            answered_by, sent = found.answered_by, found.sent
        finally:
            self._tell(ev.ProbeDone, asked_at=action.asked_at, answered_by=answered_by, sent=sent)

    def _add(self, action: act.AddAddress) -> None:
        self._call(self._add_now(action))

    async def _add_now(self, action: act.AddAddress) -> None:
        answer = await self._parts.holder.add(valid_until=action.valid_until, not_after=action.not_after)
        if answer.outcome is Outcome.HELD:
            self._tell(ev.AddressAdded)
        else:
            self._not_held(answer)

    def _renew(self, action: act.RenewAddress) -> None:
        self._call(self._renew_now(action))

    async def _renew_now(self, action: act.RenewAddress) -> None:
        answer = await self._parts.holder.renew(valid_until=action.valid_until)
        if answer.outcome is Outcome.HELD:
            self._seen_held_at = self._clock()
        else:
            self._not_held(answer)

    def _remove(self, _action: act.RemoveAddress) -> None:
        self._parts.holder.hush()
        self._call(self._remove_now())

    async def _remove_now(self) -> None:
        answer = await self._parts.holder.remove()
        if answer.outcome is Outcome.GONE:
            self._tell(ev.AddressGone)
        else:
            self._say(answer)

    def _not_held(self, answer: Answer) -> None:
        self._say(answer)
        self._tell(ev.AddressGone if answer.outcome is Outcome.GONE else ev.AddressFailed)

    def _say(self, answer: Answer) -> None:
        fields = {"reason": answer.reason, "hint": answer.hint, "outcome": answer.outcome.value}
        self._parts.events.append("error", "the cluster IP is not held", fields)

    async def _see(self) -> None:
        if self._pair.observe_only:
            return  # what was never added is not missed
        held = await self._parts.holder.holds()
        state = self._state()
        if not held and state.holds and state.phase in SERVING:
            self._tell(ev.AddressGone)

    def _announce(self, action: act.Announce) -> None:
        self._parts.holder.announce(action.count)

    # ---- peer and engine

    def _beat(self, _action: act.SendBeat) -> None:
        self._send_beat()

    def _direct(self, action: act.DirectEngine) -> None:
        shared = self._pair.cluster_ip or self._pair.cluster_ip6
        self._parts.engine.direct(action.role.value, action.epoch, active_at=str(shared.ip) if shared else "")

    # ---- services

    def _start_services(self, action: act.StartServices) -> None:
        self._served = True
        self._parts.duty.start(action.epoch, done=self._started)

    def _started(self, outcome: ServicesOutcome) -> None:
        engine = self._parts.engine.report
        finished = Counter(f"{one.dataset}: {one.what}" for one in engine.finished) if engine is not None else None
        self._parts.chronicle.started(outcome, now=self._clock(), finished=finished)

    def _stop_services(self, _action: act.StopServices) -> None:
        self._parts.duty.stop()

    def _quiesce(self, action: act.Quiesce) -> None:
        self._parts.duty.quiesce(deadline=action.deadline, end_backup=action.end_backup, done=self._quieted)

    def _quieted(self, quieted: Quieted) -> None:
        self._requests.detail = quieted.reason
        if quieted.digest is None:
            self._parts.events.append("error", "the quiesce failed", {"reason": quieted.reason})
            self._tell(ev.QuiesceFailed)
        else:
            fields = {"stop_s": round(quieted.stop_s, 3), "drain_s": round(quieted.drain_s, 3)}
            self._parts.events.append("info", "the services are quiet", fields)
            self._tell(ev.Quiesced, digest=Digest(quieted.digest))

    def _resume_services(self, _action: act.ResumeServices) -> None:
        self._parts.duty.resume(self._state().epoch)

    # ---- telling

    def _refused(self, action: act.Refused) -> None:
        self._parts.chronicle.refused(action, now=self._clock())
        self._requests.refused(action)

    def _moved(self, move: act.Moved) -> None:
        self._parts.chronicle.moved(move, now=self._clock())
        if move.row == "granted" and move.cause is Cause.FAULT:
            self._spend_faults()
        self._requests.moved(move)
        if move.row in {"follow", "follow-on", "go"} and self._served:
            self._served = False
            if self._pair.after_switch is AfterSwitch.REBOOT and not self._pair.observe_only:
                self._deeds.put_nowait(self._reboot())

    def _spend_faults(self) -> None:
        for finding in self._parts.monitor.vector.bad:
            if finding.switches:
                self._parts.monitor.spend(finding.cause)

    async def _reboot(self) -> None:
        """R16: the machine restarts after a switch, where the settings say so."""
        await asyncio.sleep(REBOOT_AFTER_S)  # the address is gone, the stop hooks run
        self._parts.events.append("warning", "restarting this machine after the switch", {})
        done = await self._parts.commands.run(self._node.reboot_command, deadline_s=REBOOT_DEADLINE_S)
        if not done.ok:
            fields = {"reason": done.reason, "output": done.output}
            self._parts.events.append("error", "this machine could not be restarted", fields)

    def _alarm(self, action: act.Alarm) -> None:
        self._parts.chronicle.alarm(action)

    def _would(self, action: act.WouldDo) -> None:
        """Observe-only: logged, and answered as if it had worked."""
        self._parts.chronicle.would(action)
        engine = self._state().engine
        answers: dict[type, tuple[type, dict[str, object]]] = {
            act.AddAddress: (ev.AddressAdded, {}),
            act.RemoveAddress: (ev.AddressGone, {}),
            act.Quiesce: (ev.Quiesced, {"digest": engine.digest if engine is not None else Digest("")}),
        }
        answer = answers.get(type(action.deed))
        if answer is not None:
            kind, facts = answer
            asyncio.get_running_loop().call_soon(lambda: self._tell(kind, **facts))
        if isinstance(action.deed, act.StartServices):
            self._parts.chronicle.started(ServicesOutcome(steps=(), took_s=0.0), now=self._clock())
