"""When to look at a database again: often enough for the lag, seldom enough for the processor. Pure.

Looking costs what reading and hashing the file costs; after a look that took ``c`` seconds of the processor the next
one waits ``c / SHARE``. The time on the wall is another thing: on a busy machine it says how hard it is to find a gap.
Where a copy takes long against the writer's pauses it must begin right after a commit, so a look that is due waits a
little for the end of the next one. Monotonic seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARE = 0.04
"""Of one core, spent on looking."""

REST_MAX_S = 2.0
SMALL_LOOK_S = 0.0015
"""A look that is as short as this is started at once: it is done before the next commit."""

HINT_WAIT_S = 0.05
"""How long a due look waits for a commit to end; a writer that is quiet for so long leaves room anyway."""

HINT_FRESH_S = 0.003
"""A commit that ended so recently is the best moment there is."""

RETRY_FIRST_S = 0.001
RETRY_MAX_S = 0.05
PATIENCE_S = 0.03
"""So long an open transaction is waited for; afterwards it does not keep us from reading (DESIGN 4, lockfree.py)."""

LOOK_AGAIN_S = 0.02
"""After a look into a log that a program writes to: its last write is heard, but seen only when it is committed."""

REJECTED_MAX = 20
NOT_FREE_MAX_S = 30.0
SLOW_TICK_S = 10.0


@dataclass(slots=True)
class Pace:
    """The state of one reader's timing."""

    look_s: float = 0.0  # how long a look takes, smoothed
    resting_until: float = 0.0
    commit_ended: float = float("-inf")
    rejected_in_a_row: int = 0
    waiting_since: float | None = None  # a change is known and no copy was accepted since
    retry_s: float = RETRY_FIRST_S

    def looked(self, seconds: float, *, processor_s: float, now: float) -> None:
        """A look that read content ended; ``seconds`` is its time on the wall."""
        self.look_s = seconds if self.look_s == 0 else 0.7 * self.look_s + 0.3 * seconds
        self.resting_until = now + min(REST_MAX_S, processor_s / SHARE)

    def rest_s(self, *, now: float) -> float:
        """How long the budget forbids a look."""
        return max(0.0, self.resting_until - now)

    def hint_wait_s(self, *, now: float) -> float:
        """How long to wait for the end of a commit before a look that is due."""
        if self.look_s <= SMALL_LOOK_S or now - self.commit_ended <= HINT_FRESH_S:
            return 0.0
        return HINT_WAIT_S

    def accepted(self) -> None:
        """A copy was accepted."""
        self.rejected_in_a_row = 0
        self.waiting_since = None
        self.retry_s = RETRY_FIRST_S

    def refused(self, *, now: float, read_in_vain: bool) -> None:
        """No copy this time."""
        if self.waiting_since is None:
            self.waiting_since = now
        if read_in_vain:
            self.rejected_in_a_row += 1
        self.retry_s = min(RETRY_MAX_S, self.retry_s * 1.6)

    def patient(self, *, now: float) -> bool:
        """Whether an open transaction is still waited for."""
        return self.waiting_since is None or now - self.waiting_since < PATIENCE_S

    def hopeless(self, *, now: float) -> bool:
        """Whether it is time for an alarm and the slow tick."""
        if self.rejected_in_a_row >= REJECTED_MAX:
            return True
        return self.waiting_since is not None and now - self.waiting_since >= NOT_FREE_MAX_S
