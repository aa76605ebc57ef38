"""The errors of the engine, by remedy.

    HaSyncError
    |-- Retryable        the same thing may succeed later by itself (peer away, disk full, busy)
    |   `-- PeerUnreachable
    |-- Fenced           a higher epoch exists: this node must not send or apply what it wanted to
    |-- RepairNeeded     content cannot be trusted as it is; a resend or a compare mends it without a person
    |-- OperatorNeeded   a person must decide or mend something (guard halted, disk replaced, no permission)
    |-- WrongState       not possible in this role or state (wait on a Standby, join when paired)
    |-- Refused          refused for safety: a stranger, a wrong token, data that would be lost
    |-- ProtocolFault    the other side said something that no correct peer says
    `-- ConfigFault      the settings are wrong; carries every fault found, not only the first

Each carries what was attempted, on what, and a hint. The exit code and the gRPC status follow from the class; the
map to gRPC statuses is in ``service/status_map.py``, so that this module imports nothing.
"""

from __future__ import annotations

from typing import ClassVar


class HaSyncError(Exception):
    """Base of all errors that this program raises on purpose.

    ``attempted`` is what was being done, ``subject`` what it was done to, ``hint`` what to do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, attempted: str, *, subject: str = "", reason: str = "", hint: str = "") -> None:
        self.attempted = attempted
        self.subject = subject
        self.reason = reason
        self.hint = hint
        super().__init__(self.sentence())

    def sentence(self) -> str:
        """One line for a person: what, on what, why, and what to do."""
        text = self.attempted
        if self.subject:
            text += f" {self.subject}"
        if self.reason:
            text += f": {self.reason}"
        if self.hint:
            text += f" ({self.hint})"
        return text


class Retryable(HaSyncError):
    """May succeed later by itself."""


class PeerUnreachable(Retryable):
    """The other node does not answer."""

    exit_code = 5


class Fenced(HaSyncError):
    """A higher epoch exists."""

    exit_code = 6


class RepairNeeded(HaSyncError):
    """Content does not match what was announced; a resend or a compare mends it."""

    exit_code = 4


class OperatorNeeded(HaSyncError):
    """A person must decide or mend something."""


class WrongState(HaSyncError):
    """Not possible in this role or state."""

    exit_code = 3


class Refused(HaSyncError):
    """Refused for safety."""

    exit_code = 6


class ProtocolFault(HaSyncError):
    """The other side broke the protocol."""


class ConfigFault(HaSyncError):
    """The settings are wrong. ``faults`` lists every one: field, value and remedy in each."""

    exit_code = 2

    def __init__(self, source: str, faults: tuple[str, ...]) -> None:
        self.faults = faults
        super().__init__("cannot use the settings of", subject=source, reason="; ".join(faults))
