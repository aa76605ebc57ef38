"""The full backup's view of one dataset: the examiner on the Active, the witness on the Standby, what they found.

An *examiner* compares its dataset with the other node's by asking the *witness* there. Questions and answers are bytes
that only these two understand (protobuf messages of their kind), so the channel between them knows nothing of rows or
files. A question is stateless: it may be asked again after a disconnect, and a run goes on where its cursor stands.

What differs is looked at again after a barrier before it counts, so that what is merely in flight is never a finding.
Repair goes through the live stream alone: the source sends the object again, and the examiner asks once more. Pure:
only types. Sizes in bytes, wall-clock times in seconds since 1970.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from ha_sync.core.dataset import DatasetName


class Depth(enum.Enum):
    """How far a run looks."""

    CONTENT = "content"  # every byte that is on disk now, on both nodes
    METADATA = "metadata"  # sizes, times, modes; content where these differ


class Fault(enum.Enum):
    """What was wrong with one object."""

    MISSING = "missing"  # the Active has it, the Standby had not
    SURPLUS = "surplus"  # only the Standby had it
    CONTENT = "content"  # both have it, the bytes or values differ
    METADATA = "metadata"  # mode, owner, times or attributes differ
    ROTTEN = "rotten"  # content changed under unchanged size and times: no program wrote that
    SCHEMA = "schema"  # tables, indices, triggers, views, user_version or sequences differ
    GUARD = "guard"  # a capture trigger or a guard of ours was gone
    DAMAGED = "damaged"  # SQLite's integrity_check found the copy broken
    UNVERIFIED = "unverified"  # could not be looked at without disturbing its writer, or would not hold still


class Side(enum.Enum):
    """Where it was wrong."""

    ACTIVE = "active"
    STANDBY = "standby"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One object that was not as it should be."""

    dataset: DatasetName
    subject: str  # for people: a path, or table and key
    fault: Fault
    side: Side
    repaired: bool = False  # it was sent again, and a second look found both equal
    equal_until_unix_s: float | None = None  # when both nodes last proved equal there; None: never
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """What one dataset's examination came to."""

    objects: int  # files, rows
    content_bytes: int  # read on the Active
    differing: int
    repaired: int
    unverified: int
    in_motion: int = 0  # was being written at every look: no fault


class Peer(Protocol):
    """The other node's witness of one dataset."""

    def ask(self, question: bytes) -> AsyncIterator[bytes]:
        """The answer in chunks of at most 1 MiB. Raises ``Retryable`` when the peer is gone before its end."""


class Witness(Protocol):
    """Answers for one dataset on the Standby."""

    def answer(self, question: bytes) -> Iterator[bytes]:
        """Blocking, in a thread that nothing else waits for. Raises ``ProtocolFault`` for what it does not know."""


@runtime_checkable
class Resting(Protocol):
    """A witness that keeps something open from one question to the next."""

    def rest(self) -> None:
        """No question has come for a while: lets go. Called in the thread of ``answer``."""


class Run(Protocol):
    """What an examiner may ask of the run it is part of."""

    @property
    def depth(self) -> Depth:
        """How far to look."""

    async def spend(self, content_bytes: int) -> None:
        """Called before each piece of reading: waits while paused or above the rate; raises when cancelled."""

    def advance(self, *, objects: int, content_bytes: int) -> None:
        """So much more is done (progress)."""

    def expect(self, *, objects: int, content_bytes: int) -> None:
        """So much is there altogether in this dataset, as far as is known (progress)."""

    def found(self, finding: Finding) -> None:
        """One object was not as it should be."""

    async def replicated(self) -> None:
        """The barrier of this dataset: everything that was captured before is durable on the Standby."""

    def sending(self, *, objects: int, content_bytes: int) -> None:
        """So much more was sent that is looked at afterwards (progress)."""

    def in_phase(self, words: str) -> None:
        """What is being done now, for people; a run begins with ``comparing``."""

    @property
    def cursor(self) -> bytes:
        """Where an interrupted run had got in this dataset; empty: at its beginning."""

    async def reached(self, cursor: bytes) -> None:
        """Stored: after an interruption the run goes on from here."""

    @property
    def equal_until_unix_s(self) -> float | None:
        """When this dataset was last proved equal as a whole."""


class Examiner(Protocol):
    """Compares and repairs one dataset, on the Active."""

    async def examine(self, peer: Peer, run: Run) -> Examined:
        """Raises ``Retryable`` when the peer or the object is gone: the run goes on later from its cursor."""
