"""Whether the link is what a stream waits for: only then does compressing bulk pay. Pure; seconds.

When the Active waits for room in the window while the Standby waits for frames, the bytes are on the way: the link is
the bottleneck. When the Standby is busy (disk) or the Active does not wait (its own CPU), compressing would only cost.
"""

from __future__ import annotations

INTERVAL_S = 0.5
WAITED_SHARE = 0.3
STARVED_SHARE = 0.5


class Bottleneck:
    """Judges once an interval from how long each side waited in it."""

    def __init__(self) -> None:
        self.is_link = False
        self._begin: float | None = None
        self._waited_s = 0.0
        self._starved_at_begin_s = 0.0

    def waited(self, seconds: float) -> None:
        """The Active waited so long for room in the window."""
        self._waited_s += seconds

    def starved(self, total_s: float, *, at: float) -> None:
        """The Standby's cumulative waiting for frames, as its acknowledgement of ``at`` says."""
        if self._begin is None:
            self._restart(total_s, at)
            return
        elapsed = at - self._begin
        if elapsed < INTERVAL_S:
            return
        starved_s = total_s - self._starved_at_begin_s
        self.is_link = self._waited_s > WAITED_SHARE * elapsed and starved_s > STARVED_SHARE * elapsed
        self._restart(total_s, at)

    def _restart(self, total_s: float, at: float) -> None:
        self._begin = at
        self._waited_s = 0.0
        self._starved_at_begin_s = total_s
