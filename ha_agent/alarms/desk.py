"""Where everything about alarms comes together: events in, messages out, and what stands to be looked at.

Events of the agent come through its event log, from any thread; those of the engine and role changes are handed in.
Nothing here raises towards who tells, and nothing waits: the loop is only woken when ``rules`` has something due. Where
nobody is to be told, alarms are still listed; nothing is written then and no process is started.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

from ha_agent.alarms import reports, wording
from ha_agent.alarms.courier import Courier
from ha_agent.alarms.delivery import Delivered, Order, deliver
from ha_agent.alarms.meaning import seen_of
from ha_agent.alarms.outbox import Outbox, Tally, path_of
from ha_agent.alarms.rules import Rules
from ha_agent.alarms.secret import problem_of
from ha_agent.alarms.values import RANK, Alarm, Bulletin
from ha_agent.commands import Commands
from ha_agent.errors import ConfigFault, WrongState
from ha_agent.logs import EventLog
from ha_agent.logs.events import SEVERITIES
from ha_agent.logs.writer import wall_clock
from ha_agent.settings import REPORT, Settings, Target
from ha_proto.agent.v1 import agent_pb2 as pb

log = logging.getLogger("ha_agent.alarms")

TESTS_AT_ONCE = 4
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetLook:
    """How it goes with one target."""

    target: Target
    waiting: int
    oldest_unix_s: float | None
    tally: Tally
    reason: str
    next_try_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """What came of a test message."""

    target: str
    delivered: Delivered
    took_s: float


class Desk:
    """One per agent, made and used in its loop; ``opened`` gives one that works."""

    def __init__(
        self,
        settings: Settings,
        outbox: Outbox,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = wall_clock,
    ) -> None:
        self._settings = settings.alarms
        self._node = settings.node.name
        self._station = settings.pair.station.value if settings.pair is not None else ""
        self._outbox = outbox
        self._clock, self._wall = clock, wall
        least = min((target.severity for target in self._settings.targets), key=RANK.__getitem__, default=None)
        now = clock()
        self._rules = Rules(self._settings.rates, least=least, now=now, tokens=self._tokens())
        self._rules.restore(outbox.alarms, now=now)
        self._commands: Commands | None = None
        self._couriers = {
            target.name: Courier(target, outbox, self._programs) for target in self._settings.everyone
        }  # fmt: skip
        self._timer: asyncio.TimerHandle | None = None
        self._facts: reports.PairFacts | None = None
        self._testing = asyncio.Semaphore(TESTS_AT_ONCE)
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Sends what is to be sent, until cancelled."""
        self._go_on()
        try:
            async with asyncio.TaskGroup() as tasks:
                for courier in self._couriers.values():
                    tasks.create_task(courier.run(), name=f"courier {courier.target.name}")
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._commands is not None:
                self._commands.close()

    # ---- what comes in

    def listen(self, events: EventLog) -> None:
        """Hears every event of the agent's log from now on."""
        events.listen(self._overheard)
        for target in self._settings.everyone:
            problem = problem_of(target.secret_file) if target.secret_file else ""
            if problem:
                events.append("error", "a secret cannot be used", {"target": target.name, "reason": problem})

    def _overheard(self, severity: str, what: str, subject: str, edge: str, fields: Mapping[str, object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._observe, severity, what, subject, edge, fields)

    def _observe(self, severity: str, what: str, subject: str, edge: str, fields: Mapping[str, object]) -> None:
        seen = seen_of(severity, what, fields, subject=subject, edge=edge)
        if seen is not None:
            self._rules.observe(seen, now=self._clock(), unix_s=self._wall())
            self._go_on()

    def noticed(self, run: str, notice: pb.Notice) -> None:
        """Something happened to the engine. One that was handed in before is left out, also over a restart."""
        known_run, _, known = self._outbox.facts.get("noticed", "").rpartition(":")
        if run == known_run and notice.serial <= int(known):
            return
        severity = notice.severity if notice.severity in SEVERITIES else "error"
        self._observe(severity, notice.what, "", "none", notice.fields)
        self._outbox.keep_fact("noticed", f"{run}:{notice.serial}")

    def know(self, facts: reports.PairFacts) -> None:
        """Of what pair this node is."""
        self._facts = facts

    def serving(self, epoch: int, cause: str) -> None:
        """This node has become Active, or goes on being it after a restart of the agent (R17)."""
        report_to = self._settings.report
        if report_to is None or self._facts is None:
            return
        report = reports.report_of(self._facts, report_to, epoch=epoch, cause=cause)
        facts, digest = self._outbox.facts, reports.digest_of(report)
        if facts.get("reported") == digest:
            return
        sequence = int(facts.get("sequence", "0")) + 1
        self._outbox.put(REPORT, reports.dated(report, sequence=sequence, unix_s=self._wall()))
        self._outbox.keep_fact("sequence", str(sequence))
        self._outbox.keep_fact("reported", digest)
        self._couriers[REPORT].wake()

    # ---- what goes out

    def _go_on(self) -> None:
        """Tells what is due, keeps what has changed, and sees when to look again."""
        now = self._clock()
        bulletin = self._rules.advance(now=now, unix_s=self._wall())
        if bulletin is not None:
            self._publish(bulletin)
            self._outbox.keep_fact("tokens", f"{self._rules.tokens(now)} {self._wall()}")
        self._outbox.keep_alarms(self._rules.changes())
        if self._timer is not None:
            self._timer.cancel()
        due = self._rules.due(now)
        # Never later than the rules say, and never in a loop without rest.
        self._timer = None if due is None else self._loop.call_later(max(0.01, min(due - now, DAY_S)), self._go_on)

    def _publish(self, bulletin: Bulletin) -> None:
        for target in self._settings.targets:
            document = wording.document_of(
                bulletin, node=self._node, station=self._station, least=target.severity
            )  # fmt: skip
            if document is not None:
                self._outbox.put(target.name, document)
                self._couriers[target.name].wake()

    def _tokens(self) -> float | None:
        """What an earlier run had left, and what has come to it since. A clock that jumped costs or gives one burst."""
        try:
            tokens, unix_s = map(float, self._outbox.facts["tokens"].split())
        except (KeyError, ValueError):
            return None
        rates = self._settings.rates
        half = rates.messages_per_hour_max - rates.messages_per_hour_max // 2
        return tokens + max(0.0, min(self._wall() - unix_s, 3600.0)) * half / 3600.0

    def _programs(self) -> Commands:
        if self._commands is None:
            self._commands = Commands()
        return self._commands

    # ---- looking and trying

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """What stands, or has only just ended; the oldest first."""
        return self._rules.alarms

    def stands(self, alarm: Alarm) -> bool:
        """As far as anybody knows: after a restart, until it should have been raised anew."""
        return alarm.stands(self._clock())

    @property
    def left_out(self) -> int:
        """Alarms that there was no room for, since the last message."""
        return self._rules.left_out

    def targets(self) -> tuple[TargetLook, ...]:
        """How it goes with each."""
        now = self._loop.time()
        looks = []
        for courier in self._couriers.values():
            waiting, oldest_unix_s = self._outbox.waiting(courier.target.name)
            trouble = courier.trouble
            looks.append(
                TargetLook(
                    target=courier.target,
                    waiting=waiting,
                    oldest_unix_s=oldest_unix_s,
                    tally=self._outbox.tally(courier.target.name),
                    reason=trouble.reason,
                    next_try_s=None if trouble.next_at is None else max(0.0, trouble.next_at - now),
                )
            )
        return tuple(looks)

    async def test(self, name: str) -> tuple[Tested, ...]:
        """Sends a test message to one target, or to all, at once and beside their queues."""
        if not self._couriers:
            raise WrongState(
                "cannot send a test message", reason="nobody is to be told", hint="add [[alarm]] or [report] to ha.toml"
            )
        if name and name not in self._couriers:
            known = ", ".join(self._couriers)
            raise ConfigFault("the call", (f"target: {name!r} is none of {known}",))
        chosen = [courier.target for courier in self._couriers.values() if name in {"", courier.target.name}]
        return tuple(await asyncio.gather(*(self._test(target) for target in chosen)))

    async def _test(self, target: Target) -> Tested:
        document = wording.trial_document(node=self._node, station=self._station, unix_s=self._wall())
        async with self._testing:
            begun = self._loop.time()
            delivered = await deliver(
                self._programs(), Order(target=target, id=str(uuid.uuid4()), document=document)
            )  # fmt: skip
            return Tested(target=target.name, delivered=delivered, took_s=self._loop.time() - begun)


@contextlib.asynccontextmanager
async def opened(settings: Settings, events: EventLog) -> AsyncIterator[Desk]:
    """A desk that works until the end. Trouble of its own ends nothing but itself."""
    told = [target.name for target in settings.alarms.everyone]
    outbox = await asyncio.to_thread(Outbox, path_of(settings.node.state_dir) if told else None, told)
    try:
        desk = Desk(settings, outbox)
        desk.listen(events)
        working = asyncio.create_task(_kept(desk))
        try:
            yield desk
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
    finally:
        await asyncio.to_thread(outbox.close)


async def _kept(desk: Desk) -> None:
    try:
        await desk.run()
    except Exception as failed:
        log.exception("alarms are not sent any more", extra={"reason": repr(failed)})
