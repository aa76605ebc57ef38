"""All that the arbiter knows. Values only; seconds of the monotonic clock.

``State`` is copied once a step; the copy is filled in by the step and never changed after it was returned. All its
fields hold frozen values, so a shallow copy is a whole one.

Invariants: ``stored`` is durable, ``book`` is what was asked to become so; nobody acts on an epoch that is in ``book``
only. ``holds`` is true from the order to add the address until it is certain that it is gone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ha_agent.arbiter.values import (
    NO_EPOCH,
    Beat,
    Cause,
    Digest,
    Epoch,
    Identity,
    Mac,
    Offer,
    Permit,
    Phase,
    Policy,
    Reason,
    Refusal,
    Station,
    Switched,
)

NEVER = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the administrator decided, and the figures that follow from it."""

    identity: Identity
    timeout_s: float = 7.0  # T: so long a silence means that the peer is gone
    beat_s: float = 0.1
    gateway: bool = True  # one is configured, and it is not the cluster IP itself
    peer_mac: Mac | None = None  # of its interface of the cluster IP; None: whoever answers for it may be the peer
    policy: Policy = Policy.AVAILABILITY
    observe: bool = False
    by_hand: bool = False  # there is no address to ask for: a silence alone moves nothing to the other site
    drain_s: float = 30.0  # quiesce and drain of a planned switch
    boot_wait_s: float = 10.0
    boot_wait_unsure_s: float = 60.0  # was Standby, or went down uncleanly

    def __post_init__(self) -> None:
        assert 3.0 <= self.timeout_s <= 60.0, self.timeout_s
        assert 0.0 < self.beat_s <= 0.5, self.beat_s

    @property
    def lease_s(self) -> float:
        """Lifetime of the address from its evidence. T - 2: the kernel may be 1.9 s late (cluster_ip/plan.py)."""
        return max(1.0, self.timeout_s - 2.0)

    @property
    def late_s(self) -> float:
        """A gap between two events that shows that this process was not running."""
        return max(0.4, 3 * self.beat_s)

    @property
    def quiet_s(self) -> float:
        """A silence that is worth a look at the LAN: does somebody still answer for the cluster IP?"""
        return 3 * self.beat_s

    @property
    def station(self) -> Station:
        """Of this node."""
        return self.identity.station


RENEW_EVERY_S = 0.5
SETTLE_S = 0.5
"""After a stall: so long nothing is judged, sockets are emptied first."""

LAN_FRESH_S = 1.0
NEIGHBOUR_FRESH_S = 2.0
NEIGHBOUR_KNOWN_S = 60.0
LINK_SETTLE_S = 1.0
GATEWAY_WAIT_S = 3.0
STAGGER_S = 2.0
"""Two that wait and cannot hear each other: the second first sees whether the first serves. One step of it."""

PROBE_EVERY_S = 0.5
PROBE_FRESH_S = 0.8
REMOVE_EVERY_S = 0.2
STORE_EVERY_S = 1.0
ADD_WAIT_S = 1.0
BLOCKED_S = 1.0
RETRY_S = 2.0
CURRENT_GRACE_S = 2.0
"""A stream that is dialled again, and one that ended just before its Active fell silent, make nobody unready."""

HOLD_WINDOW_S = 900.0
HOLD_AFTER = 2
SWITCHES_KEPT = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Book:
    """What survives a power cut. Each number is durable before anyone acts on it."""

    promised: Epoch = NO_EPOCH  # highest seen or reserved
    served: Epoch = NO_EPOCH  # the last one in which this node held the cluster IP, or was about to
    data: Epoch = NO_EPOCH  # of this node's positions
    sound: bool = False  # consistent and synced at least once; `pair init` sets it on the node in service
    active: bool = False  # held the role when this was written
    single: bool = False  # Active without a peer: carrier suffices as evidence
    clean: bool = False  # the agent was stopped, it did not die

    def __post_init__(self) -> None:
        assert self.served <= self.promised, self


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A fault of this node that the health probes are sure of."""

    cause: str  # "process:asterisk", "fxo:3"
    switches: bool  # its switch is on, and its probe was good before


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """The engine's report. ``progress`` compares between equal ``data`` only."""

    data: Epoch
    sound: bool
    current: bool  # as a Standby: every stream is connected and none is in a full sync
    progress: int
    digest: Digest
    backup: bool = False
    promised: Epoch = NO_EPOCH  # highest that it has stored: it refuses to serve below


@dataclass(kw_only=True)
class State:
    """One node's arbiter. Made by ``begin``, then only by ``step``."""

    settings: Settings
    book: Book
    stored: Book
    boot_at: float
    boot_wait_s: float
    now: float
    serial: int  # of the last offer; begins with the boot number, so it is never used twice

    phase: Phase = Phase.STARTING
    since: float = 0.0
    cause: Cause = Cause.NONE
    epoch: Epoch = NO_EPOCH  # served in, or reserved as a candidate
    followed: Epoch = NO_EPOCH  # the newest one in which anybody is known to have served
    peer_held: bool = False  # it was the peer who did
    directed: Epoch = NO_EPOCH  # the epoch that the engine was told to follow

    judge_after: float = NEVER  # the process stalled: no silence is judged before
    store_failed: bool = False
    store_asked: float = NEVER

    holds: bool = False
    lease_until: float = NEVER
    renewed_at: float = NEVER
    removed_at: float = NEVER
    announced_at: float = NEVER

    link_up: bool = False
    link_since: float = NEVER  # up since then
    link_lost_at: float = NEVER
    gateway_at: float = NEVER  # newest question that was answered
    neighbour_at: float = NEVER
    lan_since: float = NEVER  # the LAN was seen again after I had been cut off, or for the first time

    probe_asked: float = NEVER
    probe_clear: float = NEVER  # asked_at of the last probe that ended, if nobody answered it
    probe_cleared_at: float = NEVER  # and when it ended
    peer_answered_at: float = NEVER  # the peer answered for the cluster IP, so late that it renews its lease
    blocked_until: float = NEVER
    foreign: Mac | None = None

    peer: Beat | None = None
    heard_at: float = NEVER
    echoed_at: float = NEVER  # when I sent the newest of my beats that the peer is known to have heard
    contradictions: tuple[Reason, ...] = ()
    peer_identity: Identity | None = None

    permit: Permit = Permit.NONE
    permit_until: float = NEVER
    claim_evidence: float = NEVER  # of a consent: when I sent the beat that the consenting beat echoes
    forced: bool = False
    accept_dual: bool = False
    consent: Epoch = NO_EPOCH
    token: int = 0
    accepts: int = 0
    refuses: Refusal | None = None

    offer: Offer | None = None
    offer_deadline: float = NEVER
    lossy: bool = False
    quiesced: bool = False  # the services were told to stop
    granted: Epoch = NO_EPOCH  # RELEASING: the epoch of the peer that will be consented to
    retry_at: float = NEVER

    engine: Engine | None = None
    current_at: float = NEVER  # the engine last said that it is in step with the Active
    served_at: float = NEVER  # the peer was last heard to serve
    faults: frozenset[Fault] = frozenset()
    spent: frozenset[str] = frozenset()  # causes that switched once and were not seen good since

    switches: tuple[Switched, ...] = ()
    released: Epoch = NO_EPOCH
    maintenance_until: float = NEVER
    maintenance_serial: int = 0

    raised: frozenset[str] = field(default_factory=frozenset)  # alarms that stand

    def copy(self) -> State:
        """A copy that the step may fill in."""
        twin = object.__new__(State)
        twin.__dict__.update(self.__dict__)
        return twin
