"""The Active's half of a stream: one call of one dataset, from `Subscribe` to the end of the connection.

Order of messages: docs/protocol.md. Frames leave in the order of their source; a frame is sent when the call's window
and the node's gate let it through; acknowledgements release both. Whatever ends the call, the session is closed and
what was not acknowledged goes again to the next one. Bytes; runs in the engine's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.config import Compression, StreamSettings
from ha_sync.core.dataset import Priority, Session, Source
from ha_sync.core.frame import Frame
from ha_sync.core.position import Answer, Epoch
from ha_sync.errors import ProtocolFault
from ha_sync.stream.bottleneck import Bottleneck
from ha_sync.stream.full_sync import FullSync, FullSyncWatch, Nobody
from ha_sync.stream.gate import BULK, Gate
from ha_sync.stream.window import Window
from ha_sync.stream.wire import AnswerMessage, encode_answer, encode_frame, position_from_wire

log = logging.getLogger(__name__)

INLINE_MAX = 64 * 1024
"""A payload up to this is compressed on the event loop (0.2 ms); a larger one in the executor."""

NEED_MAX = 10_000
"""Objects in one `Need`; the sink asks again for the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlet:
    """What all publishers of a node share."""

    gate: Gate
    executor: Executor
    settings: StreamSettings


class Publisher:
    """Serves one subscriber of one source."""

    def __init__(
        self,
        source: Source,
        *,
        priority: Priority,
        epoch: Epoch,
        outlet: Outlet,
        write: Callable[[bytes], Awaitable[None]],
        acknowledged: Callable[[], None],
        full_syncs: FullSyncWatch | None = None,
    ) -> None:
        self._source = source
        self._priority = priority
        self._epoch = epoch
        self._outlet = outlet
        self._write = write
        self._acknowledged = acknowledged
        self._full_syncs = full_syncs or Nobody()
        self._full_sync: FullSync | None = None
        self._window = Window(outlet.settings.window_mib * 1024 * 1024)
        self._room = asyncio.Event()
        self._gate_held = 0
        self._bottleneck = Bottleneck()

    async def serve(self, subscribe: pb.Subscribe, messages: AsyncIterator[pb.SubscriberMessage]) -> None:
        """Runs until the subscriber goes, the source ends or the caller cancels."""
        session = await self._source.subscribe(position_from_wire(subscribe.applied))
        try:
            if subscribe.need:
                session.need(tuple(subscribe.need))
            if subscribe.partials:
                session.partials(tuple(subscribe.partials))
            answer = AnswerMessage(answer=session.answer, epoch=self._epoch, method=session.method)
            await self._write(encode_answer(answer))
            if session.answer is Answer.COMPARE:
                sync = self._full_sync = FullSync(self._full_syncs, subscribe, absent=self._is_absent)
                await session.compare(_counted(_inventory(messages), sync))
            await self._exchange(session, messages)
        finally:
            if self._full_sync is not None:
                self._full_sync.close()
            self._outlet.gate.leave(self._gate_held)
            self._gate_held = 0
            await session.close()

    def _is_absent(self) -> bool:
        return self._source.report().absent

    async def _exchange(self, session: Session, messages: AsyncIterator[pb.SubscriberMessage]) -> None:
        sending = asyncio.ensure_future(self._send(session))
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._until_done(sending))
                tasks.create_task(self._take(session, messages, sending))
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            sending.cancel()

    @staticmethod
    async def _until_done(sending: asyncio.Future[None]) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await sending

    async def _take(
        self,
        session: Session,
        messages: AsyncIterator[pb.SubscriberMessage],
        sending: asyncio.Future[None],
    ) -> None:
        async for message in messages:
            match message.WhichOneof("message"):
                case "ack":
                    self._released(self._window.received(message.ack.received_bytes))
                    self._bottleneck.starved(message.ack.starved_ms / 1000, at=time.monotonic())
                    if message.ack.HasField("durable"):
                        durable = position_from_wire(message.ack.durable)
                        session.acknowledge(durable)
                        if self._full_sync is not None:
                            self._full_sync.acknowledged(durable)
                        self._acknowledged()
                case "need":
                    session.need(tuple(message.need.paths[:NEED_MAX]))
                case other:
                    raise ProtocolFault("refused a message", reason=f"{other!r} has no place here")
        sending.cancel()  # the subscriber closed its half: nobody would acknowledge what follows

    def _released(self, size: int) -> None:
        self._gate_held -= size
        self._outlet.gate.leave(size)
        self._room.set()

    async def _send(self, session: Session) -> None:
        async for frame in session.frames():
            await self._send_frame(frame)

    async def _send_frame(self, frame: Frame) -> None:
        size = frame.size
        bulk = not frame.consistent
        while not self._window.fits(size):
            self._room.clear()
            since = time.monotonic()
            await self._room.wait()
            self._bottleneck.waited(time.monotonic() - since)
        await self._outlet.gate.enter(size, self._priority + (BULK if bulk else 0))
        self._gate_held += size
        data = await self._encoded(frame)
        self._window.sent(size)
        if self._full_sync is not None:
            self._full_sync.sent(frame, len(data))
        await self._write(data)
        if bulk and self._outlet.settings.bulk_mib_per_s:
            await asyncio.sleep(size / (self._outlet.settings.bulk_mib_per_s * 1024 * 1024))

    async def _encoded(self, frame: Frame) -> bytes:
        small = len(frame.payload) <= INLINE_MAX
        match self._outlet.settings.compression:
            case Compression.NEVER:
                compress = False
            case Compression.ALWAYS:
                compress = True
            case Compression.AUTO:
                compress = small or self._bottleneck.is_link
        if small or not compress:
            return encode_frame(frame, compress=compress)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._outlet.executor, lambda: encode_frame(frame, compress=True))


async def _inventory(messages: AsyncIterator[pb.SubscriberMessage]) -> AsyncIterator[bytes]:
    async for message in messages:
        if message.WhichOneof("message") != "inventory":
            raise ProtocolFault("refused a message", reason="an inventory was asked for and not sent")
        if message.inventory.chunk:
            yield message.inventory.chunk
        if message.inventory.last:
            return
    raise ProtocolFault("refused an inventory", reason="it ended before its last part")


async def _counted(chunks: AsyncIterator[bytes], full_sync: FullSync) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        full_sync.inventory(len(chunk))
        yield chunk
