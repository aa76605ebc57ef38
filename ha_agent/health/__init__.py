"""Health of this node: one probe a file, a pure verdict, and a monitor that runs them. No policy."""

from ha_agent.health.engine import EngineProbe
from ha_agent.health.link import Carrier, LinkState, read_link
from ha_agent.health.look import FaultClass, Look, Reason
from ha_agent.health.monitor import Monitor, Watch
from ha_agent.health.vector import Finding, HealthVector
from ha_agent.health.verdict import Condition
from ha_agent.health.watches import Tools, watches_of

__all__ = [
    "Carrier",
    "Condition",
    "EngineProbe",
    "FaultClass",
    "Finding",
    "HealthVector",
    "LinkState",
    "Look",
    "Monitor",
    "Reason",
    "Tools",
    "Watch",
    "read_link",
    "watches_of",
]
