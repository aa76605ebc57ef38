"""An administrator's request and its answer: one at a time, answered by what the arbiter does or refuses.

A planned switch is done when the peer serves, a forced take-over when this node does. What the arbiter gives up without
a refusal (a forced claim that somebody answered, an Active that lost its address meanwhile) is answered too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from ha_agent.arbiter.actions import Moved, Refused
from ha_agent.arbiter.values import NO_EPOCH, SERVING, TAKING, Cause, Epoch, Phase, Reason

FORCED = frozenset({"force-dead", "force-idle"})
HOLDING = SERVING | {Phase.RELEASING}
GIVEN_UP = {
    "claim-answered": Reason.FOREIGN_HOLDER,
    "claim-late": Reason.DEADLINE,
    "claim-not-stored": Reason.STORE_FAILED,
    "add-failed": Reason.ADDRESS_FAILED,
    "add-unanswered": Reason.ADDRESS_FAILED,
    "lease-lapsed": Reason.ADDRESS_FAILED,
    "epoch-overtaken": Reason.PEER_HEARD,
    "stop": Reason.CANCELLED,
}
"""Rows that end a forced take-over before it serves, as the administrator reads them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What became of a request."""

    done: bool
    epoch: Epoch = NO_EPOCH
    reason: Reason | None = None
    peer_reasons: tuple[Reason, ...] = ()
    detail: str = ""


class Requests:
    """One per agent."""

    def __init__(self) -> None:
        self._asking: asyncio.Future[Answered] | None = None
        self._gone = False  # the go is out: done when the peer serves
        self._claims = False  # a forced take-over is on its way
        self.detail = ""  # why a quiesce failed
        self.backup_left_s: float | None = None  # of the full backup that goes on, as far as the engine can tell

    async def ask(self, begin: Callable[[], None], *, timeout_s: float) -> Answered:
        """Begins and waits for the answer. ``timeout_s`` 0: what is not refused at once is done."""
        if self._asking is not None:
            return Answered(done=False, reason=Reason.BUSY)
        asking: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._asking = asking
        self.detail, self._gone, self._claims = "", False, False
        try:
            begin()
            if not timeout_s:
                return asking.result() if asking.done() else Answered(done=True)
            async with asyncio.timeout(timeout_s):
                return await asking
        except TimeoutError:
            return Answered(done=False, reason=Reason.DEADLINE)
        finally:
            self._asking = None

    def refused(self, refused: Refused) -> None:
        """The arbiter says why not."""
        detail = self.detail
        if refused.reason is Reason.BACKUP_RUNNING:
            left_s = self.backup_left_s
            detail = "how long it will take is not known yet" if left_s is None else f"about {left_s:.0f} s are left"
        self._answer(Answered(done=False, reason=refused.reason, peer_reasons=refused.peer_reasons, detail=detail))

    def moved(self, move: Moved) -> None:
        """A row was taken; it may be the answer."""
        self._gone = self._gone or move.row == "go"
        self._claims = self._claims or move.row in FORCED
        if self._claims and move.after not in TAKING and move.row != "serve":
            self._answer(Answered(done=False, reason=GIVEN_UP.get(move.row, Reason.PEER_HEARD)))
        if move.before in SERVING and move.after not in HOLDING:
            self._answer(Answered(done=False, reason=Reason.NOT_ACTIVE))
        if move.row == "serve":
            forced = move.cause is Cause.FORCED
            # Not forced: the role came back, the other node never served after it was given the go.
            self._answer(Answered(done=forced, epoch=move.epoch, reason=None if forced else Reason.PEER_LOST))

    def peer_serves(self, epoch: Epoch) -> None:
        """A beat says that the peer holds the role."""
        if self._gone:
            self._answer(Answered(done=True, epoch=epoch))

    def _answer(self, answered: Answered) -> None:
        if self._asking is not None and not self._asking.done():
            self._asking.set_result(answered)
