"""Talks to this node's engine and to its agent over their unix sockets.

Every failure becomes an ``HaSyncError``: a daemon puts the exit code of its own error into the trailing metadata
``ha-sync-exit-code``, and its sentence into the status' details, so that the command ends as the daemon meant it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import grpc

from ha_proto.agent.v1 import agent_pb2_grpc
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

LOOK_S: Final = 5.0
"""Deadline of a look at one daemon beside the other: the one that hangs must not hide the one that answers."""

LONG_S: Final = 900.0
"""Deadline of a call that changes databases or the role."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """Who is asked."""

    name: str
    command: str  # starts it
    stub: Callable[[grpc.Channel], Any]


ENGINE: Final = Daemon(name="engine", command="ha-sync serve", stub=control_pb2_grpc.ControlServiceStub)
AGENT: Final = Daemon(name="agent", command="ha-agent run", stub=agent_pb2_grpc.AgentServiceStub)


class UsageFault(HaSyncError):
    """The daemon does not know what was named, e.g. a dataset: its sentence says what there is."""

    exit_code = ConfigFault.exit_code


_CLASS_OF_EXIT_CODE: Final[dict[int, type[HaSyncError]]] = {
    UsageFault.exit_code: UsageFault,
    WrongState.exit_code: WrongState,
    RepairNeeded.exit_code: RepairNeeded,
    PeerUnreachable.exit_code: PeerUnreachable,
    Refused.exit_code: Refused,
}
assert Fenced.exit_code == Refused.exit_code


def control(path: str) -> AbstractContextManager[Any]:
    """The stub of ``ControlService`` at the socket ``path``; gRPC's errors leave as ours."""
    return talk(ENGINE, path)


def agent(path: str) -> AbstractContextManager[Any]:
    """The stub of ``AgentService`` at the socket ``path``; gRPC's errors leave as ours."""
    return talk(AGENT, path)


@contextmanager
def talk(daemon: Daemon, path: str) -> Iterator[Any]:
    """The stub of ``daemon``; gRPC's errors leave as ours."""
    options = (("grpc.enable_retries", 0), ("grpc.max_receive_message_length", 16 * 1024 * 1024))
    with grpc.insecure_channel(f"unix:{os.path.abspath(path)}", options=options) as channel:
        try:
            yield daemon.stub(channel)
        except grpc.RpcError as error:
            raise meaning_of(error, daemon, path) from error


def meaning_of(error: grpc.RpcError, daemon: Daemon, path: str) -> HaSyncError:
    """What the daemon, or its absence, said."""
    assert isinstance(error, grpc.Call), error
    code, details = error.code(), error.details() or ""
    stated = stated_exit_code(error)
    if stated is not None:
        return class_of(stated)(details or f"the {daemon.name} failed with {code.name}")
    match code:
        case grpc.StatusCode.UNAVAILABLE:
            return unreachable(daemon, path)
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Retryable(f"waiting for the {daemon.name}'s answer", subject=path, reason="it took too long")
        case grpc.StatusCode.UNIMPLEMENTED:
            return OperatorNeeded(
                f"asking the {daemon.name}", reason="it does not know this call", hint="restart it after an upgrade"
            )
        case _:
            return HaSyncError(f"the {daemon.name} failed", subject=code.name, reason=details)


def unreachable(daemon: Daemon, path: str) -> HaSyncError:
    """Nobody answers at the socket: says why, as far as this process can see."""
    hint = f"is `{daemon.command}` running?"
    if not os.path.exists(path):
        reason = "there is no such socket"
    elif not os.access(path, os.R_OK | os.W_OK):
        reason, hint = "permission denied", f"run it as the user or group of the {daemon.name}"
    else:
        reason = "nobody answers"
    return OperatorNeeded(f"cannot reach the {daemon.name} at", subject=path, reason=reason, hint=hint)


def stated_exit_code(call: grpc.Call) -> int | None:
    """What a daemon wrote into the trailing metadata, if it did."""
    for key, value in call.trailing_metadata() or ():
        if key == EXIT_CODE_KEY and str(value).isdigit():
            return int(value)
    return None


def class_of(exit_code: int) -> type[HaSyncError]:
    """The error that a command ends with; an unknown code is a plain failure."""
    return _CLASS_OF_EXIT_CODE.get(exit_code, HaSyncError)
