"""What a probe is: it looks, and it may say when looking is worth it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ha_agent.health.look import Look


class Probe(Protocol):
    """Looks at something. One look at a time; cancelling a look is always safe."""

    async def look(self) -> tuple[Look, ...]:
        """One look for each subject. Raises nothing on purpose; the caller holds the deadline."""

    def rouse_with(self, rouse: Callable[[], None]) -> None:
        """``rouse`` is to be called, in the loop, when it is worth looking before the next interval."""

    def restart(self) -> None:
        """What is watched was started anew on purpose: forget who it was."""

    async def close(self) -> None:
        """Lets go of connections and descriptors."""


class Plain:
    """What a probe does that has nothing to wait for and nothing to keep."""

    def rouse_with(self, rouse: Callable[[], None]) -> None:
        """It never is."""

    def restart(self) -> None:
        """Nothing is remembered."""

    async def close(self) -> None:
        """Nothing is held."""
