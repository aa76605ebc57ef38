"""What a restore asks of this node's agent: that the services are stopped, and stay so until it is over (DESIGN 9, 9a).

The engine reports a serial for as long as it wants the services stopped; the agent answers once, and starts them again
when the serial is gone. Whatever changes the role meanwhile interrupts the restore.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Final

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.errors import Refused, Retryable

ANSWER_S: Final = 900.0
"""The stop hooks have deadlines of their own; an agent that says nothing for so long is no agent."""


class Restoring:
    """One per engine; in its event loop."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self._changed = changed
        self._answer: asyncio.Future[pb.RestoreDirective] | None = None
        self.on_interrupt: Callable[[str], None] = lambda _reason: None
        self.serial = 0  # 0: no restore wants anything

    async def stop_services(self) -> None:
        """Returns when they are stopped. Raises Refused or Retryable where they are not; then call ``over``."""
        self.serial = secrets.randbits(48) + 1
        self._answer = asyncio.get_running_loop().create_future()
        self._changed()
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await self._answer
        except TimeoutError:
            raise Retryable("the services were not stopped", reason="the agent did not answer") from None
        finally:
            self._answer = None
        if not answer.stopped:
            raise Refused(
                "the services were not stopped",
                reason=answer.reason,
                hint="stop what is named, or mend its stop command in ha.toml; nothing was changed",
            )

    def over(self) -> None:
        """The services may start again."""
        self.serial = 0
        self._changed()

    def answered(self, directive: pb.RestoreDirective) -> None:
        """What the agent said."""
        if self._answer is not None and not self._answer.done() and directive.serial == self.serial:
            self._answer.set_result(directive)

    def interrupt(self, reason: str) -> None:
        """Nobody holds the services stopped any more, or this node is about to lose its role."""
        self.on_interrupt(reason)
