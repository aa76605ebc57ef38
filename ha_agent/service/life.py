"""``LifeService``: see ``proto/ha_proto/agent/v1/life.proto``.

Invariant of a dissolving: what says that HA is off is durable before the address is given up, so that a power cut in
between leaves a node that idles.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ha_agent.agent import Agent
from ha_agent.agent.chronicle import ROLE_OF
from ha_agent.agent.facts import facts_of
from ha_agent.arbiter import events as ev
from ha_agent.arbiter import policy
from ha_agent.commands import Commands
from ha_agent.errors import WrongState
from ha_agent.memory import window
from ha_agent.service.settings import SettingsServicer
from ha_agent.service.status_map import Context, unary
from ha_agent.services import Services
from ha_agent.settings import Settings
from ha_proto.agent.v1 import life_pb2 as pb
from ha_proto.agent.v1 import life_pb2_grpc

# ruff: noqa: N802 - methods are named as in the protocol

Report = Callable[[str, str, dict[str, Any]], Any]


class LifeServicer(life_pb2_grpc.LifeServiceServicer):
    """``agent`` is None while HA is off or the node is not paired."""

    def __init__(self, settings: Settings, path: str, keeper: SettingsServicer, report: Report) -> None:
        self._settings = settings
        self._path = path
        self._keeper = keeper
        self._report = report
        self._agent: Agent | None = None
        self._ended = asyncio.Event()
        self.dissolved = False

    def entered(self, agent: Agent) -> None:
        """The agent runs."""
        self._agent = agent

    @unary
    async def GetFacts(self, _request: pb.GetFactsRequest, _context: Context) -> pb.AgentFacts:
        """The file's and the machine's, and what the beats say."""
        facts = await facts_of(self._path)
        agent = self._agent
        if agent is not None and not self.dissolved:
            state = agent.state
            ways = {one.name: one.way.value for one in agent.parts.channel.paths()}
            for path in facts.paths:
                path.state = ways.get(path.name, "")
            facts.role = ROLE_OF[state.phase]
            facts.peer_firmware = agent.peer_told.firmware
            facts.ready = not policy.reasons(state)
            facts.peer_ready = state.peer is not None and state.peer.ready
            facts.peer_upgrading = state.peer_identity is not None and state.peer_identity.upgrading
            facts.peer_heard = state.now - state.heard_at <= state.settings.timeout_s
        return facts

    @unary
    async def SetUpgrade(self, request: pb.SetUpgradeRequest, _context: Context) -> pb.SetUpgradeResponse:
        """Durable before the arbiter hears of it."""
        if self._agent is None or self.dissolved:
            raise WrongState("cannot set the upgrade window", reason="the agent of this node has no part in a pair")
        state_dir = self._settings.node.state_dir
        if request.open:
            await asyncio.to_thread(window.open_from, state_dir, request.from_firmware)
        else:
            await asyncio.to_thread(window.close, state_dir)
        self._report("warning", "the upgrade window was " + ("opened" if request.open else "closed"), {})
        self._agent.tell(ev.WindowSet, open=request.open)
        return pb.SetUpgradeResponse()

    @unary
    async def Dissolve(self, _request: pb.DissolveRequest, _context: Context) -> pb.DissolveResponse:
        """Said again it does nothing more."""
        removed = await self._keeper.switch_off()
        await asyncio.to_thread(window.close, self._settings.node.state_dir)
        agent = self._agent
        if agent is None:
            self.dissolved = self._settings.pair is not None  # one that is only being built ends before it begins
        elif not self.dissolved:
            self.dissolved = True
            held = agent.state.holds
            self._report("warning", "the pair is dissolved: HA goes off on this node", {})
            agent.stop()
            await self._ended.wait()
            removed += [f"address {one}" for one in agent.pair.cluster_addresses if held]
            removed.append(f"condition file {self._settings.node.condition_file}")
            await self._restart_services()
        return pb.DissolveResponse(removed=removed)

    def ended(self) -> None:
        """The agent's run is over: its address is gone, its services are stopped."""
        self._ended.set()

    async def _restart_services(self) -> None:
        """Both nodes are on their own now. Units that still carry our condition do not start: see operations."""
        commands = Commands()
        executor = ThreadPoolExecutor(1)
        node = self._settings.node
        services = Services(
            self._settings.services,
            commands,
            executor,
            self._report,
            condition_file=node.condition_file,
            proc_dir=node.proc_dir,
        )
        try:
            await services.stop()
            await services.start_alone()
        finally:
            commands.close()
            executor.shutdown(wait=False)
