"""How far a full backup is: objects and bytes by dataset, the rate of late, the time that is left.

Pure: times are monotonic seconds and come in as arguments.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

RATE_OVER_S = 10.0
ALMOST = 99.9
"""A run is at 100 % when it is over: what is expected is only known about."""


@dataclass(slots=True)
class _Part:
    objects: int = 0
    objects_expected: int = 0
    content_bytes: int = 0
    bytes_expected: int = 0
    over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A moment of the meter."""

    percent: float
    objects: int
    objects_expected: int
    content_bytes: int
    bytes_expected: int
    bytes_per_s: float
    left_s: float | None


class Meter:
    """Counts what is done; never goes back but when more turns out to be there."""

    def __init__(self, expected: dict[str, int], *, now: float) -> None:
        """``expected``: about how many objects each dataset has."""
        self._parts = {name: _Part(objects_expected=objects) for name, objects in expected.items()}
        self._began = now
        self._fresh = 0  # objects since the meter began: what an earlier part of the run did says nothing of the pace
        self._recent: deque[tuple[float, int]] = deque()

    def resumed(self, name: str, *, objects: int, content_bytes: int, over: bool) -> None:
        """An earlier part of the run did so much already."""
        part = self._parts[name]
        part.objects, part.content_bytes, part.over = objects, content_bytes, over

    def expect(self, name: str, *, objects: int, content_bytes: int) -> None:
        """So much there is altogether, as far as is known."""
        part = self._parts[name]
        part.objects_expected, part.bytes_expected = max(objects, part.objects), max(content_bytes, part.content_bytes)

    def advance(self, name: str, *, objects: int, content_bytes: int, now: float) -> None:
        """So much more is done."""
        part = self._parts[name]
        part.objects += objects
        part.content_bytes += content_bytes
        self._fresh += objects
        self._recent.append((now, content_bytes))
        self._forget(now)

    def over(self, name: str) -> None:
        """The dataset is complete."""
        self._parts[name].over = True

    def _forget(self, now: float) -> None:
        while self._recent and now - self._recent[0][0] > RATE_OVER_S:
            self._recent.popleft()

    def done(self, *, now: float) -> Done:
        """At this moment."""
        self._forget(now)
        parts = self._parts.values()
        expected = sum(max(part.objects, 0 if part.over else part.objects_expected) for part in parts)
        objects = sum(part.objects for part in parts)
        percent = 100.0 * objects / expected if expected else 0.0
        span = min(RATE_OVER_S, max(now - self._began, 0.001))
        pace = self._fresh / max(now - self._began, 0.001)
        return Done(
            percent=min(percent, ALMOST),
            objects=objects,
            objects_expected=expected,
            content_bytes=sum(part.content_bytes for part in parts),
            bytes_expected=sum(max(part.content_bytes, 0 if part.over else part.bytes_expected) for part in parts),
            bytes_per_s=sum(size for _, size in self._recent) / span,
            left_s=(expected - objects) / pace if pace else None,
        )
