"""Talks to this node's engine over its unix socket.

Every failure becomes an ``HaSyncError``: the engine puts the exit code of its own error into the trailing metadata
``ha-sync-exit-code``, and its sentence into the status' details, so that the command ends as the engine meant it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import grpc

from ha_proto.sync.v1 import control_pb2_grpc
from ha_sync.errors import (
    ConfigFault,
    Fenced,
    HaSyncError,
    OperatorNeeded,
    PeerUnreachable,
    Refused,
    RepairNeeded,
    Retryable,
    WrongState,
)
from ha_sync.service.status_map import EXIT_CODE_KEY

QUICK_S: Final = 30.0
"""Deadline of a call that only looks."""

LONG_S: Final = 900.0
"""Deadline of a call that changes databases or the role."""


class UsageFault(HaSyncError):
    """The engine does not know what was named, e.g. a dataset: its sentence says what there is."""

    exit_code = ConfigFault.exit_code


_CLASS_OF_EXIT_CODE: Final[dict[int, type[HaSyncError]]] = {
    UsageFault.exit_code: UsageFault,
    WrongState.exit_code: WrongState,
    RepairNeeded.exit_code: RepairNeeded,
    PeerUnreachable.exit_code: PeerUnreachable,
    Refused.exit_code: Refused,
}
assert Fenced.exit_code == Refused.exit_code


@contextmanager
def control(path: str) -> Iterator[Any]:
    """The stub of ``ControlService`` at the socket ``path``; gRPC's errors leave as ours."""
    options = (("grpc.enable_retries", 0), ("grpc.max_receive_message_length", 16 * 1024 * 1024))
    with grpc.insecure_channel(f"unix:{os.path.abspath(path)}", options=options) as channel:
        try:
            yield control_pb2_grpc.ControlServiceStub(channel)  # type: ignore[no-untyped-call]
        except grpc.RpcError as error:
            raise meaning_of(error, path) from error


def meaning_of(error: grpc.RpcError, path: str) -> HaSyncError:
    """What the engine, or its absence, said."""
    assert isinstance(error, grpc.Call), error
    code, details = error.code(), error.details() or ""
    stated = _stated_exit_code(error)
    if stated is not None:
        return _CLASS_OF_EXIT_CODE.get(stated, HaSyncError)(details or f"the engine failed with {code.name}")
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return unreachable(path)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Retryable("waiting for the engine's answer", subject=path, reason="it took too long")
        case grpc.StatusCode.UNIMPLEMENTED:
            return OperatorNeeded(
                "asking the engine", reason="it does not know this call", hint="restart it after an upgrade"
            )
        case _:
            return HaSyncError("the engine failed", subject=code.name, reason=details)


def unreachable(path: str) -> HaSyncError:
    """Nobody answers at the socket: says why, as far as this process can see."""
    hint = "is `ha-sync serve` running?"
    if not os.path.exists(path):
        reason = "there is no such socket"
    elif not os.access(path, os.R_OK | os.W_OK):
        reason, hint = "permission denied", "run it as the user or group of the engine"
    else:
        reason = "nobody answers"
    return OperatorNeeded("cannot reach the engine at", subject=path, reason=reason, hint=hint)


def _stated_exit_code(error: grpc.Call) -> int | None:
    for key, value in error.trailing_metadata() or ():
        if key == EXIT_CODE_KEY and str(value).isdigit():
            return int(value)
    return None
