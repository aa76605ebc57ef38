"""When a full backup is due: a cron expression in the node's local time, read by APScheduler.

One that was missed (the node was off) is made up once. A wall time that comes twice in the night when summer time ends
counts once; one that does not exist in the night when it begins is taken at the hour that follows. A clock that was
set back does not start a second run of the same wall time, one that was set forward starts what it jumped over, once.
Deciding is pure; ``local_zone`` reads the node's zone.
"""

from __future__ import annotations

import datetime as dt
import os
import zoneinfo
from typing import Any


class Schedule:
    """A cron expression of five fields."""

    def __init__(self, expression: str) -> None:
        self._expression = expression
        self._made: Any = None

    def next_after(self, last: dt.datetime, zone: dt.tzinfo) -> dt.datetime | None:
        """The first time after ``last`` whose wall time is later than ``last``'s; None: never again."""
        # Asked in wall times, as if no clock were ever changed: so each of them comes once.
        wall = last.astimezone(zone).replace(tzinfo=dt.UTC)
        found: dt.datetime | None = self._trigger().get_next_fire_time(None, wall + dt.timedelta(seconds=1))
        if found is None:
            return None
        # There and back: a wall time that does not exist becomes the one an hour later.
        return found.replace(tzinfo=zone).astimezone(dt.UTC).astimezone(zone)

    def due(self, last: dt.datetime, now: dt.datetime, zone: dt.tzinfo) -> bool:
        """Whether a run that was to begin after ``last`` should have begun by now."""
        following = self.next_after(min(last, now), zone)
        return following is not None and following <= now

    def _trigger(self) -> Any:
        if self._made is None:
            # Imported here: it is a tenth of the engine's memory, and most commands never ask.
            from apscheduler.triggers.cron import CronTrigger

            self._made = CronTrigger.from_crontab(_named_days(self._expression), timezone=dt.UTC)
        return self._made


_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat", "sun")


def _named_days(expression: str) -> str:
    """APScheduler counts the days of the week from Monday, cron from Sunday: numbers become names."""
    *fields, days = expression.split()
    return " ".join([*fields, ",".join(_named(part) for part in days.split(","))])


def _named(part: str) -> str:
    days, slash, step = part.partition("/")
    first, dash, last = days.partition("-")
    if not first.isdigit():
        return part
    if not dash and not slash:
        return _DAYS[int(first)]
    # A range may wrap where Monday comes first: it is written out.
    end = int(last) if dash else 6
    return ",".join(_DAYS[day] for day in range(int(first), end + 1, int(step) if slash else 1))


def local_zone() -> dt.tzinfo:
    """The node's zone as it is now: an administrator may change it while the engine runs. Blocking."""
    name = os.environ.get("TZ", "").lstrip(":")
    try:
        if name and not name.startswith("/"):
            return zoneinfo.ZoneInfo(name)
        path = os.path.realpath(name or "/etc/localtime")
        with open(path, "rb") as file:
            return zoneinfo.ZoneInfo.from_file(file, key=path)
    except (OSError, ValueError, zoneinfo.ZoneInfoNotFoundError):
        return dt.UTC
