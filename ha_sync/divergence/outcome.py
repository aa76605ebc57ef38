"""What a merge did: counted, with the reasons of what it left to a person. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

REASONS_MAX = 100


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Counts of records, messages or files."""

    added: int = 0
    present: int = 0  # were there already
    left: int = 0  # for a person to decide
    reasons: list[str] = field(default_factory=list)

    def leave(self, count: int, reason: str) -> None:
        """``count`` objects are left, for one reason; beyond REASONS_MAX they are only counted."""
        self.left += count
        if len(self.reasons) < REASONS_MAX and reason not in self.reasons:
            self.reasons.append(reason)
