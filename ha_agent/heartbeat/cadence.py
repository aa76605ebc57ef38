"""When the next tick is, and with it the next beat. Pure; monotonic seconds.

Invariants: from one tick to the next it is never longer than the interval (a process that is late ticks at once), and
never shorter than the interval less ``STEP_S``.

One of the two nodes follows: it ticks a little sooner, again and again, until its ticks come when the peer's beats do.
A process that was asleep for 50 ms finds its caches cold: the same work then takes twenty times as long (measured), so
two wake-ups side by side cost half of two apart, on both nodes. The other one never moves, else each would chase the
other. Which of them is nobody's business but ours: a peer of another version that does not follow is no worse off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BEFORE_S, AFTER_S = 0.005, 0.002
"""A tick so shortly before or after a beat is left where it is: caches are warm, and networks and schedulers jitter."""

APART_FOR = 5
"""Ticks in a row that must have been apart before one is moved: a beat that a busy machine held up moves nothing."""

STEP_S = 0.005
EARLY = 0.25
"""``nearest``: of an interval, so much sooner than asked for is near enough."""


@dataclass(slots=True)
class Cadence:
    """One for one agent. ``due`` is the next tick; before ``begin`` any origin of the grid will do."""

    interval_s: float
    follows: bool
    due: float = 0.0
    heard_at: float = float("-inf")
    apart: int = 0  # ticks in a row that were not near to a beat

    def begin(self, now: float) -> float:
        """The first tick is now."""
        self.due = now
        return self.due

    def heard(self, now: float) -> None:
        """A beat of the peer came, on whatever path it came first."""
        self.heard_at = now

    def advance(self, now: float) -> float:
        """A tick was made; when is the next?"""
        due = self.due + self.interval_s
        self.due = max(due - self._sooner(due), now)
        return self.due

    def nearest(self, at: float) -> float:
        """The tick at or soon after ``at``: what need not be punctual wakes the process with a tick, not beside it."""
        return self.due + math.ceil((at - self.due) / self.interval_s - EARLY) * self.interval_s

    def _sooner(self, due: float) -> float:
        if not self.follows or due - self.heard_at > 2 * self.interval_s:
            return 0.0
        behind_s = (due - self.heard_at) % self.interval_s  # a beat that comes as the last one did
        if not AFTER_S < behind_s < self.interval_s - BEFORE_S:
            self.apart = 0
            return 0.0
        self.apart += 1
        return min(behind_s - AFTER_S / 2, STEP_S) if self.apart > APART_FOR else 0.0
