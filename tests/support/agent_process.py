"""Agents as processes (``python -m ha_agent.cli run``), and waiting for what their status says."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Self

import grpc

from ha_agent.cluster_ip.stand_in import QUESTION
from ha_proto.agent.v1 import agent_pb2 as pb
from ha_proto.agent.v1 import agent_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent.parent
WITHIN_S = 40.0  # far beyond what any wait needs: a slow machine is no fault


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ha_agent.cli", *arguments]


def environment(**extra: str) -> dict[str, str]:
    plain = {key: value for key, value in os.environ.items() if key not in {"NOTIFY_SOCKET", "HA_AGENT_CONFIG"}}
    return {**plain, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto"))), **extra}


class Process:
    """One agent. ``log`` takes what it says."""

    def __init__(self, config: Path, **extra: str) -> None:
        self.config = config
        self.socket_path = config.parent / "run" / "agent.sock"
        self.log = config.parent / "agent.log"
        self._extra = extra
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command("run", "--config", str(self.config)), stdout=log, stderr=log, env=environment(**self._extra)
            )

    def kill(self) -> None:
        """As a power cut would."""
        self.process.kill()
        self.process.wait()

    async def terminate(self) -> int:
        """As the service manager would; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await asyncio.to_thread(self.process.wait, WITHIN_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()


class Client:
    """Asks one agent."""

    def __init__(self, socket_path: Path | str) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket_path}")
        self.stub = agent_pb2_grpc.AgentServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self._channel.close()

    @property
    def channel(self) -> grpc.aio.Channel:
        return self._channel

    async def statuses(self) -> AsyncIterator[pb.AgentStatus]:
        """As they change; an agent that is not there yet is waited for."""
        while True:
            call = self.stub.WatchStatus(pb.WatchStatusRequest(interval_s=0.1), wait_for_ready=True)
            try:
                async for status in call:
                    yield status
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0.05)
            finally:
                call.cancel()

    async def until(self, wanted: Callable[[pb.AgentStatus], bool]) -> pb.AgentStatus:
        """The first status that is as wanted; the test fails where none comes."""
        last: pb.AgentStatus | None = None
        try:
            async with asyncio.timeout(WITHIN_S), contextlib.aclosing(self.statuses()) as statuses:
                async for last in statuses:
                    if wanted(last):
                        return last
        except TimeoutError:
            pass
        raise AssertionError(f"never came; last seen: {last}")

    async def switches(self, **request: object) -> list[pb.SwitchRecord]:
        return [record async for record in self.stub.ListSwitches(pb.ListSwitchesRequest(**request))]

    async def events(self, **request: object) -> list[pb.EventRecord]:
        return [record async for record in self.stub.ListEvents(pb.ListEventsRequest(**request))]


def is_active(status: pb.AgentStatus) -> bool:
    return status.role == "active" and status.holds


def is_sound(status: pb.AgentStatus) -> bool:
    """Its engine said so, and that is durable."""
    return status.engine_attached and bool(status.paths) and "unsound" not in status.reasons


def is_ready_standby(status: pb.AgentStatus) -> bool:
    return status.role == "standby" and status.peer_role == "active" and status.ready


def answers(address: str, port: int) -> bool:
    """Whether the stand-in of the cluster IP answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(1.0)
        asking.connect((address, port))
        try:
            asking.send(QUESTION)
            return asking.recv(2048) == QUESTION
        except OSError:
            return False
