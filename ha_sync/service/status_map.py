"""Errors of ours as gRPC statuses, and back: one map for all services and all clients.

The exit code travels as trailing metadata, so that a command ends as it would have ended on the spot.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar, cast

import grpc

from ha_sync.errors import (
    ConfigFault,
    Fenced,
    HaSyncError,
    OperatorNeeded,
    PeerUnreachable,
    ProtocolFault,
    Refused,
    RepairNeeded,
    Retryable,
    WrongState,
)

EXIT_CODE_KEY = "ha-sync-exit-code"

STATUS: dict[type[HaSyncError], grpc.StatusCode] = {
    ConfigFault: grpc.StatusCode.INVALID_ARGUMENT,
    Fenced: grpc.StatusCode.ABORTED,
    OperatorNeeded: grpc.StatusCode.FAILED_PRECONDITION,
    PeerUnreachable: grpc.StatusCode.UNAVAILABLE,
    ProtocolFault: grpc.StatusCode.INVALID_ARGUMENT,
    Refused: grpc.StatusCode.PERMISSION_DENIED,
    RepairNeeded: grpc.StatusCode.DATA_LOSS,
    Retryable: grpc.StatusCode.UNAVAILABLE,
    WrongState: grpc.StatusCode.FAILED_PRECONDITION,
    HaSyncError: grpc.StatusCode.INTERNAL,
}

_ERRORS: dict[grpc.StatusCode, type[HaSyncError]] = {
    grpc.StatusCode.ABORTED: Fenced,
    grpc.StatusCode.PERMISSION_DENIED: Refused,
    grpc.StatusCode.UNAUTHENTICATED: Refused,
    grpc.StatusCode.FAILED_PRECONDITION: OperatorNeeded,
    grpc.StatusCode.INVALID_ARGUMENT: ProtocolFault,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolFault,
}
"""Of a status alone. A role that is not there yet (WrongState) is told by its exit code from what needs a person."""

Context = grpc.aio.ServicerContext[Any, Any]
Servicer = TypeVar("Servicer")


def status_of(error: HaSyncError) -> grpc.StatusCode:
    """The status of the nearest class."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def error_from(error: grpc.aio.AioRpcError) -> HaSyncError:
    """What a client raises for a call that the peer refused; anything unknown is worth another try."""
    kind = _ERRORS.get(error.code(), PeerUnreachable)
    # The stubs describe the objects of another kind of call; grpc.aio gives pairs.
    for key, value in cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ()):
        if key == EXIT_CODE_KEY and value == str(WrongState.exit_code):
            kind = WrongState
    return kind(error.details() or error.code().name.lower())


async def abort(context: Context, error: HaSyncError) -> None:
    """Ends a call with the status, the sentence and the exit code of ``error``; always raises."""
    context.set_trailing_metadata(((EXIT_CODE_KEY, str(error.exit_code)),))
    await context.abort(status_of(error), error.sentence())


def unary(
    method: Callable[[Servicer, Any, Context], Awaitable[Any]],
) -> Callable[[Servicer, Any, Context], Awaitable[Any]]:
    """Maps the errors of a unary method."""

    @functools.wraps(method)
    async def wrapped(self: Servicer, request: Any, context: Context) -> Any:
        try:
            return await method(self, request, context)
        except HaSyncError as error:
            await abort(context, error)

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
        except HaSyncError as error:
            await abort(context, error)

    return wrapped
