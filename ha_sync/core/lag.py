"""Replication lag and exposure of one dataset, measured on the Active alone.

Lag runs from the moment a change was durable on the Active (as early as the engine can know it) to its durable
acknowledgement by the Standby. All times are monotonic seconds given by the caller. Pure; not thread-safe.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass
from itertools import accumulate

from ha_sync.core.position import Sequence

SAMPLES_MAX = 20_000
"""Samples kept: the oldest go first."""

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram, included."""

PENDING_MAX = 65_536
"""Open notices kept; beyond it neighbours are merged under the older time, so lag is never understated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LagHistogram:
    """All lags since the ledger was begun; ``counts`` has one more than ``BUCKETS_S``, each apart."""

    counts: tuple[int, ...]
    sum_s: float

    @property
    def measured(self) -> int:
        """How many."""
        return sum(self.counts)

    def cumulated(self) -> list[tuple[float, int]]:
        """How many were at most so long."""
        return list(zip(BUCKETS_S, accumulate(self.counts), strict=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class LagSummary:
    """Lag of the last minutes; seconds, None where nothing was measured."""

    p50_s: float | None
    p99_s: float | None
    samples: int
    oldest_pending_s: float | None  # age of the oldest change that is not yet durable on the Standby
    histogram: LagHistogram


class LagLedger:
    """Pairs the time a sequence was noticed with the time it was acknowledged."""

    def __init__(self, *, window_s: float = 300.0) -> None:
        self._window_s = window_s
        self._pending: deque[tuple[Sequence, float]] = deque()
        self._samples: deque[tuple[float, float]] = deque(maxlen=SAMPLES_MAX)
        self._counts = [0] * (len(BUCKETS_S) + 1)
        self._sum_s = 0.0
        self._acknowledged = Sequence(-1)  # the highest; -1: none yet

    def noticed(self, sequence: Sequence, *, at: float) -> None:
        """A change with this sequence became durable on the Active at ``at``.

        A sequence that was noticed or acknowledged before is none: a look that finds nothing new names the old one.
        """
        if sequence <= self._acknowledged or (self._pending and sequence <= self._pending[-1][0]):
            return
        if len(self._pending) >= PENDING_MAX:
            # Merged under the older time: one late acknowledgement must not look like an early one.
            _, older = self._pending.pop()
            at = min(at, older)
        self._pending.append((sequence, at))

    def acknowledged(self, sequence: Sequence, *, at: float) -> None:
        """Everything up to ``sequence`` is durable on the Standby."""
        self._acknowledged = max(self._acknowledged, sequence)
        while self._pending and self._pending[0][0] <= sequence:
            _, since = self._pending.popleft()
            lag_s = max(0.0, at - since)
            self._samples.append((at, lag_s))
            self._counts[bisect_left(BUCKETS_S, lag_s)] += 1
            self._sum_s += lag_s

    def forget_pending(self) -> None:
        """The journal or the Standby was replaced: nothing is open and nothing acknowledged any more."""
        self._pending.clear()
        self._acknowledged = Sequence(-1)

    def summary(self, *, now: float) -> LagSummary:
        """p50 and p99 over the window, by the nearest-rank method."""
        while self._samples and now - self._samples[0][0] > self._window_s:
            self._samples.popleft()
        values = sorted(lag for _, lag in self._samples)
        oldest = max(0.0, now - self._pending[0][1]) if self._pending else None
        return LagSummary(
            p50_s=_nearest_rank(values, 0.50) if values else None,
            p99_s=_nearest_rank(values, 0.99) if values else None,
            samples=len(values),
            oldest_pending_s=oldest,
            histogram=LagHistogram(counts=tuple(self._counts), sum_s=self._sum_s),
        )


def _nearest_rank(ordered: list[float], share: float) -> float:
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
