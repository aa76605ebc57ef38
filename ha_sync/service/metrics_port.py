"""``[metrics]``: one page, ``GET /metrics``, over plain HTTP. Imported where it is switched on.

It asks the two daemons of this node at their unix sockets, as any tool does, for each request anew. A request is read
within 5 s and 8 KiB, and one connection answers one; more than 16 at a time are sent away. What is wrong with a
request, or with a daemon, never reaches the engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any

import grpc
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector, CollectorRegistry

from ha_proto.agent.v1 import agent_pb2, agent_pb2_grpc
from ha_proto.sync.v1 import control_pb2 as pb
from ha_proto.sync.v1 import control_pb2_grpc
from ha_sync.errors import OperatorNeeded
from ha_sync.logs.runs import Kind
from ha_sync.pairing.clock import read_clock
from ha_sync.service.measures import Look, measures

PAGE = "/metrics"
REQUEST_BYTES_MAX = 8192
REQUEST_S = 5.0
ASK_S = 2.0  # each question
PAGE_S = 10.0
AT_ONCE_MAX = 16
STORAGE_RUNS = 200  # looked through for the last of each storage

CHANNEL_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 200), ("grpc.max_reconnect_backoff_ms", 1000))
"""A daemon that came back is found at once."""

log = logging.getLogger(__name__)


class _Once(Collector):
    """A look, as the library wants it."""

    def __init__(self, look: Look) -> None:
        self._look = look

    def collect(self) -> Iterator[Metric]:
        """All of it."""
        return measures(self._look)


def page(look: Look, accept: str) -> tuple[bytes, str]:
    """The text, in the format that the caller prefers, and its content type."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(look))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class Asker:
    """Asks both daemons; either may be silent. Close it."""

    def __init__(self, engine_path: str, agent_path: str) -> None:
        self._channels = [
            grpc.aio.insecure_channel(f"unix:{os.path.abspath(path)}", options=CHANNEL_OPTIONS)
            for path in (engine_path, agent_path)
        ]
        self._engine = control_pb2_grpc.ControlServiceStub(self._channels[0])  # type: ignore[no-untyped-call]
        self._agent = agent_pb2_grpc.AgentServiceStub(self._channels[1])  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Hangs up."""
        for channel in self._channels:
            await channel.close(None)

    async def __call__(self) -> Look:
        """What they say now."""
        engine, agent = await asyncio.gather(self._ask_engine(), self._ask_agent())
        return Look(now_unix_s=read_clock().unix_s, **engine, **agent)  # for people: how old the last backup is

    async def _ask_engine(self) -> dict[str, Any]:
        try:
            status = await self._engine.GetStatus(pb.GetStatusRequest(), timeout=ASK_S)
            divergences = await self._engine.ListDivergences(pb.ListDivergencesRequest(), timeout=ASK_S)
            backups = await self._runs("backup", Kind.FULL_BACKUP, limit=2)
            storages = await self._engine.ListStorages(pb.ListStoragesRequest(), timeout=ASK_S)
            syncs = await self._runs("storage", Kind.STORAGE_SYNC, limit=STORAGE_RUNS)
        except grpc.aio.AioRpcError as error:
            log.info("the engine does not answer its metrics", extra={"reason": error.details()})
            return {}
        ended = [run for run in backups if run.HasField("end_unix_s")]
        return {
            "engine": status,
            "divergences": tuple(divergences.archives),
            "backup": ended[-1] if ended else None,
            "storages": tuple(storages.storages),
            "syncs": tuple({run.facts["storage"]: run for run in syncs if run.HasField("end_unix_s")}.values()),
        }

    async def _ask_agent(self) -> dict[str, Any]:
        try:
            status = await self._agent.GetStatus(agent_pb2.GetStatusRequest(), timeout=ASK_S)
            alarms = await self._agent.ListAlarms(agent_pb2.ListAlarmsRequest(), timeout=ASK_S)
        except grpc.aio.AioRpcError:
            return {}
        return {"agent": status, "alarms": tuple(alarms.alarms)}

    async def _runs(self, of: str, kind: Kind, *, limit: int) -> list[pb.RunRecord]:
        request = pb.ListRunsRequest(log=of, kind=kind.value, limit=limit)
        return [run async for run in self._engine.ListRuns(request, timeout=ASK_S)]


@contextlib.asynccontextmanager
async def metrics_port(
    listen: tuple[str, ...], ask: Callable[[], Awaitable[Look]]
) -> AsyncIterator[tuple[asyncio.Server, ...]]:
    """Serves at all these addresses. Raises OperatorNeeded where it cannot."""
    async with contextlib.AsyncExitStack() as stack:
        port = _Port(ask)
        servers = []
        for address in listen:
            host, _, number = address.rpartition(":")
            try:
                server = await asyncio.start_server(port.answer, host.strip("[]"), int(number), limit=REQUEST_BYTES_MAX)
            except OSError as error:
                raise OperatorNeeded(
                    "cannot serve metrics at",
                    subject=address,
                    reason=error.strerror or str(error),
                    hint="see `ss -ltnp`, or set `listen` in [metrics]",
                ) from error
            servers.append(await stack.enter_async_context(server))
        yield tuple(servers)


class _Port:
    def __init__(self, ask: Callable[[], Awaitable[Look]]) -> None:
        self._ask = ask
        self._open = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request."""
        self._open += 1
        try:
            if self._open > AT_ONCE_MAX:
                _send(writer, HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                async with asyncio.timeout(REQUEST_S):
                    head = await reader.readuntil(b"\r\n\r\n")
                async with asyncio.timeout(PAGE_S):
                    await self._respond(head, writer)
            async with asyncio.timeout(REQUEST_S):
                await writer.drain()
        except asyncio.LimitOverrunError:
            _send(writer, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as gone:
            log.debug("a request for metrics came to nothing", extra={"reason": repr(gone)})
        finally:
            self._open -= 1
            writer.close()

    async def _respond(self, head: bytes, writer: asyncio.StreamWriter) -> None:
        request, *fields = head.decode("latin-1").split("\r\n")
        method, _, rest = request.partition(" ")
        target, _, version = rest.partition(" ")
        if not version.startswith("HTTP/1."):
            _send(writer, HTTPStatus.BAD_REQUEST)
        elif target.partition("?")[0] != PAGE:
            _send(writer, HTTPStatus.NOT_FOUND)
        elif method not in {"GET", "HEAD"}:
            _send(writer, HTTPStatus.METHOD_NOT_ALLOWED)
        else:
            accepted = [line.partition(":")[2].strip() for line in fields if line.lower().startswith("accept:")]
            text, content_type = page(await self._ask(), accepted[0] if accepted else "")
            _send(writer, HTTPStatus.OK, text, content_type, body=method == "GET")


def _send(
    writer: asyncio.StreamWriter,
    status: HTTPStatus,
    content: bytes = b"",
    content_type: str = "text/plain",
    *,
    body: bool = True,
) -> None:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode("latin-1") + (content if body else b""))
