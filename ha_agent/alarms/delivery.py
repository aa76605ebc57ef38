"""One delivery to one target: what is asked of the process that does it (``deliver``), and what came of it.

A process of its own for each: its end is certain at its deadline, whatever the network does; the agent's loop shares no
interpreter with a TLS handshake; and what TLS and mail need of memory goes with it (ADR 0013). Both ways JSON, the
order through standard input: nothing of it stands in the process' arguments.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ha_agent.commands import Commands, Ending
from ha_agent.settings.values import Security, Severity, Target, TargetKind

PROGRAM = (sys.executable, "-P", "-m", "ha_agent.alarms.deliver")
START_S = 10.0  # what an interpreter may take to start on a busy machine
REASON_MAX = 400


class Outcome(enum.Enum):
    """What came of it."""

    SENT = "sent"
    LATER = "later"  # nobody answers, or somebody must mend something first
    REFUSED = "refused"  # this very message: another may well be taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivered:
    """The answer."""

    outcome: Outcome
    reason: str = ""  # why not; with SENT what the other end said of a part of it
    asked_s: float = 0.0  # come again after so long


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One message to one target."""

    target: Target
    id: str  # the same in every repetition
    document: Mapping[str, Any]


async def deliver(commands: Commands, order: Order) -> Delivered:
    """Never raises for what goes wrong out there."""
    given = json.dumps(to_plain(order)).encode()
    try:
        finished = await commands.run(PROGRAM, deadline_s=START_S + order.target.deadline_s, given=given)
    except OSError as failed:  # this machine has no descriptor left
        return Delivered(outcome=Outcome.LATER, reason=str(failed))
    if finished.ending is Ending.OVERRUN:
        return Delivered(outcome=Outcome.LATER, reason=f"no answer within {order.target.deadline_s:g} seconds")
    try:
        answer = json.loads(finished.output.splitlines()[-1])
        return Delivered(
            outcome=Outcome(answer["outcome"]),
            reason=str(answer["reason"])[:REASON_MAX],
            asked_s=float(answer["asked_s"]),
        )
    except (ValueError, KeyError, IndexError, TypeError):
        return Delivered(outcome=Outcome.LATER, reason=f"{finished.reason}: {finished.output[-REASON_MAX:]}")


def to_plain(order: Order) -> dict[str, Any]:
    """For the pipe; ``from_plain`` is its inverse."""
    target = asdict(order.target) | {
        "kind": order.target.kind.value,
        "severity": order.target.severity.value,
        "security": order.target.security.value,
    }
    return {"target": target, "id": order.id, "document": dict(order.document)}


def from_plain(plain: Mapping[str, Any]) -> Order:
    """What ``to_plain`` made."""
    told = dict(plain["target"])
    told["kind"], told["severity"] = TargetKind(told["kind"]), Severity(told["severity"])
    told["security"], told["recipients"] = Security(told["security"]), tuple(told["recipients"])
    return Order(target=Target(**told), id=plain["id"], document=plain["document"])
