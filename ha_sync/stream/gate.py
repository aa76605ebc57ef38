"""Who may send next when many datasets share one way out: the lower priority number goes first.

All streams of a node share one budget of bytes under way, so what is urgent waits at most for what has left already.
Bulk (a full sync) ranks below everything live and may use only part of the budget. Used from one event loop.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from dataclasses import dataclass, field

BULK = 100
"""Added to the priority of frames of a full sync."""


@dataclass(order=True, slots=True)
class _Waiter:
    priority: int
    order: int
    size: int = field(compare=False)
    ready: asyncio.Future[None] = field(compare=False)


class Gate:
    """A budget of bytes with a queue by priority."""

    def __init__(self, budget: int, *, bulk_budget: int) -> None:
        assert 0 < bulk_budget <= budget, (bulk_budget, budget)
        self._budget = budget
        self._bulk_budget = bulk_budget
        self._used = 0
        self._queue: list[_Waiter] = []
        self._order = itertools.count()

    @property
    def used(self) -> int:
        """Bytes under way in all streams."""
        return self._used

    async def enter(self, size: int, priority: int) -> None:
        """Returns when ``size`` bytes may be sent; the caller gives them back with ``leave``."""
        if not self._queue and self._fits(size, priority):
            self._used += size
            return
        waiter = _Waiter(priority, next(self._order), size, asyncio.get_running_loop().create_future())
        heapq.heappush(self._queue, waiter)
        self._admit()
        try:
            await waiter.ready
        except asyncio.CancelledError:
            if waiter in self._queue:
                self._queue.remove(waiter)
                heapq.heapify(self._queue)
            elif waiter.ready.done() and not waiter.ready.cancelled():
                self.leave(size)
            raise

    def leave(self, size: int) -> None:
        """The other side released ``size`` bytes, or the stream that held them ended."""
        self._used -= size
        assert self._used >= 0, self._used
        self._admit()

    def _fits(self, size: int, priority: int) -> bool:
        budget = self._bulk_budget if priority >= BULK else self._budget
        return self._used == 0 or self._used + size <= budget

    def _admit(self) -> None:
        while self._queue and self._fits(self._queue[0].size, self._queue[0].priority):
            waiter = heapq.heappop(self._queue)
            if waiter.ready.done():
                continue
            self._used += waiter.size
            waiter.ready.set_result(None)
