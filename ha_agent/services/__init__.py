"""The services of this node: their hooks, the condition file, and who still writes."""

from ha_agent.services.services import Outcome, Quieted, Report, Services, Step, Verb
from ha_agent.services.writers import Survey, Writer, survey

__all__ = ["Outcome", "Quieted", "Report", "Services", "Step", "Survey", "Verb", "Writer", "survey"]
