"""The Active's desk: questions to the Standby's witnesses go out here, their answers come back (``Examine``).

The Standby opens the call and keeps it; a newer call ends an older one. At most QUESTIONS_MAX are under way; of one
answer at most CHUNKS_MAX chunks wait for their reader, who holds the line up if he is slow. A call that ends makes
every waiting question fail with ``Retryable``. Runs in the engine's event loop. Sizes in bytes.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from ha_proto.sync.v1 import examine_pb2 as pb
from ha_sync.core.dataset import DatasetName
from ha_sync.core.position import Epoch
from ha_sync.errors import ProtocolFault, Retryable

QUESTIONS_MAX = 8
CHUNK_MAX = 1024 * 1024
CHUNKS_MAX = 8

Write = Callable[[pb.ExamineQuestion], Awaitable[None]]


@dataclass(slots=True)
class _Waiting:
    """A question whose answer comes in."""

    chunks: deque[bytes] = field(default_factory=deque)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    room: asyncio.Event = field(default_factory=asyncio.Event)
    complete: bool = False
    fault: str = ""


@dataclass(slots=True)
class _Line:
    """One call of the Standby."""

    write: Write
    epoch: Epoch
    waiting: dict[int, _Waiting] = field(default_factory=dict)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Desk:
    """See the module."""

    def __init__(self) -> None:
        self._line: _Line | None = None
        self._numbers = itertools.count(1)
        self._slots = asyncio.Semaphore(QUESTIONS_MAX)
        self._changed = asyncio.Event()
        self.wire_bytes = 0  # questions and answers since the engine's start
        self.begun_unix_s = 0.0  # of the last full backup: told to the Standby

    @property
    def connected(self) -> bool:
        """Whether a Standby answers."""
        return self._line is not None

    async def until_connected(self, within_s: float) -> bool:
        """Whether a Standby answers, at the latest after ``within_s``."""
        try:
            async with asyncio.timeout(within_s):
                while self._line is None:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    # ---- the call

    async def serve(self, epoch: Epoch, answers: AsyncIterator[pb.ExamineAnswer], write: Write) -> None:
        """For as long as the call lasts; ended by ``hang_up`` and by a newer call."""
        self.hang_up()
        line = self._line = _Line(write=write, epoch=epoch)
        reading = asyncio.ensure_future(self._read(line, answers))
        over = asyncio.ensure_future(line.over.wait())
        try:
            await write(pb.ExamineQuestion(epoch=epoch, begun_unix_s=self.begun_unix_s))
            self._changed.set()
            await asyncio.wait({reading, over}, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
        finally:
            for task in (reading, over):
                task.cancel()
            await asyncio.gather(reading, over, return_exceptions=True)
            self._end(line)

    def hang_up(self) -> None:
        """Ends the call: this node is not the Active any more."""
        if self._line is not None:
            self._end(self._line)

    def _end(self, line: _Line) -> None:
        line.over.set()
        for waiting in line.waiting.values():
            waiting.fault = waiting.fault or "the standby went away"
            waiting.arrived.set()
        line.waiting.clear()
        if self._line is line:
            self._line = None

    async def _read(self, line: _Line, answers: AsyncIterator[pb.ExamineAnswer]) -> None:
        async for answer in answers:
            self.wire_bytes += answer.ByteSize()
            waiting = line.waiting.get(answer.id)
            if waiting is None:
                continue  # nobody waits for it any more
            if len(answer.chunk) > CHUNK_MAX:
                raise ProtocolFault("refused an answer", reason=f"a chunk of {len(answer.chunk)} bytes")
            if answer.chunk:
                waiting.chunks.append(answer.chunk)
            waiting.fault = answer.error
            waiting.complete = answer.last
            waiting.arrived.set()
            while len(waiting.chunks) >= CHUNKS_MAX and answer.id in line.waiting:
                waiting.room.clear()
                await waiting.room.wait()

    # ---- asking

    def peer(self, dataset: DatasetName) -> DeskPeer:
        """The other node's witness of a dataset: see ``core.examine.Peer``."""
        return DeskPeer(self, dataset)

    async def ask(self, dataset: DatasetName, body: bytes) -> AsyncIterator[bytes]:
        """See ``core.examine.Peer.ask``."""
        async with self._slots:
            line = self._line
            if line is None:
                raise Retryable("cannot ask", subject=dataset, reason="no standby is connected")
            number = next(self._numbers)
            waiting = line.waiting[number] = _Waiting()
            try:
                await self._put(line, pb.ExamineQuestion(id=number, epoch=line.epoch, dataset=dataset, body=body))
                while True:
                    if waiting.chunks:
                        yield waiting.chunks.popleft()
                        waiting.room.set()
                        continue
                    if waiting.fault:
                        raise Retryable("got no answer about", subject=dataset, reason=waiting.fault)
                    if waiting.complete:
                        return
                    waiting.arrived.clear()
                    await waiting.arrived.wait()
            finally:
                line.waiting.pop(number, None)
                waiting.room.set()

    async def announce(self, begun_unix_s: float) -> None:
        """A full backup began: the Standby notes it, for it may be the Active of the next one."""
        self.begun_unix_s = begun_unix_s
        line = self._line
        if line is not None:
            await self._put(line, pb.ExamineQuestion(epoch=line.epoch, begun_unix_s=begun_unix_s))

    async def _put(self, line: _Line, question: pb.ExamineQuestion) -> None:
        self.wire_bytes += question.ByteSize()
        async with line.writing:  # a call takes one write at a time
            await line.write(question)


class DeskPeer:
    """One dataset's witness, as its examiner sees it."""

    def __init__(self, desk: Desk, dataset: DatasetName) -> None:
        self._desk = desk
        self._dataset = dataset

    def ask(self, question: bytes) -> AsyncIterator[bytes]:
        """See ``core.examine.Peer``."""
        return self._desk.ask(self._dataset, question)
