"""What the checker says, and how it counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from ha_sync.sample.history import ABSENT, Version

NAMED_MAX: Final = 200  # missing things and faults named one by one; the counts go on


@dataclass(slots=True, kw_only=True)
class KindCount:
    """Of one dataset."""

    present: int = 0  # ledger entries that are on the copy, or superseded by one that is
    missing: int = 0  # acknowledged, and not on the copy
    lost: int = 0  # never acknowledged, and not on the copy


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The answer. ``ok`` is the whole of it."""

    acknowledged_missing: list[str]  # at most NAMED_MAX of them are named
    unacknowledged_lost: int
    present: int
    by_kind: dict[str, KindCount]
    faults: list[str] = field(default_factory=list)  # split transactions, broken rules, mixed messages, damage
    held: int = 0  # call files: not judged
    rejected: list[str] = field(default_factory=list)  # what the PBX itself lost: locked databases, stale locks

    @property
    def ok(self) -> bool:
        """Nothing acknowledged is missing and nothing is broken."""
        return not self.acknowledged_missing and not self.faults


class Tally:
    """Collects the verdict."""

    def __init__(self, acknowledged_until: float) -> None:
        self.until_s = acknowledged_until
        self._missing: list[str] = []
        self._faults: list[str] = []
        self._kinds: dict[str, KindCount] = {}

    def present(self, kind: str, count: int = 1) -> None:
        """So many entries are there."""
        self._kind(kind).present += count

    def lost(self, kind: str, count: int = 1) -> None:
        """So many entries are not there, and were never acknowledged."""
        self._kind(kind).lost += count

    def missing(self, kind: str, what: str) -> None:
        """An acknowledged entry is not there."""
        self._kind(kind).missing += 1
        self._missing.append(f"{kind}: {what}")

    def fault(self, what: str) -> None:
        """Something that no committed state explains."""
        self._faults.append(what)

    def judge(self, kind: str, what: str, versions: list[Version], here: str | None, *, in_doubt: bool = False) -> None:
        """``here`` is what the copy holds of a thing with these versions. ``in_doubt``: any content may be there."""
        acknowledged = [n for n, v in enumerate(versions) if v.since_s <= self.until_s and not v.doubtful]
        fits = [n for n, version in enumerate(versions) if version.digest == here]
        at_least, last = acknowledged[-1], fits[-1] if fits else -1
        if in_doubt and here is not ABSENT and last < at_least:
            last = len(versions) - 1
        self.present(kind, sum(1 for n in range(1, len(versions)) if n <= last and not versions[n].doubtful))
        if last < at_least:
            found = "not there" if here is ABSENT else "an older or unknown content"
            self.missing(kind, f"{what}: {found}, committed at {versions[at_least].since_s:.3f}")
        self.lost(kind, sum(1 for n, v in enumerate(versions) if n > max(last, at_least) and not v.doubtful))
        if last < 0 and here is not ABSENT and not in_doubt and at_least == 0:
            self.fault(f"{kind}: {what}: a content that was never committed")

    def verdict(self, *, held: int, rejected: list[str]) -> Verdict:
        """The end of the count."""
        counts = self._kinds.values()
        return Verdict(
            acknowledged_missing=self._bounded(self._missing),
            unacknowledged_lost=sum(count.lost for count in counts),
            present=sum(count.present for count in counts),
            by_kind=dict(self._kinds),
            faults=self._bounded(self._faults),
            held=held,
            rejected=rejected,
        )

    @staticmethod
    def _bounded(found: list[str]) -> list[str]:
        return found[:NAMED_MAX]

    def _kind(self, kind: str) -> KindCount:
        return self._kinds.setdefault(kind, KindCount())
