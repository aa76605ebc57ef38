"""Errors of ours as gRPC statuses: the exit code travels as trailing metadata, as the engine's does."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import grpc

from ha_agent.errors import (
    AgentError,
    ConfigFault,
    OperatorNeeded,
    PeerUnreachable,
    ProtocolFault,
    Refused,
    Retryable,
    WrongState,
)

EXIT_CODE_KEY = "ha-sync-exit-code"

STATUS: dict[type[AgentError], grpc.StatusCode] = {
    ConfigFault: grpc.StatusCode.INVALID_ARGUMENT,
    OperatorNeeded: grpc.StatusCode.FAILED_PRECONDITION,
    PeerUnreachable: grpc.StatusCode.UNAVAILABLE,
    ProtocolFault: grpc.StatusCode.INVALID_ARGUMENT,
    Refused: grpc.StatusCode.PERMISSION_DENIED,
    Retryable: grpc.StatusCode.UNAVAILABLE,
    WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    AgentError: grpc.StatusCode.INTERNAL,
}

Context = grpc.aio.ServicerContext[Any, Any]
Servicer = TypeVar("Servicer")


async def _abort(context: Context, error: AgentError) -> None:
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    context.set_trailing_metadata(((EXIT_CODE_KEY, str(error.exit_code)),))
    await context.abort(status, error.sentence())


def unary(
    method: Callable[[Servicer, Any, Context], Awaitable[Any]],
) -> Callable[[Servicer, Any, Context], Awaitable[Any]]:
    """Maps the errors of a unary method."""

    @functools.wraps(method)
    async def wrapped(self: Servicer, request: Any, context: Context) -> Any:
        try:
            return await method(self, request, context)
        except AgentError as error:
            await _abort(context, error)

    return wrapped


def streaming(
    method: Callable[[Servicer, Any, Context], AsyncIterator[Any]],
) -> Callable[[Servicer, Any, Context], AsyncIterator[Any]]:
    """Maps the errors of a method that answers with a stream."""

    @functools.wraps(method)
    async def wrapped(self: Servicer, request: Any, context: Context) -> AsyncIterator[Any]:
        try:
            async for message in method(self, request, context):
                yield message
        except AgentError as error:
            await _abort(context, error)

    return wrapped
