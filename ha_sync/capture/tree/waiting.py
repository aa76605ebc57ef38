"""What the source of a tree waits for: the watcher's fence, and the terms of a storage. In the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from ha_sync.capture.tree.terms import Terms

PERMIT_S = 30.0


async def pass_fence(put: Callable[[Callable[[], None]], Awaitable[None]], *, timeout_s: float) -> None:
    """Everything that happened before is heard. ``put`` has its argument called, in any thread, when it is."""
    loop, passed = asyncio.get_running_loop(), asyncio.Event()

    def pass_on() -> None:
        loop.call_soon_threadsafe(passed.set)

    await put(pass_on)
    async with asyncio.timeout(timeout_s):
        await passed.wait()


async def permitted(terms: Terms, changed: asyncio.Event, *, told: str) -> str:
    """Why nothing may be sent. What was ``told`` before is waited out for a while: what is admitted begins at once."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PERMIT_S):
            while terms.refusal and terms.refusal == told:
                changed.clear()
                await changed.wait()
    return terms.refusal
