"""Where a dataset's journal stands, and what a subscriber's position means to the Active.

A position compares only within one epoch and one incarnation: then by its sequence. Sequences count from 1; 0 means
"nothing yet". Pure.
"""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass
from typing import NewType

Epoch = NewType("Epoch", int)
"""Grows at every take-over; the fencing token on every replicated byte."""

Sequence = NewType("Sequence", int)
"""Per dataset and incarnation; grows by at least one per change noticed, never reused."""

Incarnation = NewType("Incarnation", bytes)
"""16 bytes, new at every promotion, demotion, restore and loss of the catalogue."""

NO_INCARNATION = Incarnation(b"")


def new_incarnation() -> Incarnation:
    """A fresh random incarnation."""
    return Incarnation(uuid.uuid4().bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """How far a dataset has got."""

    epoch: Epoch
    incarnation: Incarnation
    sequence: Sequence

    def __post_init__(self) -> None:
        assert self.epoch >= 0, self.epoch
        assert self.sequence >= 0, self.sequence
        assert len(self.incarnation) in {0, 16}, self.incarnation

    def resumes(self, other: Position) -> bool:
        """Whether ``other`` counts in the same journal as this one."""
        return self.epoch == other.epoch and self.incarnation == other.incarnation


NOWHERE = Position(epoch=Epoch(0), incarnation=NO_INCARNATION, sequence=Sequence(0))
"""The position of a Standby that never received anything."""


class Answer(enum.Enum):
    """What the Active says to a subscriber."""

    RESUME = "resume"  # same journal: go on after the applied sequence
    COMPARE = "compare"  # other journal, gap or ahead of me: compare, then send what differs


def answer_to(*, applied: Position, captured: Position, oldest_kept: Sequence) -> Answer:
    """Decides between resume and compare.

    ``captured`` is the newest position of the Active; ``oldest_kept`` the lowest sequence after which the Active can
    still name every change (0 when its journal is complete). A subscriber ahead of the Active has seen something the
    Active no longer has: that needs a compare too.
    """
    if not captured.resumes(applied):
        return Answer.COMPARE
    if applied.sequence > captured.sequence or applied.sequence < oldest_kept:
        return Answer.COMPARE
    return Answer.RESUME
