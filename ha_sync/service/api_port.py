"""``[api]``: the API of both daemons on a TCP port, for clients with a certificate (R33). Imported where it is on.

TLS lets in whom ``client_authority`` signed; ``clients`` can narrow that to common names. A call is handed on, byte for
byte, to the unix socket of the daemon that has the service, and so are its deadline, its errors and its exit code: the
API is the same on both. Only the services of ``SERVICES`` are there, and none of ``PRIVATE``, which the two daemons
have for one another. Health and reflection are answered here: of a daemon that is silent health says NOT_SERVING.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from ha_proto.agent.v1 import agent_pb2, settings_pb2
from ha_proto.agent.v1 import life_pb2 as agent_life_pb2
from ha_proto.sync.v1 import control_pb2
from ha_proto.sync.v1 import life_pb2 as sync_life_pb2
from ha_sync.config import ApiSettings
from ha_sync.errors import OperatorNeeded
from ha_sync.pairing.gate import Refusals, peer_address

ENGINE_SERVICES: Final = (
    control_pb2.DESCRIPTOR.services_by_name["ControlService"].full_name,
    sync_life_pb2.DESCRIPTOR.services_by_name["LifeService"].full_name,
)
AGENT_SERVICES: Final = (
    agent_pb2.DESCRIPTOR.services_by_name["AgentService"].full_name,
    settings_pb2.DESCRIPTOR.services_by_name["SettingsService"].full_name,
    agent_life_pb2.DESCRIPTOR.services_by_name["LifeService"].full_name,
)
SERVICES: Final = (*ENGINE_SERVICES, *AGENT_SERVICES)
PRIVATE: Final = frozenset(
    {
        f"/{AGENT_SERVICES[0]}/Attach",
        f"/{AGENT_SERVICES[1]}/GetShared",
        f"/{AGENT_SERVICES[1]}/TakeShared",
    }
)
CHANNEL_OPTIONS: Final = (
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
)
HEALTH_S: Final = 2.0
HEALTH_AGAIN_S: Final = 1.0
STOP_GRACE_S: Final = 1.0
OTHERS: Final = 0o007
"""Permissions of everybody else."""

Context = grpc.aio.ServicerContext[Any, Any]
Answer = health_pb2.HealthCheckResponse
Channels = dict[str, grpc.aio.Channel]


@contextlib.asynccontextmanager
async def api_port(
    settings: ApiSettings, *, engine_path: str, agent_path: str, refusals: Refusals
) -> AsyncIterator[tuple[int, ...]]:
    """Serves at all addresses of ``settings``; gives the ports. Raises OperatorNeeded where it cannot."""
    async with contextlib.AsyncExitStack() as stack:
        engine, agent = [
            await stack.enter_async_context(grpc.aio.insecure_channel(f"unix:{path}", options=CHANNEL_OPTIONS))
            for path in (engine_path, agent_path)
        ]
        channels = dict.fromkeys(ENGINE_SERVICES, engine) | dict.fromkeys(AGENT_SERVICES, agent)
        admit = _Admission(settings.clients, refusals)
        server = grpc.aio.server(interceptors=(admit,), options=(("grpc.so_reuseport", 0),))
        server.add_generic_rpc_handlers((_Forward(channels),))
        health_pb2_grpc.add_HealthServicer_to_server(_Health(channels | {"": engine}), server)
        known = (*SERVICES, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(known, server)
        credentials = await asyncio.to_thread(lambda: _Files(settings).credentials())
        ports = tuple(_open(server, address, credentials) for address in settings.listen)
        await server.start()
        try:
            yield ports
        finally:
            await server.stop(STOP_GRACE_S)


def _open(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials) -> int:
    try:
        return server.add_secure_port(address, credentials)
    except RuntimeError as error:
        raise OperatorNeeded(
            "cannot serve the API at",
            subject=address,
            reason="the address is not this node's, or the port is in use",
            hint="see `ss -ltnp`, or set `listen` in [api]",
        ) from error


class _Files:
    """The PEM files; read again when one of them was replaced. ``_fetch`` runs in threads of gRPC's."""

    def __init__(self, settings: ApiSettings) -> None:
        self._paths = (settings.key, settings.certificate, settings.client_authority)
        self._lock = threading.Lock()
        self._read: tuple[tuple[int, int], ...] = ()

    def credentials(self) -> grpc.ServerCredentials:
        """Raises OperatorNeeded."""
        if os.path.exists(self._paths[0]) and os.stat(self._paths[0]).st_mode & OTHERS:
            raise OperatorNeeded(
                "cannot serve the API with",
                subject=self._paths[0],
                reason="everybody on this machine may read the key",
                hint=f"chmod 600 {self._paths[0]}",
            )
        try:
            first = self._fetch()
        except OSError as error:
            raise OperatorNeeded(
                "cannot serve the API with", subject=str(error.filename), reason=error.strerror or str(error)
            ) from error
        assert first is not None
        return grpc.dynamic_ssl_server_credentials(
            first,
            self._fetch_quietly,  # type: ignore[arg-type]  # None: no change
            require_client_authentication=True,
        )

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        with self._lock:
            seen = tuple((status.st_mtime_ns, status.st_ino) for status in map(os.stat, self._paths))
            if seen == self._read:
                return None
            contents = []
            for path in self._paths:
                with open(path, "rb") as file:
                    contents.append(file.read())
            self._read = seen
        key, certificate, authority = contents
        return grpc.ssl_server_certificate_configuration([(key, certificate)], authority)

    def _fetch_quietly(self) -> grpc.ServerCertificateConfiguration | None:
        with contextlib.suppress(OSError):  # in the middle of a replacement: the earlier ones hold
            return self._fetch()
        return None


class _Admission(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs alone
    """Lets in whom ``clients`` names. TLS has proved that the certificate is the authority's."""

    def __init__(self, clients: Sequence[str], refusals: Refusals) -> None:
        self._clients = frozenset(clients)
        self._refusals = refusals

    async def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Looks at the caller before its handler does; a service that there is none of is refused by gRPC."""
        handler = await continuation(handler_call_details)
        if handler is None or not self._clients:
            return handler
        if handler.request_streaming:
            guarded = partial(self._streaming, handler.stream_stream)
            return grpc.stream_stream_rpc_method_handler(
                guarded, handler.request_deserializer, handler.response_serializer
            )
        if handler.response_streaming:
            return grpc.unary_stream_rpc_method_handler(
                partial(self._streaming, handler.unary_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_unary_rpc_method_handler(
            partial(self._unary, handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    async def _unary(self, answer: Callable[..., Any], request: Any, context: Context) -> Any:
        await self._judge(context)
        return await answer(request, context)

    async def _streaming(self, answer: Callable[..., Any], requests: Any, context: Context) -> AsyncIterator[Any]:
        await self._judge(context)
        async for message in answer(requests, context):
            yield message

    async def _judge(self, context: Context) -> None:
        names = {bytes(name).decode(errors="replace") for name in context.auth_context().get("x509_common_name", ())}
        if not names & self._clients:
            reason = f"the client {', '.join(sorted(names)) or 'without a name'} is not in `clients` of [api]"
            self._refusals.tell(peer=peer_address(context), reason=reason, attempted="use the API")
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)


class _Forward(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Hands calls on. Every kind of call is one of streams, on the wire."""

    def __init__(self, channels: Channels) -> None:
        self._channels = channels

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """None: there is no such service here."""
        method = handler_call_details.method
        channel = self._channels.get(method.strip("/").partition("/")[0])
        if channel is None or method in PRIVATE:
            return None
        return grpc.stream_stream_rpc_method_handler(partial(_hand_on, channel, method))


async def _hand_on(
    channel: grpc.aio.Channel, method: str, requests: AsyncIterator[bytes], context: Context
) -> AsyncIterator[bytes]:
    call = channel.stream_stream(method, None, None)(requests, timeout=context.time_remaining())
    try:
        async for message in call:
            yield message
        context.set_trailing_metadata(_pairs(await call.trailing_metadata()))
    except grpc.aio.AioRpcError as error:
        context.set_trailing_metadata(_pairs(error.trailing_metadata()))
        await context.abort(error.code(), error.details() or "")
    finally:
        call.cancel()


def _pairs(metadata: Any) -> tuple[tuple[str, str | bytes], ...]:
    return tuple((key, value) for key, value in metadata or ())


class _Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # the library has no types
    """Of each service, what its daemon says; of the whole, what the engine says."""

    # ruff: noqa: N802 - methods are named as in the protocol

    def __init__(self, channels: Channels) -> None:
        self._stubs = {name: health_pb2_grpc.HealthStub(channel) for name, channel in channels.items()}

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> Any:
        """Now."""
        if request.service not in self._stubs:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return Answer(status=await self._status(request.service))

    async def Watch(self, request: health_pb2.HealthCheckRequest, _context: Context) -> AsyncIterator[Any]:
        """At once, and whenever it has changed."""
        told: Any = None
        while True:
            known = request.service in self._stubs
            now = await self._status(request.service) if known else Answer.SERVICE_UNKNOWN
            if now != told:
                told = now
                yield Answer(status=now)
            await asyncio.sleep(HEALTH_AGAIN_S)

    async def _status(self, service: str) -> Any:
        try:
            answer = await self._stubs[service].Check(health_pb2.HealthCheckRequest(service=service), timeout=HEALTH_S)
        except grpc.aio.AioRpcError:
            return Answer.NOT_SERVING
        return answer.status
