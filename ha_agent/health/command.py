"""A program that knows: exit status 0 is good, anything else is bad. Past its deadline its process group is killed."""

from __future__ import annotations

from ha_agent.commands import Commands, Ending
from ha_agent.health.look import GOOD, Look, Reason, bad
from ha_agent.health.probe import Plain

REASONS = {Ending.FAILED: Reason.FAILED, Ending.OVERRUN: Reason.SILENT, Ending.NOT_STARTED: Reason.UNREADABLE}


class CommandProbe(Plain):
    """Runs one program a look."""

    def __init__(self, commands: Commands, command: tuple[str, ...], *, deadline_s: float) -> None:
        self._commands = commands
        self._command = command
        self._deadline_s = deadline_s

    async def look(self) -> tuple[Look, ...]:
        """One run."""
        done = await self._commands.run(self._command, deadline_s=self._deadline_s)
        if done.ok:
            return (GOOD,)
        last_line = done.output.rpartition("\n")[2]
        return (bad(REASONS[done.ending], f"{done.reason}: {last_line}" if last_line else done.reason),)
