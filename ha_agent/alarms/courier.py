"""Brings one target what waits for it, in order, until the other end has taken it.

One message at a time, one process each. What fails is tried again, ever later (``backoff``); a message that the other
end refuses ``REFUSALS_MAX`` times as such is given up and counted, so that it does not hold up the others for ever, but
never one of the management service: there the order counts more. Sleeps where nothing waits.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass

from ha_agent.alarms.backoff import delay_s
from ha_agent.alarms.delivery import Delivered, Order, Outcome, deliver
from ha_agent.alarms.outbox import Message, Outbox
from ha_agent.commands import Commands
from ha_agent.settings.values import REPORT, Target

log = logging.getLogger("ha_agent.alarms")

REFUSALS_MAX = 8  # some four minutes


@dataclass(slots=True, kw_only=True)
class Trouble:
    """Why it does not get on."""

    reason: str = ""
    tries: int = 0  # in vain, in a row
    refusals: int = 0  # of the present message
    next_at: float | None = None  # of the loop's clock


class Courier:
    """Of one target."""

    def __init__(
        self,
        target: Target,
        outbox: Outbox,
        commands: Callable[[], Commands],
        *,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.target = target
        self.trouble = Trouble()
        self._outbox = outbox
        self._commands = commands
        self._chance = chance
        self._news = asyncio.Event()

    def wake(self) -> None:
        """Something was queued."""
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._news.clear()
            message = self._outbox.head(self.target.name)
            if message is None:
                await self._news.wait()
                continue
            self.trouble.next_at = None
            order = Order(target=self.target, id=message.id, document=message.document)
            self._judge(message, await deliver(self._commands(), order))
            await self._pause()

    async def _pause(self) -> None:
        """News do not shorten it: who is down is down for the next message too."""
        if self.trouble.next_at is not None:
            await asyncio.sleep(max(0.0, self.trouble.next_at - asyncio.get_running_loop().time()))

    def _judge(self, message: Message, delivered: Delivered) -> None:
        trouble = self.trouble
        if delivered.outcome is Outcome.SENT:
            self._outbox.sent(message)
            self.trouble = Trouble(reason=delivered.reason)
            return
        trouble.tries += 1
        trouble.refusals += delivered.outcome is Outcome.REFUSED
        trouble.next_at = asyncio.get_running_loop().time() + delay_s(
            trouble.tries, self._chance(), asked_s=delivered.asked_s
        )
        if delivered.reason != trouble.reason:
            trouble.reason = delivered.reason
            log.warning("a message could not be sent", extra={"target": self.target.name, "reason": trouble.reason})
        if trouble.refusals >= REFUSALS_MAX and self.target.name != REPORT:
            self._outbox.give_up(message)
            log.error("a message was given up", extra={"target": self.target.name, "reason": trouble.reason})
            self.trouble = Trouble(reason=delivered.reason)
