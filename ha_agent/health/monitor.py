"""Runs the probes and turns their looks into the health vector. No policy: it says what is, the arbiter decides.

Each probe has a task of its own: look, judge, wait for the interval or until the probe rouses it. A look past its
deadline is a bad one (*silent*); so is one that raised (*unreadable*): a probe never ends, nor does it end others.
Between a rise and a fall the interval holds, so a fault shows after (fall - 1) intervals and the length of the looks.
While the services are stopped or being started (``expect(running=False)``), probes of ``When.ACTIVE`` do not look and
what they knew is forgotten. ``on_change`` is called in the loop whenever the vector differs; it must not block.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from ha_agent.health.look import FaultClass, Look, Reason, bad
from ha_agent.health.probe import Probe
from ha_agent.health.vector import Finding, HealthVector
from ha_agent.health.verdict import Rule, Verdict, judge, reset, spend
from ha_agent.settings import When

logger = logging.getLogger("ha_agent.health")

SUBJECTS_MAX = 1024  # of one probe; more are not taken in


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """A probe and how it is used. ``may_switch`` answers by subject: FXO ports are chosen one by one."""

    name: str  # "process:asterisk", "fxo"
    probe: Probe
    rule: Rule
    interval_s: float
    deadline_s: float
    when: When
    fault_class: FaultClass
    may_switch: Callable[[str], bool]


@dataclass(slots=True)
class _Standing:
    watch: Watch
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    void: bool = False  # whoever stopped the services meanwhile made the look that goes on worthless


class Monitor:
    """One per agent. ``run`` until cancelled."""

    def __init__(
        self,
        watches: tuple[Watch, ...],
        on_change: Callable[[HealthVector], None],
        *,
        aligned: Callable[[float], float] = lambda at: at,
    ) -> None:
        """``aligned``: the moment, a little later than the given one, at which the process wakes anyway."""
        assert len({watch.name for watch in watches}) == len(watches), [watch.name for watch in watches]
        self._standings = tuple(_Standing(watch=watch) for watch in watches)
        self._on_change = on_change
        self._aligned = aligned
        self._running = False
        self._vector = self._gathered()

    @property
    def vector(self) -> HealthVector:
        """What is known now."""
        return self._vector

    def expect(self, *, running: bool) -> None:
        """Whether the services are meant to run now. Each call begins anew: say True once they were started."""
        self._running = running
        for standing in self._standings:
            if standing.watch.when is When.ACTIVE:
                standing.watch.probe.restart()
                standing.verdicts = {subject: reset() for subject in standing.verdicts}
                standing.void = True
                standing.wake.set()
        self._publish()

    def spend(self, cause: str) -> None:
        """This cause has moved the role; it may not do so again until it was seen good."""
        for standing in self._standings:
            for subject, verdict in standing.verdicts.items():
                if _cause(standing.watch, subject) == cause:
                    standing.verdicts[subject] = spend(verdict)
        self._publish()

    async def run(self) -> None:
        """Looks until cancelled; closes the probes."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for standing in self._standings:
                    standing.watch.probe.rouse_with(standing.wake.set)
                    tasks.create_task(self._watch(standing), name=f"probe {standing.watch.name}")
        finally:
            for standing in self._standings:
                with contextlib.suppress(OSError):
                    await standing.watch.probe.close()

    async def _watch(self, standing: _Standing) -> None:
        watch = standing.watch
        while True:
            standing.wake.clear()
            standing.void = False
            if watch.when is When.ALWAYS or self._running:
                looks = await self._look(standing)
                if not standing.void:
                    self._judge(standing, looks)
            await self._pause(standing)

    async def _look(self, standing: _Standing) -> tuple[Look, ...]:
        watch = standing.watch
        try:
            async with asyncio.timeout(watch.deadline_s):
                return await watch.probe.look()
        except TimeoutError:
            failed = bad(Reason.SILENT, f"no answer within {watch.deadline_s:g} s")
        except Exception as error:
            logger.exception("a probe failed", extra={"probe": watch.name})
            failed = bad(Reason.UNREADABLE, f"{type(error).__name__}: {error}")
        # Which subject was the slow one is not known: what the others say is as old as their last look.
        subjects = tuple(standing.verdicts) or ("",)
        return tuple(bad(failed.reason, failed.detail, subject=subject) for subject in subjects)

    def _judge(self, standing: _Standing, looks: tuple[Look, ...]) -> None:
        now = asyncio.get_running_loop().time()
        if any(look.subject for look in looks):
            standing.verdicts.pop("", None)  # from before the subjects were known
        for look in looks[:SUBJECTS_MAX]:
            before = standing.verdicts.get(look.subject, Verdict())
            standing.verdicts[look.subject] = judge(before, standing.watch.rule, look, now=now)
        self._publish()

    async def _pause(self, standing: _Standing) -> None:
        """Until the interval is over, the probe rouses it, or somebody wants it anew."""
        loop = asyncio.get_running_loop()
        over = loop.call_at(self._aligned(loop.time() + standing.watch.interval_s), standing.wake.set)
        try:
            await standing.wake.wait()
        finally:
            over.cancel()

    def _publish(self) -> None:
        vector = self._gathered()
        if vector != self._vector:
            self._vector = vector
            self._on_change(vector)

    def _gathered(self) -> HealthVector:
        found = [
            _finding(standing.watch, subject, verdict)
            for standing in self._standings
            for subject, verdict in standing.verdicts.items()
        ]
        return HealthVector(findings=tuple(sorted(found, key=lambda finding: finding.cause)))


def _finding(watch: Watch, subject: str, verdict: Verdict) -> Finding:
    return Finding(
        cause=_cause(watch, subject),
        fault_class=watch.fault_class,
        condition=verdict.condition,
        reason=verdict.reason,
        detail=verdict.detail,
        switches=verdict.switches and watch.may_switch(subject),
    )


def _cause(watch: Watch, subject: str) -> str:
    return f"{watch.name}:{subject}" if subject else watch.name
