"""A dataset's two ends: the source on the Active and the sink on the Standby, as the stream sees them.

The stream knows nothing of rows or files: it moves frames between a ``Session`` of a source and a ``Sink``. Every kind
of dataset (``rows``, ``pages``, ``tree``) implements these three. All methods are called from the engine's event loop;
implementations move blocking work to an executor of their own. Pure: only types.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import NewType, Protocol

from ha_sync.core.frame import Frame
from ha_sync.core.lag import LagSummary
from ha_sync.core.position import Answer, Epoch, Position

DatasetName = NewType("DatasetName", str)


class Role(enum.Enum):
    """What this node's engine does now."""

    ACTIVE = "active"
    STANDBY = "standby"


class Priority(enum.IntEnum):
    """Lower goes first. The names are those of the settings."""

    CONFIG = 0
    CDR = 1
    VOICEMAIL = 2
    RECORDINGS = 3
    STORAGE = 4  # of `[[storage]]` alone


class DatasetState(enum.Enum):
    """How a dataset is doing; shown with a reason."""

    STARTING = "starting"  # first scan, installation of triggers
    SYNCING = "syncing"  # a full sync (compare) is going on
    STREAMING = "streaming"  # changes flow as they happen
    WAITING = "waiting"  # no peer, or the object does not exist yet
    DEGRADED = "degraded"  # works, but not as it should (copies rejected, too large for pages)
    HALTED = "halted"  # a guard stopped it: `ha-sync resume`
    FAILED = "failed"  # cannot work until somebody mends what the reason names


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReport:
    """What `status` shows of one dataset on this node."""

    state: DatasetState
    reason: str = ""
    method: str = ""  # rows | pages | tree, and why, e.g. "pages: rollback journal, ..."
    position: Position  # captured on the Active, applied on the Standby
    acknowledged: Position | None = None  # Active only: durable on the Standby
    backlog: int = 0  # changes noticed and not yet durable on the Standby (the exposure)
    consistent: bool = True  # Standby: a state that the Active once had
    absent: bool = False  # Active: there is nothing yet that could be captured
    lag: LagSummary | None = None
    counts: tuple[tuple[str, int], ...] = ()  # e.g. ("skipped_special", 2), ("copies_rejected", 20)


Report = Callable[[str, str, dict[str, object]], None]
"""``report(severity, what, fields)``: hands an event (info | warning | error) to the event log and the log file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """One thing that promotion finished for the dead node (DESIGN 7a)."""

    what: str  # e.g. "recording header repaired"
    subject: str  # path or table
    detail: str = ""


class Session(Protocol):
    """One subscriber's stream from a source. At most one session of a source is alive; a new one ends the old one."""

    @property
    def answer(self) -> Answer:
        """Resume, or compare."""

    @property
    def method(self) -> str:
        """How the source captures: ``rows``, ``pages`` or ``tree``; told to the sink with the answer."""

    async def compare(self, inventory: AsyncIterator[bytes]) -> None:
        """Takes the Standby's inventory (chunks as its sink made them); afterwards ``frames`` sends what differs."""

    def frames(self) -> AsyncIterator[Frame]:
        """Yields frames for ever, waiting where nothing changed. Groups are whole: never left open between waits."""

    def acknowledge(self, position: Position) -> None:
        """Everything up to ``position`` is durable on the Standby."""

    def need(self, paths: tuple[bytes, ...]) -> None:
        """The Standby cannot use or has lost these objects: forget what it has of them and send them whole."""

    def partials(self, partials: tuple[bytes, ...]) -> None:
        """The Standby has these, as its sink said: before anything is sent."""

    async def close(self) -> None:
        """Ends the session; what was sent and not acknowledged will be sent again to the next one."""


class Source(Protocol):
    """The Active's end of a dataset."""

    async def open(self, epoch: Epoch) -> None:
        """Starts capture. Does not fail because an object is missing or unfit: that is a state with a reason."""

    async def subscribe(self, applied: Position) -> Session:
        """Begins a session for a Standby that has ``applied``."""

    def report(self) -> DatasetReport:
        """How it is doing; cheap, no I/O."""

    async def settled(self) -> Position:
        """Notices everything that was durable before the call, and returns the position that covers it (barrier)."""

    async def resend(self, objects: tuple[bytes, ...]) -> None:
        """The full backup found that the Standby lacks these: forgets what it has of them and sends them again.

        An object that is not here is deleted there. What an object is, is the kind's own affair: a path, a row's key.
        """

    async def resume(self, *, accept_deletes: bool) -> None:
        """An operator released a halted dataset."""

    async def detach(self) -> tuple[str, ...]:
        """Removes every trace from the replicated object; returns what was removed."""

    async def close(self) -> None:
        """Stops capture. Triggers stay: changes made while no engine runs must not be lost."""


class Sink(Protocol):
    """The Standby's end of a dataset."""

    async def open(self, epoch: Epoch, *, active_at: str) -> None:
        """Recovers what a crash left half done and installs the guards; ``active_at`` is named in their message."""

    @property
    def applied(self) -> Position:
        """What is durable here."""

    async def partials(self) -> tuple[bytes, ...]:
        """What came in parts and is not whole here, so that no part of it need come twice; empty for most kinds."""

    async def begin(self, answer: Answer, method: str) -> None:
        """A stream (re)starts: drops a group that was received in part. ``method`` as the session says it."""

    def inventory(self) -> AsyncIterator[bytes]:
        """What this node has, for a compare, in chunks of at most FRAME_PAYLOAD_MAX, sorted, bounded in memory."""

    async def receive(self, frame: Frame) -> None:
        """Takes one frame. Returns when its memory no longer counts (staged or handed to a bounded queue).

        Raises ``Retryable`` (disk full: nothing is lost, try again), ``RepairNeeded`` (the stream must restart with
        a resend, after ``needs`` was asked), ``ProtocolFault``, ``Fenced``, ``OperatorNeeded``.
        """

    def on_durable(self, callback: Callable[[Position], None]) -> None:
        """``callback`` is called in the event loop whenever ``applied`` has moved."""

    def on_failure(self, callback: Callable[[Exception], None]) -> None:
        """``callback`` is called in the event loop when a group that was taken could not be made durable."""

    def on_need(self, callback: Callable[[tuple[bytes, ...]], None]) -> None:
        """``callback`` is called in the event loop when objects must be sent again whole."""

    def report(self) -> DatasetReport:
        """How it is doing; cheap, no I/O."""

    async def promote(self) -> tuple[Finished, ...]:
        """This node becomes Active: removes the guards and finishes what the dead node left half done."""

    async def detach(self) -> tuple[str, ...]:
        """Removes every trace from the replicated object; returns what was removed."""

    async def resume(self, *, accept_deletes: bool) -> None:
        """An operator released a halted dataset."""

    async def close(self) -> None:
        """Stops; guards stay in place."""
