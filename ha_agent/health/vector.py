"""The health of a node in one value: for the arbiter, for beats, for the switch log. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from ha_agent.arbiter.state import Fault
from ha_agent.health.look import FaultClass, Reason
from ha_agent.health.verdict import Condition


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What is known of one subject of one probe."""

    cause: str  # "process:asterisk", "fxo:3"; names a fault in every list and log
    fault_class: FaultClass
    condition: Condition
    reason: Reason
    detail: str
    switches: bool  # bad, was good before, and its switch is on


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthVector:
    """Everything, in the order of the causes."""

    findings: tuple[Finding, ...] = ()

    @property
    def bad(self) -> tuple[Finding, ...]:
        """What is wrong, whether it may switch or not."""
        return tuple(finding for finding in self.findings if finding.condition is Condition.BAD)

    @property
    def score(self) -> int:
        """0 is best: the number of faults."""
        return len(self.bad)

    @property
    def bits(self) -> int:
        """For beats: 1 a software fault, 2 a hardware fault, 4 one that switches."""
        bits = 0
        for finding in self.bad:
            bits |= 1 if finding.fault_class is FaultClass.SOFTWARE else 2
            bits |= 4 if finding.switches else 0
        return bits

    def faults(self) -> frozenset[Fault]:
        """What ``HealthReported`` takes."""
        return frozenset(Fault(cause=finding.cause, switches=finding.switches) for finding in self.bad)

    def as_fields(self) -> dict[str, str]:
        """For logs: every cause and its condition, with reason and detail where it is bad."""
        return {
            finding.cause: (
                f"{finding.reason.value} {finding.detail}".strip()
                if finding.condition is Condition.BAD
                else finding.condition.value
            )
            for finding in self.findings
        }
