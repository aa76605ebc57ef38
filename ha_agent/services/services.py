"""Starts, stops and quiesces the services of this node, in their order. No policy: the arbiter says when.

Invariants: one operation at a time, a second one waits; the condition file is there before the first start hook and
gone before the first stop hook; services start in their order and stop in the reverse; a hook that fails or overruns
is reported and the next one runs all the same (half a PBX is better than none, and a stop must reach everything). What
is ``standby = "running"`` is started once, by ``warm``, and touched by nothing else. Cancelling an operation kills the
hook that runs. Deadlines given to ``quiesce`` are times of the loop's clock (monotonic seconds).
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from ha_agent.commands import Commands, Ending, Finished
from ha_agent.errors import OperatorNeeded
from ha_agent.services.condition import allow, forbid
from ha_agent.services.writers import PROC, Survey, survey
from ha_agent.settings import Command, OnStandby, ServiceSettings

READY_EVERY_S = 0.1
WRITERS_EVERY_S = 0.1
REPORTED_OUTPUT_MAX = 500

Report = Callable[[str, str, dict[str, object]], None]
"""Severity, constant text, fields: ``EventLog.append``. Never blocks."""


class Verb(enum.Enum):
    """Which hook ran."""

    START = "start"
    STOP = "stop"
    PROBE = "probe"  # the wait for the first good probe after a start


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One hook that ran."""

    service: str
    verb: Verb
    ok: bool
    reason: str  # how it ended, where it is not ok
    took_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an operation."""

    steps: tuple[Step, ...]
    took_s: float

    @property
    def ok(self) -> bool:
        """Whether every hook did its work."""
        return all(step.ok for step in self.steps)

    @property
    def failures(self) -> tuple[Step, ...]:
        """Those that did not."""
        return tuple(step for step in self.steps if not step.ok)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quieted:
    """What became of a quiesce."""

    quiet: bool  # every service is stopped and nobody has a dataset open for writing
    stopped: Outcome
    survey: Survey


class Services:
    """One per agent."""

    def __init__(
        self,
        services: tuple[ServiceSettings, ...],
        commands: Commands,
        executor: ThreadPoolExecutor,
        report: Report,
        *,
        condition_file: str,
        proc_dir: str = PROC,
    ) -> None:
        self._switched = tuple(service for service in services if service.standby is OnStandby.STOPPED)
        self._warm = tuple(service for service in services if service.standby is OnStandby.RUNNING)
        self._commands = commands
        self._executor = executor
        self._report = report
        self._condition_file = condition_file
        self._proc_dir = proc_dir
        self._lock = asyncio.Lock()

    async def warm(self) -> Outcome:
        """Starts what runs in both roles. Once, when the agent starts; beside the others, which wait for none of it."""
        return await self._start(self._warm, {})

    async def start(self, *, epoch: int) -> Outcome:
        """A promotion: allow, then start in order, each ready before the next one."""
        async with self._lock:
            self._allow(f"active in epoch {epoch}")
            return await self._start(self._switched, {"HA_EPOCH": str(epoch)})

    async def start_alone(self) -> Outcome:
        """There is no pair any more: the start hooks, with nothing that allows or forbids."""
        async with self._lock:
            return await self._start(self._switched, {})

    async def stop(self) -> Outcome:
        """A step-down: forbid, then stop in the reverse order. The stop hooks must do nothing to what is stopped."""
        async with self._lock:
            self._forbid()
            return await self._stop(self._switched, deadline=None)

    async def quiesce(self, datasets: Collection[str], *, deadline: float, but: Collection[int] = ()) -> Quieted:
        """Stops, then waits until nobody writes. Not quiet at the deadline: what was stopped stays so, until ``start``.

        ``datasets``: paths of the replicated files and folders; ``but``: processes that may write (the engine).
        """
        async with self._lock:
            self._forbid()
            try:
                stopped = await self._stop(self._switched, deadline=deadline)
                found = await self._nobody_writes(datasets, but, deadline)
            except asyncio.CancelledError:
                self._report("warning", "a quiesce was given up; the services may be stopped", {})
                raise
            quiet = found.quiet and stopped.ok
            if not quiet:
                self._report_unquiet(stopped, found)
            return Quieted(quiet=quiet, stopped=stopped, survey=found)

    async def nobody_writes(self, datasets: Collection[str], *, deadline: float, but: Collection[int] = ()) -> Survey:
        """Looks until nobody writes or the deadline has passed; the last look."""
        return await self._nobody_writes(datasets, but, deadline)

    async def _start(self, services: tuple[ServiceSettings, ...], environment: dict[str, str]) -> Outcome:
        loop = asyncio.get_running_loop()
        begun, steps = loop.time(), []
        for service in services:
            deadline = loop.time() + service.start_deadline_s
            steps.append(await self._run(service, Verb.START, service.start, deadline, environment))
            if service.probe:
                steps.append(await self._ready(service, deadline))
        return Outcome(steps=tuple(steps), took_s=loop.time() - begun)

    async def _stop(self, services: tuple[ServiceSettings, ...], *, deadline: float | None) -> Outcome:
        loop = asyncio.get_running_loop()
        begun, steps = loop.time(), []
        for service in reversed(services):
            until = loop.time() + service.stop_deadline_s
            until = until if deadline is None else min(until, deadline)
            steps.append(await self._run(service, Verb.STOP, service.stop, until, {}))
        return Outcome(steps=tuple(steps), took_s=loop.time() - begun)

    async def _ready(self, service: ServiceSettings, deadline: float) -> Step:
        """The probe, again and again until it is good. Its failures before that are no news."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        done = await self._probe(service, deadline)
        while not done.ok and loop.time() + READY_EVERY_S < deadline:
            await asyncio.sleep(READY_EVERY_S)
            done = await self._probe(service, deadline)
        return self._step(service, Verb.PROBE, done, took_s=loop.time() - begun)

    async def _probe(self, service: ServiceSettings, deadline: float) -> Finished:
        left_s = deadline - asyncio.get_running_loop().time()
        return await self._commands.run(service.probe, deadline_s=max(0.05, min(service.probe_deadline_s, left_s)))

    async def _run(
        self, service: ServiceSettings, verb: Verb, command: Command, deadline: float, environment: dict[str, str]
    ) -> Step:
        left_s = deadline - asyncio.get_running_loop().time()
        if left_s <= 0:  # the total deadline went to those before it
            late = Finished(command=command, ending=Ending.OVERRUN, status=None, output="", took_s=0.0)
            return self._step(service, verb, late, took_s=0.0)
        done = await self._commands.run(
            command, deadline_s=left_s, environment={"HA_SERVICE": service.name, **environment}
        )
        return self._step(service, verb, done, took_s=done.took_s)

    def _step(self, service: ServiceSettings, verb: Verb, done: Finished, *, took_s: float) -> Step:
        if not done.ok:
            self._report(
                "error",
                f"a service's {verb.value} command failed",
                {
                    "service": service.name,
                    "command": " ".join(done.command),
                    "reason": done.reason,
                    "output": done.output[-REPORTED_OUTPUT_MAX:],
                },
            )
        return Step(service=service.name, verb=verb, ok=done.ok, reason="" if done.ok else done.reason, took_s=took_s)

    async def _nobody_writes(self, datasets: Collection[str], but: Collection[int], deadline: float) -> Survey:
        loop = asyncio.get_running_loop()
        look = partial(survey, tuple(datasets), but=tuple(but), proc_dir=self._proc_dir)
        found = await loop.run_in_executor(self._executor, look)
        while not found.quiet and loop.time() + WRITERS_EVERY_S < deadline:
            await asyncio.sleep(WRITERS_EVERY_S)
            found = await loop.run_in_executor(self._executor, look)
        return found

    def _report_unquiet(self, stopped: Outcome, found: Survey) -> None:
        self._report(
            "error",
            "the services could not be quieted",
            {
                "not_stopped": ", ".join(step.service for step in stopped.failures),
                "writers": ", ".join(str(writer) for writer in found.writers[:5]),
            },
        )

    def _allow(self, text: str) -> None:
        try:
            allow(self._condition_file, text)
        except OperatorNeeded as failed:
            self._report("error", failed.attempted, {"path": failed.subject, "reason": failed.reason})

    def _forbid(self) -> None:
        try:
            forbid(self._condition_file)
        except OperatorNeeded as failed:
            self._report("error", failed.attempted, {"path": failed.subject, "reason": failed.reason})
