"""``AgentService``: see ``proto/ha_proto/agent/v1/agent.proto`` for each method."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator
from dataclasses import replace

from ha_agent.agent import Agent
from ha_agent.alarms.desk import Desk
from ha_agent.arbiter import events as ev
from ha_agent.arbiter.values import Phase, Reason
from ha_agent.errors import ConfigFault, Refused, WrongState
from ha_agent.logs import AgentLogs, Result, Switch, read_switches
from ha_agent.service.alarms_shown import alarms_of, tested_of
from ha_agent.service.shown import event_of, idle_status, status_of, switch_of
from ha_agent.service.status_map import Context, streaming, unary
from ha_agent.settings import Settings
from ha_proto.agent.v1 import agent_pb2 as pb
from ha_proto.agent.v1 import agent_pb2_grpc

# ruff: noqa: N802 - methods are named as in the protocol

WATCH_MIN_S, WATCH_MAX_S = 0.1, 60.0
TIMEOUT_MAX_S = 3600.0
SWITCHES_LIMIT = 100
EVENTS_LIMIT = 1000
LIMIT_MAX = 1_000_000


class AgentServicer(agent_pb2_grpc.AgentServiceServicer):
    """``agent`` is None while HA is off or the node is not paired; ``entered`` is told once it is there."""

    def __init__(self, settings: Settings, logs: AgentLogs, desk: Desk) -> None:
        self.desk = desk
        self._settings = settings
        self._logs = logs
        self._agent: Agent | None = None
        self._ready = asyncio.Event()

    def entered(self, agent: Agent) -> None:
        """The agent runs."""
        self._agent = agent
        self._ready.set()

    def off(self) -> None:
        """The pair was dissolved: HA is off from now on."""
        self._settings = replace(self._settings, pair=None)
        self._agent = None

    def _running(self) -> Agent:
        if self._agent is not None:
            return self._agent
        if self._settings.pair is None:
            raise WrongState("HA is off on this node", hint="set enabled = true in [ha] of ha.toml, restart the agent")
        raise WrongState("this node is not paired", hint="`ha-sync pair init` or `ha-sync pair join TOKEN`")

    @streaming
    async def Attach(self, reports: AsyncIterator[pb.EngineReport], _context: Context) -> AsyncIterator[pb.Directive]:
        """The engine's call; before the node is paired it waits."""
        await self._ready.wait()
        async with contextlib.aclosing(self._running().parts.engine.serve(reports)) as directives:
            async for directive in directives:
                yield directive

    # ---- looking

    @unary
    async def GetStatus(self, _request: pb.GetStatusRequest, _context: Context) -> pb.AgentStatus:
        """Everything at a glance."""
        return await self._status()

    @streaming
    async def WatchStatus(self, request: pb.WatchStatusRequest, _context: Context) -> AsyncIterator[pb.AgentStatus]:
        """At each change, and at least so often."""
        interval_s = request.interval_s or 1.0
        _in_range("interval_s", interval_s, WATCH_MIN_S, WATCH_MAX_S)
        while True:
            changed = self._agent.changed if self._agent is not None else self._ready
            yield await self._status()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await changed.wait()

    async def _status(self) -> pb.AgentStatus:
        if self._agent is None:
            phase = "off" if self._settings.pair is None else "not paired"
            return idle_status(self._settings, self.desk, phase=phase)
        # What is on disk now: who asks for the status must not wait for a disk that takes nothing.
        last = await asyncio.to_thread(functools.partial(read_switches, self._logs.writer.path, limit=1))
        return status_of(self._agent, self.desk, last[-1] if last else None)

    # ---- changing

    @unary
    async def Switch(self, request: pb.SwitchRequest, _context: Context) -> pb.SwitchResponse:
        """Returns when the roles have changed."""
        _in_range("timeout_s", request.timeout_s, 0, TIMEOUT_MAX_S)
        answered = await self._running().switch(
            force=request.force,
            accept_data_loss=request.accept_data_loss,
            accept_dual=request.accept_dual,
            timeout_s=request.timeout_s,
        )
        return pb.SwitchResponse(
            switched=answered.done,
            epoch=answered.epoch,
            reason=answered.reason.value if answered.reason is not None else "",
            peer_reasons=[reason.value for reason in answered.peer_reasons],
            detail=answered.detail,
        )

    @unary
    async def CancelSwitch(self, _request: pb.CancelSwitchRequest, _context: Context) -> pb.CancelSwitchResponse:
        """Before the go; afterwards there is nothing to cancel."""
        agent = self._running()
        if agent.state.phase not in {Phase.QUIESCING, Phase.OFFERING}:
            raise WrongState("cannot cancel a switch", reason="none is under way here, or it has gone out already")
        agent.tell(ev.SwitchCancelled)
        return pb.CancelSwitchResponse()

    @unary
    async def SetMaintenance(self, request: pb.SetMaintenanceRequest, _context: Context) -> pb.SetMaintenanceResponse:
        """No automatic switch for so long, on both nodes."""
        agent = self._running()
        _in_range("seconds", request.seconds, 0, agent.pair.maintenance_max_s)
        agent.parts.events.append("warning", "maintenance", {"seconds": request.seconds})
        agent.tell(ev.MaintenanceSet, seconds=request.seconds)
        return pb.SetMaintenanceResponse()

    @unary
    async def ReleaseHold(self, _request: pb.ReleaseHoldRequest, _context: Context) -> pb.ReleaseHoldResponse:
        """The pair may switch by itself again."""
        agent = self._running()
        agent.parts.events.append("warning", "the hold was released", {})
        agent.tell(ev.HoldReleased)
        return pb.ReleaseHoldResponse()

    @unary
    async def DeclareSingle(self, _request: pb.DeclareSingleRequest, _context: Context) -> pb.DeclareSingleResponse:
        """The peer is gone for good."""
        answered = await self._running().declare_single()
        if answered.reason is Reason.PEER_HEARD:
            raise Refused("cannot declare this node single", reason="the other node is heard: it is not gone")
        if not answered.done:
            raise WrongState("cannot declare this node single", reason="this node is not the Active, or is busy")
        return pb.DeclareSingleResponse()

    # ---- alarms

    @unary
    async def ListAlarms(self, _request: pb.ListAlarmsRequest, _context: Context) -> pb.ListAlarmsResponse:
        """What stands now, and whom it was told."""
        return alarms_of(self.desk)

    @unary
    async def TestAlarm(self, request: pb.TestAlarmRequest, _context: Context) -> pb.TestAlarmResponse:
        """A test message, sent at once."""
        return pb.TestAlarmResponse(results=[tested_of(one) for one in await self.desk.test(request.target)])

    # ---- logs

    @streaming
    async def ListSwitches(self, request: pb.ListSwitchesRequest, _context: Context) -> AsyncIterator[pb.SwitchRecord]:
        """The switch log, oldest first; with ``follow`` also what changes."""
        limit = request.limit or SWITCHES_LIMIT
        _in_range("limit", limit, 1, LIMIT_MAX)
        result = _result(request.result)
        switches = self._logs.switches
        query = functools.partial(switches.query, since_unix_s=request.since_unix_s, limit=limit, result=result)
        last = 0
        for switch in await asyncio.to_thread(query):
            last = max(last, switch.revision)
            yield switch_of(switch)
        if request.follow:
            async for switch in switches.follow(after_revision=last):
                if switch.begun_unix_s >= request.since_unix_s and _wanted(switch, result):
                    yield switch_of(switch)

    @streaming
    async def ListEvents(self, request: pb.ListEventsRequest, _context: Context) -> AsyncIterator[pb.EventRecord]:
        """The event log, oldest first; with ``follow`` also what comes."""
        limit, severity = request.limit or EVENTS_LIMIT, request.severity or "info"
        _in_range("limit", limit, 1, LIMIT_MAX)
        if severity not in {"info", "warning", "error"}:
            raise ConfigFault("the call", (f"severity: {severity!r} is none of info, warning, error",))
        events = self._logs.events
        query = functools.partial(events.query, since_unix_s=request.since_unix_s, limit=limit, severity=severity)
        last = 0
        for event in await asyncio.to_thread(query):
            last = event.id
            yield event_of(event)
        if request.follow:
            async for event in events.follow(after_id=last, severity=severity):
                if event.unix_s >= request.since_unix_s:
                    yield event_of(event)


def _in_range(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigFault("the call", (f"{field}: {value:g} is not between {low:g} and {high:g}",))


def _result(text: str) -> Result | None:
    try:
        return Result(text) if text else None
    except ValueError:
        known = ", ".join(result.value for result in Result)
        raise ConfigFault("the call", (f"result: {text!r} is none of {known}",)) from None


def _wanted(switch: Switch, result: Result | None) -> bool:
    return result is None or switch.result is result
