"""One agent process: its lock, its logs, its socket, the agent; composed and taken down in order.

The unix socket answers as soon as the process runs. With HA off the process idles there; a node that is not paired yet
is waited for. Only one agent may use a state directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from ha_agent.agent import build
from ha_agent.agent.facts import with_vendor
from ha_agent.alarms.desk import Desk, opened
from ha_agent.errors import OperatorNeeded
from ha_agent.logs import FILE_NAME, AgentLogs, open_logs
from ha_agent.memory import await_membership
from ha_agent.service.life import LifeServicer
from ha_agent.service.servicer import AgentServicer
from ha_agent.service.settings import SettingsServicer
from ha_agent.settings import Settings
from ha_proto.agent.v1 import agent_pb2, agent_pb2_grpc, life_pb2, life_pb2_grpc, settings_pb2, settings_pb2_grpc

SOCKET_MODE = 0o660
STOP_GRACE_S = 1.0
SERVER_OPTIONS = (("grpc.http2.bdp_probe", 0),)
"""No measuring of the bandwidth of a unix socket: it answers each report of the engine with a ping."""

LOCK_NAME = "agent.lock"
IDLE_TICK_S = 0.1

_Result = TypeVar("_Result")


@dataclass(slots=True)
class Stopping:
    """How the process is asked to end: ``ask`` from a signal handler."""

    asked: asyncio.Event
    on_ask: Callable[[], None] = lambda: None

    def ask(self) -> None:
        """Stop."""
        self.asked.set()
        self.on_ask()


async def run(settings: Settings, stopping: Stopping, *, path: str, on_tick: Callable[[], None]) -> None:
    """Runs until stopped. ``path``: where the settings came from. ``on_tick`` is called while the agent's loop turns.

    Raises ConfigFault or OperatorNeeded where it cannot start.
    """
    with _only_one(settings.node.state_dir):
        logs = open_logs(os.path.join(settings.node.state_dir, "logs", FILE_NAME))
        try:
            keeper = SettingsServicer(settings, path, logs.events.append)
            life = LifeServicer(settings, path, keeper, logs.events.append)
            async with (
                opened(settings, logs.events) as desk,
                _served(settings, logs, desk, keeper, life) as servicer,
            ):
                await _run(settings, logs, servicer, stopping, keeper=keeper, life=life, on_tick=on_tick)
        finally:
            await asyncio.to_thread(logs.close)


async def _run(
    settings: Settings,
    logs: AgentLogs,
    servicer: AgentServicer,
    stopping: Stopping,
    *,
    keeper: SettingsServicer,
    life: LifeServicer,
    on_tick: Callable[[], None],
) -> None:
    if settings.pair is None:
        logs.events.append("info", "HA is off: the agent idles", {})
        await _idle(stopping.asked.wait(), stopping, on_tick)
        return
    member = await _idle(await_membership(settings.node.state_dir), stopping, on_tick)
    if member is None:
        return
    agent = await build(await with_vendor(settings), member, logs, desk=servicer.desk, on_tick=on_tick)
    stopping.on_ask = agent.stop
    servicer.entered(agent)
    life.entered(agent)
    if stopping.asked.is_set() or life.dissolved:
        agent.stop()
    following = asyncio.create_task(keeper.follow(agent))
    try:
        await agent.run()
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
    if life.dissolved:
        servicer.off()
        life.ended()
        await _idle(stopping.asked.wait(), stopping, on_tick)


async def _idle(work: Coroutine[Any, Any, _Result], stopping: Stopping, on_tick: Callable[[], None]) -> _Result | None:
    """Waits for ``work`` with the loop shown to be alive, as the agent would. None: asked to stop meanwhile."""
    working = asyncio.ensure_future(work)
    try:
        while not working.done() and not stopping.asked.is_set():
            on_tick()
            await asyncio.wait((working,), timeout=IDLE_TICK_S)
        return working.result() if working.done() else None
    finally:
        working.cancel()


@contextlib.asynccontextmanager
async def _served(
    settings: Settings, logs: AgentLogs, desk: Desk, keeper: SettingsServicer, life: LifeServicer
) -> AsyncIterator[AgentServicer]:
    path = settings.node.socket_path
    _clear_stale_socket(path)
    server = grpc.aio.server(options=SERVER_OPTIONS)
    servicer = AgentServicer(settings, logs, desk)
    agent_pb2_grpc.add_AgentServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    settings_pb2_grpc.add_SettingsServiceServicer_to_server(keeper, server)  # type: ignore[no-untyped-call]
    life_pb2_grpc.add_LifeServiceServicer_to_server(life, server)  # type: ignore[no-untyped-call]
    names = [
        life_pb2.DESCRIPTOR.services_by_name["LifeService"].full_name,
        agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name,
        settings_pb2.DESCRIPTOR.services_by_name["SettingsService"].full_name,
    ]
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for served in ("", *names):
        await health.set(served, health_pb2.HealthCheckResponse.SERVING)
    known = (*names, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(known, server)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise OperatorNeeded("cannot open the agent's socket", subject=path, reason=str(error)) from error
    await server.start()
    os.chmod(path, SOCKET_MODE)
    try:
        yield servicer
    finally:
        await server.stop(STOP_GRACE_S)


def _clear_stale_socket(path: str) -> None:
    """Removes what a killed agent left; the lock on the state directory proves that it is gone."""
    _folder(os.path.dirname(path), 0o755)
    with contextlib.suppress(FileNotFoundError), socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            raise OperatorNeeded("cannot open the agent's socket", subject=path, reason="another agent answers there")


@contextlib.contextmanager
def _only_one(state_dir: str) -> Iterator[None]:
    _folder(state_dir, 0o700)
    with _lock_file(state_dir) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OperatorNeeded(
                "cannot start: another agent uses", subject=state_dir, hint="one agent for each state_dir"
            ) from error
        yield


def _folder(path: str, mode: int) -> None:
    try:
        os.makedirs(path, mode=mode, exist_ok=True)
    except OSError as error:
        raise OperatorNeeded("cannot make the folder", subject=path, reason=error.strerror or str(error)) from error


def _lock_file(state_dir: str) -> IO[str]:
    try:
        return open(os.path.join(state_dir, LOCK_NAME), "w", encoding="ascii")
    except OSError as error:
        raise OperatorNeeded("cannot write in", subject=state_dir, reason=error.strerror or str(error)) from error
