"""The Standby's half of a stream: subscribes one dataset, feeds its sink, acknowledges, and begins again for ever.

Invariants: nothing of a lower epoch than the highest one seen reaches the sink; the epoch of an answer is stored before
a frame of it is taken; an acknowledgement says `durable` only for what the sink called durable. Whatever goes wrong,
the loop dials again, with a pause that grows to RETRY_MAX_S; at once where the stream only has to go by another path:
it goes on after what was applied. Runs in the engine's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.core.dataset import DatasetName, DatasetState, Sink
from ha_sync.core.frame import Frame
from ha_sync.core.position import Answer, Epoch, Position
from ha_sync.errors import Fenced, HaSyncError, OperatorNeeded, PeerUnreachable, ProtocolFault
from ha_sync.stream.wire import PROTOCOL, AnswerMessage, EncodedFrame, decode, position_to_wire

log = logging.getLogger(__name__)

RETRY_MIN_S = 0.02
RETRY_MAX_S = 1.0
OPERATOR_RETRY_S = 5.0
"""Pause before trying again what only a person can mend: it may have been mended."""

INLINE_MAX = 64 * 1024
ACK_BYTES = 256 * 1024
ACK_DELAY_S = 0.05
"""Released memory is acknowledged in steps of ACK_BYTES, with the next durable position, or after this delay."""


QUIET_S = 0.5
QUIET_WAIT_S = 60.0
"""A stream that is to go by a better path waits until nothing came for QUIET_S, or so long; a full sync ends first."""


class Call(Protocol):
    """A bidirectional call of bytes, as ``grpc.aio`` gives it."""

    @property
    def address(self) -> str:
        """host:port of the Active's end."""

    async def read(self) -> bytes | None:
        """The next message; None at the end."""

    async def write(self, data: bytes) -> None:
        """Sends a message; returns when the transport took it."""

    async def time_to_leave(self, quiet: Callable[[], bool]) -> str:
        """Returns when the stream has to go by another path, at once or when it is ``quiet``, and why."""


Dial = Callable[[], contextlib.AbstractAsyncContextManager[Call]]
"""Opens a call to the Active; raises PeerUnreachable, Refused or another HaSyncError with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """Who subscribes to what."""

    dataset: DatasetName
    kind: str
    cluster_id: str
    node_id: str


class Epochs(Protocol):
    """The node's durable epochs."""

    @property
    def promised(self) -> Epoch:
        """The highest epoch seen."""

    @property
    def served(self) -> Epoch:
        """The last epoch in which this node was Active."""

    async def promise(self, epoch: Epoch) -> None:
        """Stores a higher one durably before it returns."""


class _SinkEvents:
    """What the sink said since it was last asked."""

    def __init__(self, sink: Sink) -> None:
        self.signal = asyncio.Event()
        self.failed = asyncio.Event()
        self._durable: Position | None = None
        self._needs: dict[bytes, None] = {}
        self._failure: Exception | None = None
        sink.on_durable(self._on_durable)
        sink.on_need(self._on_need)
        sink.on_failure(self._on_failure)

    def take_durable(self) -> Position | None:
        durable, self._durable = self._durable, None
        return durable

    def take_needs(self) -> tuple[bytes, ...]:
        needs = tuple(self._needs)
        self._needs.clear()
        return needs

    def take_failure(self) -> Exception:
        failure, self._failure = self._failure, None
        self.failed.clear()
        return failure or PeerUnreachable("lost the stream")

    def _on_durable(self, position: Position) -> None:
        self._durable = position
        self.signal.set()

    def _on_need(self, paths: tuple[bytes, ...]) -> None:
        self._needs.update(dict.fromkeys(paths))
        self.signal.set()

    def _on_failure(self, error: Exception) -> None:
        self._failure = error
        self.failed.set()


class Subscriber:
    """Keeps one sink fed."""

    def __init__(
        self,
        sink: Sink,
        subscription: Subscription,
        *,
        dial: Dial,
        epochs: Epochs,
        executor: Executor,
        booted: set[DatasetName] | None = None,
    ) -> None:
        """``booted`` has the datasets that were not connected yet since the engine began; this one is taken out."""
        self._sink = sink
        self._booted = set() if booted is None else booted
        self._events = _SinkEvents(sink)
        self._subscription = subscription
        self._dial = dial
        self._epochs = epochs
        self._executor = executor
        self.connected = False
        self.address = ""  # of the Active's end, while connected
        self.reason = "not connected yet"

    async def run(self) -> None:
        """For ever, until cancelled."""
        pause = RETRY_MIN_S
        while True:
            applied = self._sink.applied
            floor = RETRY_MIN_S
            try:
                left = await self._stream_once()
                self._disconnected(left or "the active ended the stream")
                if left:
                    pause = RETRY_MIN_S
                    continue
            except OperatorNeeded as error:
                self._disconnected(error.sentence())
                floor = OPERATOR_RETRY_S
            except HaSyncError as error:
                self._disconnected(error.sentence())
            got_on = self._sink.applied != applied  # a connection that brought nothing is not tried at once again
            pause = max(floor, RETRY_MIN_S if got_on else min(2 * pause, RETRY_MAX_S))
            await asyncio.sleep(pause)

    def _disconnected(self, reason: str) -> None:
        if self.connected or reason != self.reason:
            log.info("stream ended", extra={"dataset": self._subscription.dataset, "reason": reason})
        self.connected, self.address = False, ""
        self.reason = reason

    async def _stream_once(self) -> str:
        """Returns why another path is to be taken; "" where the Active ended the stream."""
        self._events.failed.clear()
        async with self._dial() as call:
            # Asked first: what becomes whole meanwhile is applied, which is said then.
            partials = await self._sink.partials()
            await call.write(self._subscribe(partials))
            answer = await self._answer(call)
            await self._sink.begin(answer.answer, answer.method)
            if answer.answer is Answer.COMPARE:
                await self._send_inventory(call)
            self.connected, self.address, self.reason = True, call.address, ""
            self._booted.discard(self._subscription.dataset)
            stream = _Connection(
                self._sink, call, epoch=answer.epoch, events=self._events, epochs=self._epochs, executor=self._executor
            )
            return await stream.run()

    def _subscribe(self, partials: tuple[bytes, ...]) -> bytes:
        message = pb.SubscriberMessage(
            subscribe=pb.Subscribe(
                protocol=PROTOCOL,
                cluster_id=self._subscription.cluster_id,
                node_id=self._subscription.node_id,
                dataset=self._subscription.dataset,
                kind=self._subscription.kind,
                served_epoch=self._epochs.served,
                promised_epoch=self._epochs.promised,
                applied=position_to_wire(self._sink.applied),
                need=self._events.take_needs(),
                partials=partials,
                booted=self._subscription.dataset in self._booted,
            )
        )
        return message.SerializeToString()

    async def _answer(self, call: Call) -> AnswerMessage:
        data = await call.read()
        if data is None:
            raise PeerUnreachable("lost the active", reason="it closed the call before it answered")
        answer = decode(data)
        if not isinstance(answer, AnswerMessage):
            raise ProtocolFault("refused the stream", reason="its first message is not an answer")
        if answer.epoch < self._epochs.promised:
            raise Fenced(
                "refused the active",
                subject=f"of epoch {answer.epoch}",
                reason=f"epoch {self._epochs.promised} was seen",
                hint="a node of a lower epoch is no longer the Active",
            )
        await self._epochs.promise(answer.epoch)
        return answer

    async def _send_inventory(self, call: Call) -> None:
        async for chunk in self._sink.inventory():
            await call.write(pb.SubscriberMessage(inventory=pb.Inventory(chunk=chunk)).SerializeToString())
        await call.write(pb.SubscriberMessage(inventory=pb.Inventory(last=True)).SerializeToString())


class _Connection:
    """One connection after its answer: a reader and an acknowledger."""

    def __init__(
        self, sink: Sink, call: Call, *, epoch: Epoch, events: _SinkEvents, epochs: Epochs, executor: Executor
    ) -> None:
        self._sink = sink
        self._call = call
        self._epoch = epoch
        self._events = events
        self._epochs = epochs
        self._executor = executor
        self._received = 0
        self._received_told = 0
        self._starved_s = 0.0
        self._reminder: asyncio.TimerHandle | None = None
        self._came_at = time.monotonic()  # the newest frame
        self._leaving_since: float | None = None  # a better path waits

    async def run(self) -> str:
        """Returns when the Active ends the stream ("") or it has to go by another path; raises what ended it else."""
        works = (self._read(), self._acknowledge(), self._watch_failure(), self._call.time_to_leave(self._is_quiet))
        parts: list[asyncio.Future[str | None]] = [asyncio.ensure_future(work) for work in works]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            return next((left for part in done if (left := part.result())), "")
        finally:
            if self._reminder is not None:
                self._reminder.cancel()
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            since = time.monotonic()
            data = await self._call.read()
            self._starved_s += time.monotonic() - since
            if data is None:
                return
            self._came_at = time.monotonic()
            frame = await self._frame(self._checked(decode(data)))
            await self._sink.receive(frame)
            self._received += frame.size
            self._released()

    def _is_quiet(self) -> bool:
        """Asked while a better path waits: moving now costs nothing."""
        now = time.monotonic()
        self._leaving_since = self._leaving_since or now
        if self._sink.report().state is DatasetState.SYNCING:
            return False
        return now - self._came_at >= QUIET_S or now - self._leaving_since >= QUIET_WAIT_S

    def _checked(self, message: AnswerMessage | EncodedFrame) -> EncodedFrame:
        if not isinstance(message, EncodedFrame):
            raise ProtocolFault("refused the stream", reason="a second answer")
        if message.position.epoch != self._epoch or self._epoch < self._epochs.promised:
            raise Fenced(
                "refused a frame",
                subject=f"of epoch {message.position.epoch}",
                reason=f"epoch {max(self._epoch, self._epochs.promised)} was seen",
            )
        return message

    async def _frame(self, message: EncodedFrame) -> Frame:
        if not message.compressed or message.raw_size <= INLINE_MAX:
            return message.frame()
        return await asyncio.get_running_loop().run_in_executor(self._executor, message.frame)

    def _released(self) -> None:
        if self._received - self._received_told >= ACK_BYTES:
            self._events.signal.set()
        elif self._reminder is None:
            self._reminder = asyncio.get_running_loop().call_later(ACK_DELAY_S, self._remind)

    def _remind(self) -> None:
        self._reminder = None
        if self._received > self._received_told:
            self._events.signal.set()

    async def _acknowledge(self) -> None:
        while True:
            await self._events.signal.wait()
            self._events.signal.clear()
            wanted = self._events.take_needs()
            if wanted:
                await self._write(pb.SubscriberMessage(need=pb.Need(paths=wanted)))
            await self._write(pb.SubscriberMessage(ack=self._ack()))

    def _ack(self) -> pb.Ack:
        self._received_told = self._received
        ack = pb.Ack(received_bytes=self._received, starved_ms=int(self._starved_s * 1000))
        durable = self._events.take_durable()
        if durable is not None:
            ack.durable.CopyFrom(position_to_wire(durable))
        return ack

    async def _write(self, message: pb.SubscriberMessage) -> None:
        await self._call.write(message.SerializeToString())

    async def _watch_failure(self) -> None:
        await self._events.failed.wait()
        raise self._events.take_failure()
