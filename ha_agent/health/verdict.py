"""From looks to a fault: pure, one state per subject of a probe. Times are monotonic seconds, handed in.

    unknown --rise good--> good --fall bad--> bad --rise good--> good
       `-----fall bad-----> bad

A look that agrees with the condition ends a streak of others. Invariants:
- A subject that was never good cannot cause a switch: ``armed`` is set by reaching *good* and by nothing else.
- A cause that switched once (``spend``) cannot switch again until it was seen good: ``spend`` disarms.
- ``reset`` (services started or stopped on purpose, the role changed) forgets everything, the arming too: a node that
  has just taken over does not give the role back for a program that never came up there.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from ha_agent.health.look import Look, Reason


class Condition(enum.Enum):
    """What is known of a subject."""

    UNKNOWN = "unknown"
    GOOD = "good"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """So many looks in a row."""

    fall: int
    rise: int

    def __post_init__(self) -> None:
        assert self.fall >= 1, self.fall
        assert self.rise >= 1, self.rise


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The state. ``reason`` and ``detail`` are of the newest bad look while the condition is bad."""

    condition: Condition = Condition.UNKNOWN
    streak: int = 0  # looks in a row that contradict the condition
    streak_good: bool = False  # what they say; matters while unknown
    armed: bool = False
    since: float | None = None  # when the condition was reached
    reason: Reason = Reason.NONE
    detail: str = ""

    @property
    def switches(self) -> bool:
        """Whether it is a fault that may move the role, as far as this subject is concerned."""
        return self.condition is Condition.BAD and self.armed


def judge(verdict: Verdict, rule: Rule, look: Look, *, now: float) -> Verdict:
    """The state after one more look."""
    if verdict.condition is (Condition.GOOD if look.good else Condition.BAD):
        kept = verdict if look.good else replace(verdict, reason=look.reason, detail=look.detail)
        return replace(kept, streak=0)
    same = verdict.streak > 0 and verdict.streak_good is look.good
    streak = verdict.streak + 1 if same else 1
    if streak < (rule.rise if look.good else rule.fall):
        return replace(verdict, streak=streak, streak_good=look.good)
    if look.good:
        return Verdict(condition=Condition.GOOD, armed=True, since=now)
    return Verdict(condition=Condition.BAD, armed=verdict.armed, since=now, reason=look.reason, detail=look.detail)


def spend(verdict: Verdict) -> Verdict:
    """The subject has caused a switch, or stood by as one."""
    return replace(verdict, armed=False)


def reset() -> Verdict:
    """Nothing is known."""
    return Verdict()
