"""What the driver must do, in the order given, and which event answers it.

An action whose answer is an event may take its time; nothing depends on it before the answer came. Addresses carry the
time after which they must not be touched: the driver looks at its clock right before the call (late: do not call,
answer ``AddressFailed``) and right after it (late: delete, answer ``AddressGone``).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from ha_agent.arbiter.state import Book
from ha_agent.arbiter.values import Cause, Epoch, Mac, Phase, Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreBook:
    """Write the book so that it survives a power cut. Answer: ``BookStored`` with this book, or ``BookFailed``.

    One write at a time, in order; of several that wait only the newest need be written. Failed: alarm, and the newest
    is tried again with the next action of this kind.
    """

    book: Book


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Ask the LAN for the holder of the cluster IP (ARP, ND). Answer: ``ProbeDone`` with the same ``asked_at``."""

    asked_at: float
    count: int  # questions, 100 ms apart
    wait_s: float  # after each question


@dataclass(frozen=True, slots=True, kw_only=True)
class AddAddress:
    """Add the address as a kernel lease. Answer: ``AddressAdded``, ``AddressFailed`` or, if late, ``AddressGone``.

    The lifetime is ``cluster_ip.plan.valid_s(valid_until - now)``.
    """

    epoch: Epoch
    valid_until: float
    not_after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RenewAddress:
    """Replace the lease. Look first that the address is there (a replace would add a lapsed one again).

    No answer when it worked; ``AddressGone`` when the address was absent or the call late, ``AddressFailed`` else.
    """

    valid_until: float  # also: not after


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveAddress:
    """Delete the address. Answer: ``AddressGone`` once it is certain; nothing when it failed (asked again)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Announce:
    """Gratuitous ARP and unsolicited neighbour advertisements: so many at once, and again after 1 s and 3 s."""

    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SendBeat:
    """Send a beat on every path now, made with ``beat_of`` from the state that came with this action."""


class EngineRole(enum.Enum):
    """What the engine is told to be."""

    ACTIVE = "active"
    STANDBY = "standby"


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectEngine:
    """The engine's role and epoch. Repeated to an engine that attaches. It stores the epoch and refuses lower ones."""

    role: EngineRole
    epoch: Epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class StartServices:
    """Finish what the dead node left, then run the start hooks in order. Once per epoch."""

    epoch: Epoch
    cause: Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class StopServices:
    """Run the stop hooks. On a node that holds nothing any more; failures are alarms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiesce:
    """Run the stop hooks, see that nobody writes, capture the rest. Answer: ``Quiesced`` or ``QuiesceFailed``."""

    deadline: float
    end_backup: bool  # a full backup that runs is ended, and the log says so


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumeServices:
    """The hand-over was given up: end the quiesce, run the start hooks again. The node never stopped being Active."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """A request of an administrator cannot be done; tell him why."""

    reason: Reason
    peer_reasons: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A row of the table was taken: for the logs. Always the first action of its step."""

    row: str
    why: str
    before: Phase
    after: Phase
    cause: Cause
    epoch: Epoch


class Subject(enum.Enum):
    """What an alarm is about."""

    CONTRADICTION = "contradiction"
    FOREIGN_HOLDER = "foreign_holder"
    HELD = "held"
    NOT_READY = "not_ready"  # took over although not ready (policy availability)
    ADDRESS_CALL = "address_call"
    STORE = "store"
    FAULT_NOT_SWITCHED = "fault_not_switched"
    DUAL_ACTIVE = "dual_active"
    NOBODY_ELIGIBLE = "nobody_eligible"  # both nodes up, neither has sound data


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An alarm is raised (``raised``) or cleared. Once per edge."""

    subject: Subject
    raised: bool
    reasons: tuple[Reason, ...] = ()
    mac: Mac | None = None


Deed = (
    AddAddress | RenewAddress | RemoveAddress | Announce | DirectEngine | StartServices | StopServices | Quiesce
    | ResumeServices
)  # fmt: skip
"""What changes the world outside of the agent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WouldDo:
    """Observe-only: log the deed, do nothing, and answer with the event of its success at once."""

    deed: Deed


Action = Deed | WouldDo | StoreBook | Probe | SendBeat | Refused | Moved | Alarm
