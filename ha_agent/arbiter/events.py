"""What the driver tells the arbiter. ``now`` is this node's monotonic clock when the event is handed over.

Order matters: the driver hands over events one at a time, in the order in which it learned of them, and performs the
actions of one before it hands over the next. After a stall it empties its sockets before the next ``Tick``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ha_agent.arbiter.state import Book, Engine, Fault
from ha_agent.arbiter.values import Beat, Digest, Mac


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Time passes: every beat interval, also when nothing happens. Missing ticks count as lateness."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BeatHeard:
    """A beat that the detector accepted as life: right key and peer, newer than all before, echoes my current boot."""

    now: float
    beat: Beat
    echoed_at: float  # when I sent the newest of my beats that it echoes, on whatever path


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkChanged:
    """Carrier and operational state of the interface of the cluster IP."""

    now: float
    up: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LanAnswered:
    """The gateway, or another known LAN neighbour that is not the peer, answered ARP or ND."""

    now: float
    asked_at: float  # when the question left: an answer read late is old evidence
    gateway: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeDone:
    """Answer to ``Probe``."""

    now: float
    asked_at: float  # as in the action
    answered_by: Mac | None  # None: nobody; of several that answered the peer, if it is one of them
    sent: bool = True  # False: the questions could not be sent, which proves nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressAdded:
    """Answer to ``AddAddress``: the kernel has the address, and the call was not late."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressFailed:
    """Answer to ``AddAddress`` or ``RenewAddress``: the kernel refused, or the call was late and not made."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressGone:
    """The address is not on this node: answer to ``RemoveAddress``, or seen in a netlink event or by looking."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignSeen:
    """Somebody else announces or answers for the cluster IP while this node holds it."""

    now: float
    mac: Mac


@dataclass(frozen=True, slots=True, kw_only=True)
class BookStored:
    """Answer to ``StoreBook``: this book is durable (file and directory synced)."""

    now: float
    book: Book


@dataclass(frozen=True, slots=True, kw_only=True)
class BookFailed:
    """Answer to ``StoreBook``: not durable."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReported:
    """The engine's report, at each change and at least every second."""

    now: float
    engine: Engine


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLost:
    """The engine's call ended, or it said nothing for its deadline."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReported:
    """All faults of this node at present, as the probes judge after fall and rise."""

    now: float
    faults: frozenset[Fault]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiesced:
    """Answer to ``Quiesce``: the PBX is stopped, nobody writes, everything is captured."""

    now: float
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class QuiesceFailed:
    """Answer to ``Quiesce``: something still writes after the deadline."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchRequested:
    """An administrator wants the roles to change. Answered by ``Refused`` or by a ``Moved`` with this cause."""

    now: float
    force: bool = False
    accept_data_loss: bool = False
    accept_dual: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchCancelled:
    """An administrator gives up a hand-over that has not gone out."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MaintenanceSet:
    """No automatic switch for so long; 0 ends it."""

    now: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowSet:
    """An administrator begins or ends an upgrade: firmware may differ, or not."""

    now: float
    open: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldReleased:
    """An administrator lets the pair switch by itself again."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SingleDeclared:
    """An administrator says that the peer is gone for good."""

    now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRequested:
    """The agent is being stopped. The driver goes on until the address is gone and three beats have said so."""

    now: float


Event = (
    Tick
    | BeatHeard
    | LinkChanged
    | LanAnswered
    | ProbeDone
    | AddressAdded
    | AddressFailed
    | AddressGone
    | ForeignSeen
    | BookStored
    | BookFailed
    | EngineReported
    | EngineLost
    | HealthReported
    | Quiesced
    | QuiesceFailed
    | SwitchRequested
    | SwitchCancelled
    | MaintenanceSet
    | WindowSet
    | HoldReleased
    | SingleDeclared
    | StopRequested
)
