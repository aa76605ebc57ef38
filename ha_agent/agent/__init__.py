"""The driver: hands events to the arbiter, one at a time, and performs what it says."""

from ha_agent.agent.building import build
from ha_agent.agent.driver import Agent
from ha_agent.agent.requests import Answered

__all__ = ["Agent", "Answered", "build"]
