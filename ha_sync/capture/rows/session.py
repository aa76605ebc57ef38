"""One subscriber's stream of batches from a rows source.

At most ``IN_FLIGHT_MAX`` batches are built and not acknowledged: while one travels the next may be built, and under
load the log is read in larger and larger batches instead of piling up in memory.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.capture.rows.compare import Inventory
from ha_sync.core.dataset import Session
from ha_sync.core.frame import Body, Frame
from ha_sync.core.position import Answer, Position
from ha_sync.database.image import Facts
from ha_sync.errors import RepairNeeded

if TYPE_CHECKING:
    from ha_sync.capture.rows.capture import Batch
    from ha_sync.capture.rows.source import RowsSource

IN_FLIGHT_MAX = 2


class RowsSession(Session):
    """See ``core.dataset.Session``."""

    def __init__(
        self, source: RowsSource, *, answer: Answer, applied: Position, captured: Position, inventory: Inventory
    ) -> None:
        self._source = source
        self._answer = answer
        self._journal = captured  # positions of this session count in its incarnation
        self._sent = applied.sequence if answer is Answer.RESUME else None
        self._facts: Facts | None = None
        self._inventory = inventory
        self._in_flight: deque[int] = deque()
        self._news = asyncio.Event()
        self._news.set()
        self._room = asyncio.Event()
        self._room.set()
        self._closed = False

    @property
    def answer(self) -> Answer:
        """Resume, or compare."""
        return self._answer

    @property
    def method(self) -> str:
        """How the source captures."""
        return "rows"

    @property
    def streaming(self) -> bool:
        """Whether changes are sent as they happen (the compare, if there was one, was built)."""
        return self._sent is not None and not self._closed

    async def compare(self, inventory: AsyncIterator[bytes]) -> None:
        """Takes the inventory into a temporary file."""
        async for chunk in inventory:
            await self._source.in_thread(self._inventory.take, chunk)
        await self._source.in_thread(self._inventory.complete)

    def nudge(self) -> None:
        """Something may have changed."""
        self._news.set()

    async def frames(self) -> AsyncIterator[Frame]:
        """Yields frames for ever."""
        while not self._closed:
            await self._news.wait()
            await self._room.wait()
            self._news.clear()
            if self._closed:
                return
            batch = await self._next()
            if batch is None:
                continue
            self._news.set()  # more may have been committed while this one was built
            self._take(batch)
            try:
                async for frame in self._frames_of(batch):
                    yield frame
            finally:
                if batch.image is not None:
                    batch.image.discard()

    async def _next(self) -> Batch | None:
        if self._sent is None:
            batch = await self._source.compare_batch(self._inventory)
            if batch is not None:
                await self._source.in_thread(self._inventory.discard)
        else:
            batch = await self._source.next_batch(self._sent, self._facts)
        if not self._source.captured.resumes(self._journal):
            if batch is not None and batch.image is not None:
                batch.image.discard()
            raise RepairNeeded(
                "the database or its log was replaced",
                subject=self._source.path,
                hint="it goes on by itself with a compare",
            )
        return batch

    def _take(self, batch: Batch) -> None:
        self._sent = batch.position.sequence
        self._facts = batch.facts
        self._in_flight.append(self._sent)
        if len(self._in_flight) >= IN_FLIGHT_MAX:
            self._room.clear()

    async def _frames_of(self, batch: Batch) -> AsyncIterator[Frame]:
        if batch.image is None:
            yield Frame(position=batch.position, kind=Body.NOTHING, body=b"", payload=b"", group_end=True)
            return
        slices = batch.image.slices()
        while True:
            piece = next(slices, None) if not batch.image.path else await self._source.in_thread(next, slices, None)
            if piece is None:
                return
            offset, payload, whole_hash = piece
            body = pb.RowsImage(image_bytes=batch.image.size, offset=offset, image_hash=whole_hash)
            yield Frame(
                position=batch.position,
                kind=Body.ROWS,
                body=body.SerializeToString(),
                payload=payload,
                group_end=bool(whole_hash),
            )

    def acknowledge(self, position: Position) -> None:
        """Everything up to ``position`` is durable on the Standby."""
        if self._closed or not position.resumes(self._journal):
            return
        while self._in_flight and self._in_flight[0] <= position.sequence:
            self._in_flight.popleft()
        if len(self._in_flight) < IN_FLIGHT_MAX:
            self._room.set()
        self._source.acknowledged_by(self, position)

    def need(self, paths: tuple[bytes, ...]) -> None:
        """Sends the named tables whole (an empty name: the schema and every table)."""
        if not self._closed:
            self._source.send_whole(paths)

    def partials(self, partials: tuple[bytes, ...]) -> None:
        """The Standby of rows has none."""

    async def close(self) -> None:
        """Ends the session."""
        if self._closed:
            return
        self._closed = True
        self._news.set()
        self._room.set()
        self._source.ended(self)
        await self._source.in_thread(self._inventory.discard)
