"""Is the engine there? It holds a call to the agent open; whoever serves that call says when it comes and goes."""

from __future__ import annotations

from collections.abc import Callable

from ha_agent.health.look import GOOD, Look, Reason, bad


class EngineProbe:
    """Told by the driver, looked at by the monitor."""

    def __init__(self) -> None:
        self._attached = False
        self._rouse: Callable[[], None] = lambda: None

    def attached(self) -> None:
        """The engine's call has begun."""
        self._set(attached=True)

    def detached(self) -> None:
        """The call has ended, or the engine said nothing for its deadline."""
        self._set(attached=False)

    @property
    def is_attached(self) -> bool:
        """Whether the engine holds a call now."""
        return self._attached

    async def look(self) -> tuple[Look, ...]:
        """One look."""
        return (GOOD if self._attached else bad(Reason.DETACHED, "the engine holds no call"),)

    def rouse_with(self, rouse: Callable[[], None]) -> None:
        """Called when it came or went."""
        self._rouse = rouse

    def restart(self) -> None:
        """Nothing is remembered."""

    async def close(self) -> None:
        """Nothing is held."""

    def _set(self, *, attached: bool) -> None:
        self._attached = attached
        self._rouse()
