"""The words of the alarms. Pure. Times in seconds: ``*_unix_s`` wall clock, for people; the others monotonic."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from ha_agent.settings.values import Severity

RANK = {Severity.INFO: 0, Severity.WARNING: 1, Severity.ERROR: 2}
FIELDS_MAX = 12
FIELD_MAX = 240


class Key(NamedTuple):
    """Which alarm it is."""

    what: str  # constant text
    subject: str = ""  # what it is about


class Edge(enum.Enum):
    """What was seen of an alarm."""

    RAISED = "raised"
    CLEARED = "cleared"
    HAPPENED = "happened"  # it has no end that anybody could see


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One thing that was seen."""

    key: Key
    edge: Edge
    severity: Severity = Severity.WARNING
    fields: Mapping[str, str] = field(default_factory=dict)


class Told(enum.Enum):
    """What the targets know of an alarm."""

    NOTHING = "nothing"
    STANDS = "stands"
    OVER = "over"  # that it came, and was gone again


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """An alarm that stands, or has not been gone for long enough."""

    key: Key
    severity: Severity
    since_unix_s: float
    once: bool  # it happened; nobody will say that it ended
    count: int = 1  # how often it was raised, or happened
    fields: Mapping[str, str] = field(default_factory=dict)
    gone_at: float | None = None  # since when it does not stand any more; to come: unless it is raised until then
    pending: bool = False  # the targets are to be told of it
    told: Told = Told.NOTHING
    told_count: int = 0
    told_at: float = 0.0
    told_unix_s: float | None = None
    at: float = 0.0  # when it was seen last

    def stands(self, now: float) -> bool:
        """As far as anybody knows."""
        return not self.once and (self.gone_at is None or self.gone_at > now)


class Change(enum.Enum):
    """What a message says of an alarm."""

    RAISED = "raised"
    OVER = "over"  # it was raised, and ended before anybody could be told
    HAPPENED = "happened"
    STANDS = "stands"  # it was told before, and stands still
    CLEARED = "cleared"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One alarm in a message."""

    change: Change
    key: Key
    severity: Severity
    since_unix_s: float
    count: int
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bulletin:
    """One message to all targets."""

    unix_s: float
    entries: tuple[Entry, ...]
    more: int = 0  # changes that there was no room for in it
    left_out: int = 0  # alarms that there was no room for at all
    standing: int = 0  # how many stand now


def bounded(fields: Mapping[str, object]) -> dict[str, str]:
    """Fields as text, at most so many and so long."""
    return {str(key)[:FIELD_MAX]: str(value)[:FIELD_MAX] for key, value in list(fields.items())[:FIELDS_MAX]}
