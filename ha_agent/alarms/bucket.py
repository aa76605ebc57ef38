"""How many messages may go out: at most ``per_hour`` within any hour, and never long silence after many. Pure.

A bucket of half of them fills with the other half evenly over the hour: an outburst is told at once, and after it a
message every ``3600 / (per_hour - per_hour // 2)`` seconds still gets through. Seconds are monotonic.
"""

from __future__ import annotations

HOUR_S = 3600.0
GRAIN = 1e-6  # of a token: what a sum of floats may lack


class Bucket:
    """One for all targets."""

    def __init__(self, per_hour: int, *, now: float, tokens: float | None = None) -> None:
        """``tokens``: what was left of an earlier run."""
        assert per_hour >= 2, per_hour
        self.room = per_hour // 2
        self.gap_s = HOUR_S / (per_hour - self.room)
        self._tokens = float(self.room) if tokens is None else max(0.0, min(float(self.room), tokens))
        self._at = now

    def tokens(self, now: float) -> float:
        """How many messages may go out at ``now``, and what is on the way to the next."""
        return min(float(self.room), self._tokens + max(0.0, now - self._at) / self.gap_s)

    def next_at(self, now: float) -> float:
        """When one may go out."""
        lacks = 1.0 - GRAIN / 2 - self.tokens(now)
        return now if lacks <= 0 else now + lacks * self.gap_s

    def take(self, now: float) -> bool:
        """One goes out. False: not now."""
        found = self.tokens(now)
        if found < 1.0 - GRAIN:
            return False
        self._tokens, self._at = max(0.0, found - 1.0), max(now, self._at)
        return True
