"""What this node remembers between two starts of its agent: its book and boot numbers, and the pair that it is of."""

from ha_agent.memory.book import BookStore, Memory
from ha_agent.memory.membership import Membership, await_membership, membership

__all__ = ["BookStore", "Membership", "Memory", "await_membership", "membership"]
