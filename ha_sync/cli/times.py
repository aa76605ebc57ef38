"""Points in time and durations as people write them on a command line."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

_LENGTH: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])\Z")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
LONGEST_S: Final = 366 * 86_400


class Since(click.ParamType[float]):
    """``10m`` ago, or a date and time in ISO 8601 (local time where it names no zone); becomes unix seconds."""

    name = "when"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Unix seconds."""
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            if match := _LENGTH.match(text):
                ago = timedelta(seconds=_seconds(match))
                return max(0.0, (datetime.now(UTC) - ago).timestamp())
            return datetime.fromisoformat(text).astimezone().timestamp()
        except (ValueError, OverflowError):
            self.fail(f'{text!r}: give an age like 10m, 2h or 3d, or a time like "2026-11-22 10:00"', param, ctx)


class Length(click.ParamType[float]):
    """``30m``; becomes seconds, more than 0 and at most a year."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, float):
            return value
        match = _LENGTH.match(str(value))
        if match is None or not 0 < (seconds := _seconds(match)) <= LONGEST_S:
            self.fail(f"{value!r}: give a duration like 90s, 30m or 2h", param, ctx)
        return seconds


def moment(unix_s: float) -> str:
    """For a person: local time with its zone, to the millisecond."""
    return datetime.fromtimestamp(unix_s, UTC).astimezone().isoformat(sep=" ", timespec="milliseconds")


def _seconds(match: re.Match[str]) -> float:
    return float(match.group(1)) * _UNIT_S[match.group(2)]
