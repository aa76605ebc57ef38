"""One subscriber's stream of a database captured as pages: whole states, as the blocks that the Standby lacks.

``base`` is the content that the Standby has once it applied everything that was sent. Not thread-safe: event loop only.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from typing import TYPE_CHECKING, Any

from ha_sync.capture.pages.content import Known, frames_of, known_of_inventory, nothing
from ha_sync.core.frame import FRAME_PAYLOAD_MAX, Frame
from ha_sync.core.position import Answer, Position, Sequence
from ha_sync.database.lockfree import Copy
from ha_sync.errors import ProtocolFault

if TYPE_CHECKING:
    from ha_sync.capture.pages.source import PagesSource

SENT_MAX = 256
"""States sent and not yet acknowledged that are remembered; an acknowledgement of an older one still counts, but the
content behind it is forgotten, and a reconnect right then compares."""

INVENTORY_MAX = 2 * FRAME_PAYLOAD_MAX


class PagesSession:
    """A `Session` (core/dataset.py)."""

    def __init__(self, source: PagesSource, *, answer: Answer, base: Known | None) -> None:
        self._source = source
        self._answer = answer
        self._base = base
        self._whole_again = base is None
        self._told = Sequence(0)  # the last sequence this session sent
        self._sent: deque[tuple[Sequence, Known]] = deque(maxlen=SENT_MAX)
        self._closed = False
        self._interrupt = asyncio.Event()  # closed, or something is needed whole
        self.comparing = answer is Answer.COMPARE

    @property
    def answer(self) -> Answer:
        """Resume, or compare."""
        return self._answer

    @property
    def method(self) -> str:
        """Always pages."""
        return "pages"

    async def compare(self, inventory: AsyncIterator[bytes]) -> None:
        """The Standby tells the block hashes of its file."""
        gathered = bytearray()
        async for chunk in inventory:
            gathered += chunk
            if len(gathered) > INVENTORY_MAX:
                raise ProtocolFault("cannot take the inventory", reason="larger than any database of this kind")
        self._base = known_of_inventory(bytes(gathered))
        self._whole_again = self._base is None

    async def frames(self) -> AsyncIterator[Frame]:
        """Groups of one state each; ends when the session is closed."""
        while not self._closed:
            self._interrupt.clear()
            again, base = self._whole_again, None if self._whole_again else self._base
            found = await self._unless_interrupted(self._source.changed_copy(base, told=self._told, force=again))
            if found is None:
                continue
            self._whole_again = False
            copy, known, position = found
            if known == base and position.sequence == self._told:
                continue
            self._told, self._base = position.sequence, known
            self._sent.append((position.sequence, known))
            if known == base:
                yield nothing(position)
                continue
            for frame in frames_of(known, mtime_ns=copy.mtime_ns, blocks=copy.changed, position=position):
                # A closed session ends at once; the sink drops a group that it has in part.
                if self._closed:
                    return
                yield frame

    def acknowledge(self, position: Position) -> None:
        """Everything up to ``position`` is durable on the Standby."""
        if not self._source.position.resumes(position):
            return
        known: Known | None = None
        while self._sent and self._sent[0][0] <= position.sequence:
            sequence, state = self._sent.popleft()
            known = state if sequence == position.sequence else None
        if position.sequence >= self._told > 0:
            self.comparing = False
        self._source.acknowledged(position.sequence, known)

    def need(self, paths: tuple[bytes, ...]) -> None:  # noqa: ARG002 - there is only one object
        """The file is sent whole."""
        self._whole_again = True
        self._interrupt.set()

    def partials(self, partials: tuple[bytes, ...]) -> None:
        """The Standby of a copy has none."""

    async def close(self) -> None:
        """Ends ``frames``."""
        self._closed = True
        self._interrupt.set()
        self._source.forget(self)

    async def _unless_interrupted(
        self, look: Coroutine[Any, Any, tuple[Copy, Known, Position] | None]
    ) -> tuple[Copy, Known, Position] | None:
        looking = asyncio.create_task(look, name="pages look")
        interrupted = asyncio.create_task(self._interrupt.wait(), name="pages interrupt")
        try:
            await asyncio.wait({looking, interrupted}, return_when=asyncio.FIRST_COMPLETED)
            # Both may have happened: what was found before a need is relative to content that the Standby lost.
            return None if self._interrupt.is_set() or not looking.done() else looking.result()
        finally:
            looking.cancel()
            interrupted.cancel()
            await asyncio.gather(looking, interrupted, return_exceptions=True)
