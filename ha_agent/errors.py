"""The errors of the agent, by remedy.

    AgentError
    |-- Retryable        the same thing may succeed later by itself (file system busy, peer away)
    |   `-- PeerUnreachable
    |-- OperatorNeeded   a person must decide or mend something (no permission, no such interface)
    |-- WrongState       not possible in this role or state
    |-- Refused          refused for safety
    |-- ProtocolFault    the other side said something that no correct peer says
    `-- ConfigFault      the settings are wrong; carries every fault found, not only the first

Each carries what was attempted, on what, why, and a hint. The exit code follows from the class and means the same as
the engine's, of which the agent otherwise knows nothing.
"""

from __future__ import annotations

from typing import ClassVar


class AgentError(Exception):
    """Base of all errors that the agent raises on purpose.

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


class Retryable(AgentError):
    """May succeed later by itself."""


class PeerUnreachable(Retryable):
    """The other node does not answer."""

    exit_code = 5


class OperatorNeeded(AgentError):
    """A person must decide or mend something."""


class WrongState(AgentError):
    """Not possible in this role or state."""

    exit_code = 3


class Refused(AgentError):
    """Refused for safety."""

    exit_code = 6


class ProtocolFault(AgentError):
    """The other side broke the protocol."""


class ConfigFault(AgentError):
    """The settings are wrong. ``faults`` lists every one: field, value and remedy in each."""

    exit_code = 2

    def __init__(self, source: str, faults: tuple[str, ...]) -> None:
        self.faults = faults
        super().__init__("cannot use the settings of", subject=source, reason="; ".join(faults))
