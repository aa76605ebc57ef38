"""What one look of a probe says. Pure."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class FaultClass(enum.Enum):
    """Which switch of the settings a fault belongs to (R1.9, R1.10)."""

    SOFTWARE = "software"
    HARDWARE = "hardware"


class Reason(enum.Enum):
    """Why a look is bad. Sentences are made where they are shown."""

    NONE = "none"
    GONE = "gone"  # process, device or folder is not there
    RESTARTED = "restarted"  # another process of the same name: it died and was started by somebody else
    CORE_DUMPED = "core_dumped"
    STOPPED = "stopped"  # by a signal or a debugger
    REFUSED = "refused"  # nobody listens
    SILENT = "silent"  # no answer within the deadline
    GARBAGE = "garbage"  # an answer that no correct program gives
    DENIED = "denied"  # answered, but not to us: name or secret are wrong
    FAILED = "failed"  # the command says so
    CARRIER_LOST = "carrier_lost"
    NOT_UP = "not_up"  # administratively down, or the operational state says so
    ALARM = "alarm"  # the driver reports a fault of the hardware
    READ_ONLY = "read_only"
    FULL = "full"
    NOT_MOUNTED = "not_mounted"
    DETACHED = "detached"  # the engine holds no call to the agent
    UNREADABLE = "unreadable"  # the look itself failed: no permission, input or output error


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """One look at one subject."""

    subject: str = ""  # what of the probe's: a port, a path; empty: the probe has one subject
    good: bool
    reason: Reason = Reason.NONE
    detail: str = ""  # for people, at most a line

    def __post_init__(self) -> None:
        assert self.good == (self.reason is Reason.NONE), self


GOOD = Look(good=True)


def bad(reason: Reason, detail: str = "", *, subject: str = "") -> Look:
    """A look that found a fault."""
    return Look(good=False, reason=reason, detail=detail[:200], subject=subject)
