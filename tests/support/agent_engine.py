"""An engine without data: attaches to an agent, takes the role it is directed, and is quiet when it is asked to be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Self

import grpc

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_proto.agent.v1 import agent_pb2_grpc

EVERY_S = 0.2


class FakeEngine:
    """Attached from ``__aenter__`` to ``__aexit__``, again and again if its agent goes away."""

    def __init__(self, socket_path: str, *, sound: bool = True, quiets: bool = True) -> None:
        self._socket_path = socket_path
        self.quiets = quiets
        self.report = pb.EngineReport(sound=sound, current=True, digest="d", role="starting", pid=0)
        self.directives: list[pb.Directive] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_exc: object) -> None:
        assert self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                async with grpc.aio.insecure_channel(f"unix:{self._socket_path}") as channel:
                    call = agent_pb2_grpc.AgentServiceStub(channel).Attach(self._reports())
                    try:
                        async for directive in call:
                            self._follow(directive)
                    finally:
                        call.cancel()
            await asyncio.sleep(0.1)

    def _follow(self, directive: pb.Directive) -> None:
        self.directives.append(directive)
        match directive.WhichOneof("directive"):
            case "role":
                wanted = directive.role
                self.report.role, self.report.epoch = wanted.role, wanted.epoch
                self.report.promised = max(wanted.epoch, self.report.promised)
                self.report.data = wanted.epoch or self.report.data
                self.report.promoted = wanted.epoch if wanted.role == "active" else 0
            case "quiesce" if self.quiets:
                self.report.quiesced = directive.quiesce.serial
            case "quiesce":
                del self.report.waiting_for[:]
                self.report.waiting_for.append("cdr: 3 changes not yet on the standby")
        self._changed.set()

    async def _reports(self) -> AsyncIterator[pb.EngineReport]:
        while True:
            self._changed.clear()
            told = pb.EngineReport()
            told.CopyFrom(self.report)
            yield told
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), EVERY_S)
