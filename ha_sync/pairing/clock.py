"""What time it is, in the three ways that pairing needs, and whether the wall clock can be believed.

A PBX without a battery for its clock boots in 1970 or 2000. So a token's life counts in the kernel's boot time
(seconds, suspended time included), which no clock setting moves and which a reboot ends; the wall clock is only for
certificates, which cannot be judged otherwise, and only when it is plausible.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CLOCK_SLACK_S = 3600.0
"""A clock may step back by so much (NTP, a person) and still be believed."""

WRITTEN_UNIX_S = 1767225600.0
"""2026-01-01: this program is younger than that, so a clock before it is wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One reading of the clocks."""

    boot_id: str  # of the kernel; boot times compare only within one
    boot_s: float  # seconds since the kernel booted
    unix_s: float  # wall clock


Clock = Callable[[], Moment]


def read_clock() -> Moment:
    """The kernel's clocks now."""
    wall = dt.datetime.now(dt.UTC).timestamp()
    return Moment(boot_id=_boot_id(), boot_s=time.clock_gettime(time.CLOCK_BOOTTIME), unix_s=wall)


@cache
def _boot_id() -> str:
    """No process outlives the boot that it began in."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def is_plausible(*, unix_s: float, newest_unix_s: float) -> bool:
    """Whether a wall clock can be right, given the newest time that was ever stored."""
    return unix_s >= max(newest_unix_s, WRITTEN_UNIX_S) - CLOCK_SLACK_S


def believable(*, unix_s: float, newest_unix_s: float) -> float:
    """The clock, or the newest time that it must have passed: a certificate's life never counts from 1970."""
    return max(unix_s, newest_unix_s, WRITTEN_UNIX_S)


def iso_utc(unix_s: float) -> str:
    """For people: ``2026-02-03T04:05:06Z``."""
    return dt.datetime.fromtimestamp(unix_s, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
