"""Which pair this node is of: read from ``<state_dir>/identity/``, which the engine's pairing makes and owns.

Only two files of it concern the agent: ``identity.json`` (ids) and ``heartbeat.key`` (32 bytes). A directory that is
not there yet is waited for: the node is not paired. One that is there and cannot be used needs a person. Blocking.
"""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from dataclasses import dataclass, field

from ha_agent.errors import OperatorNeeded
from ha_agent.heartbeat.seal import HeartbeatKey, key_of

LOOK_EVERY_S = 1.0
BYTES_MAX = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Membership:
    """This node in its pair."""

    cluster_id: uuid.UUID
    node_id: str
    key: HeartbeatKey = field(repr=False)


def membership(state_dir: str) -> Membership | None:
    """None: this node is not paired. Raises OperatorNeeded."""
    directory = os.path.join(state_dir, "identity")
    if not os.path.isdir(directory):
        return None
    try:
        facts = json.loads(_content(directory, "identity.json"))
        return Membership(
            cluster_id=uuid.UUID(facts["cluster_id"]),
            node_id=str(facts["node_id"]),
            key=key_of(_content(directory, "heartbeat.key")),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as broken:
        raise OperatorNeeded(
            "cannot use the identity in",
            subject=directory,
            reason=f"{type(broken).__name__}: {broken}",
            hint="restore it from a copy, or remove it and join again",
        ) from broken


async def await_membership(state_dir: str) -> Membership:
    """Waits until this node is paired. Raises OperatorNeeded."""
    while (found := await asyncio.to_thread(membership, state_dir)) is None:
        await asyncio.sleep(LOOK_EVERY_S)
    return found


def _content(directory: str, name: str) -> bytes:
    with open(os.path.join(directory, name), "rb") as file:
        return file.read(BYTES_MAX)
