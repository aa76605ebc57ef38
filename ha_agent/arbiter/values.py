"""The words of the arbiter: epochs, phases, reasons, and the beat that a node says to its peer.

Everything is frozen and hashable. Durations in seconds; times are monotonic seconds of the node that states them and
never travel: a beat holds ages and what is left, not times.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import NewType

Epoch = NewType("Epoch", int)
"""Grows at every take-over. The Primary takes even numbers, the Secondary odd ones: two nodes never take the same."""

NO_EPOCH = Epoch(0)

Digest = NewType("Digest", str)
"""Of the positions of all datasets; equal digests mean equal data."""

Mac = NewType("Mac", str)


class Station(enum.Enum):
    """The fixed identity of a node; decides a tied cold start and the parity of its epochs, nothing else."""

    PRIMARY = "primary"
    SECONDARY = "secondary"

    def next_above(self, epoch: Epoch) -> Epoch:
        """The lowest epoch of this station above ``epoch``."""
        parity = 0 if self is Station.PRIMARY else 1
        return Epoch(epoch + 1 if (epoch + 1) % 2 == parity else epoch + 2)


class Phase(enum.Enum):
    """What this node is doing; the rows of the table lead from one to another."""

    STARTING = "starting"  # booted; looks for an Active or for the other node
    STANDBY = "standby"  # follows the Active, or lost it
    FENCED = "fenced"  # was Active, let go of the address; only an election or silence brings it back
    CANDIDATE = "candidate"  # has reserved an epoch and asks the peer for its consent
    CLAIMING = "claiming"  # may take over: probe and durable epoch are awaited
    ADDING = "adding"  # the address was ordered from the kernel
    ACTIVE = "active"  # holds the cluster IP, the PBX runs
    QUIESCING = "quiescing"  # Active whose PBX is being stopped for a hand-over
    OFFERING = "offering"  # Active that offers the role and awaits the acceptance
    RELEASING = "releasing"  # accepted: drops the address, then consents; no way back
    LEFT = "left"  # stopped by its administrator, holds nothing


WAITING = frozenset({Phase.STARTING, Phase.STANDBY, Phase.FENCED})
SERVING = frozenset({Phase.ACTIVE, Phase.QUIESCING, Phase.OFFERING})
TAKING = frozenset({Phase.CANDIDATE, Phase.CLAIMING, Phase.ADDING})


class Policy(enum.Enum):
    """What a Standby that is not ready does when the Active is proven dead. Neither lets unsound data serve."""

    AVAILABILITY = "availability"
    CONSISTENCY = "consistency"


class Permit(enum.Enum):
    """What allows a claim."""

    NONE = "none"
    SILENCE = "silence"  # nobody is heard, nobody answers for the address
    CONSENT = "consent"  # the peer promised my epoch and holds nothing
    FORCED = "forced"  # an administrator said so


class Cause(enum.Enum):
    """Why a switch happens; stands in the switch log."""

    NONE = "none"
    SILENCE = "silence"
    REBOOT = "reboot"
    ELECTION = "election"
    PLANNED = "planned"
    FAULT = "fault"
    LINK = "link"
    FORCED = "forced"
    RESUMED = "resumed"

    @property
    def automatic(self) -> bool:
        """Whether nobody asked for it."""
        return self in {Cause.SILENCE, Cause.REBOOT, Cause.ELECTION, Cause.FAULT, Cause.LINK}


class Reason(enum.Enum):
    """Why something is refused, blocked or given up. Sentences are made where they are shown."""

    NOT_ACTIVE = "not_active"
    PEER_SILENT = "peer_silent"
    PEER_HEARD = "peer_heard"
    PEER_NOT_READY = "peer_not_ready"
    PEER_REFUSED = "peer_refused"
    PEER_LOST = "peer_lost"
    PEER_LINK_DOWN = "peer_link_down"
    BACKUP_RUNNING = "backup_running"
    BUSY = "busy"
    DEADLINE = "deadline"
    QUIESCE_FAILED = "quiesce_failed"
    CANCELLED = "cancelled"
    LINK_DOWN = "link_down"
    GATEWAY_UNSEEN = "gateway_unseen"
    ENGINE_GONE = "engine_gone"
    UNSOUND = "unsound"  # inconsistent or never synced
    BEHIND = "behind"  # positions differ, or data of another epoch
    FAULTY = "faulty"
    STORE_FAILED = "store_failed"
    ADDRESS_FAILED = "address_failed"
    SAME_STATION = "same_station"
    SETTINGS_DIFFER = "settings_differ"
    MODEL_DIFFERS = "model_differs"
    FIRMWARE_DIFFERS = "firmware_differs"  # and no upgrade window is open
    SCHEMA_APART = "schema_apart"  # firmware whose schema ranges do not overlap
    OBSERVING = "observing"  # one of the nodes only observes
    HELD = "held"
    MAINTENANCE = "maintenance"
    FOREIGN_HOLDER = "foreign_holder"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """What must fit between the two nodes of a pair."""

    station: Station
    settings_digest: str = ""
    model: str = ""
    schema: tuple[int, int] = (1, 1)  # lowest and highest data layout that this firmware reads
    observing: bool = False
    firmware: str = ""  # a digest of what is told; empty: not known, fits all
    upgrading: bool = False  # an administrator opened the upgrade window on this node


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """An Active's offer of its role; the serial tells one attempt from another."""

    serial: int
    digest: Digest  # final positions; compared unless lossy
    lossy: bool  # a fault or an administrator: positions need not be equal
    forced: bool  # readiness is not asked for
    cause: Cause


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A Standby's answer to an offer that it cannot take."""

    serial: int
    reason: Reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Switched:
    """An automatic switch, known by its epoch on both nodes."""

    epoch: Epoch
    at: float  # in a beat: age in seconds; in the state: time of this node


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """What the arbiter says to its peer, many times a second. Envelope, paths and keys are the heartbeat's."""

    identity: Identity
    phase: Phase
    holds: bool  # the address is, or may be, on this node
    promised: Epoch  # durable
    epoch: Epoch  # the one served in; 0 while not serving
    data: Epoch  # of this node's positions
    sound: bool  # consistent, and synced at least once
    progress: int  # changes within ``data``; comparable between equal data epochs only
    informed: bool  # progress and soundness are known, or were waited for long enough
    able: bool  # could serve: link up, sound data, settings fit, nobody else answers for the address
    lan_seen: bool  # the gateway answers; true where there is none
    ready: bool
    reasons: tuple[Reason, ...]  # why not ready
    eager: bool  # takes over from a restarted Active at once
    health: int  # 0 is best: number of faults
    link_up: bool
    candidate: Epoch = NO_EPOCH
    candidate_forced: bool = False
    consent: Epoch = NO_EPOCH  # "serve in this epoch: I hold nothing and promised it"
    token: int = 0  # serial of the offer that this consent fulfils: the *go* of a hand-over
    offer: Offer | None = None
    accepts: int = 0  # serial of the offer for which ``candidate`` is meant
    refuses: Refusal | None = None
    switches: tuple[Switched, ...] = ()
    released: Epoch = NO_EPOCH  # automatic switches up to here do not count any more
    maintenance_left_s: float = 0.0
    maintenance_serial: int = 0

    @property
    def serves(self) -> bool:
        """Whether the sender holds the role of the Active."""
        return self.phase in SERVING

    @property
    def claims(self) -> bool:
        """Whether the sender is about to hold the address, or about to let it go."""
        return self.phase in CLAIMS


CLAIMS = frozenset({Phase.CLAIMING, Phase.ADDING, Phase.RELEASING})
