"""The call by which the Active asks the Standby: several questions at once, bounded, and none left without an end."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

import pytest

from ha_proto.sync.v1 import examine_pb2 as pb
from ha_sync.backup.full import answering as answering_module
from ha_sync.backup.full.answering import Answerer, Member, refuse_unsuited
from ha_sync.backup.full.desk import CHUNKS_MAX, Desk
from ha_sync.core.dataset import DatasetName, Role
from ha_sync.core.position import Epoch
from ha_sync.errors import Fenced, HaSyncError, OperatorNeeded, PeerUnreachable, ProtocolFault, Retryable

pytestmark = pytest.mark.req("R23")

CLUSTER = "c"


class Line:
    """Both ends of one call, in memory. Sizes are not bounded: what is bounded is what a desk lets wait."""

    def __init__(self, desk: Desk, epoch: int) -> None:
        self._desk = desk
        self._epoch = Epoch(epoch)
        self._up: asyncio.Queue[pb.ExamineAnswer | None] = asyncio.Queue()
        self._down: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.task: asyncio.Task[None] | None = None

    async def read(self) -> bytes | None:
        return await self._down.get()

    async def write(self, data: bytes) -> None:
        answer = pb.ExamineAnswer.FromString(data)
        if answer.HasField("hello"):
            refuse_unsuited(answer.hello, cluster_id=CLUSTER, epoch=self._epoch)
            self.task = asyncio.create_task(self._serve())
        else:
            self._up.put_nowait(answer)

    async def _serve(self) -> None:
        async def answers() -> AsyncIterator[pb.ExamineAnswer]:
            while (answer := await self._up.get()) is not None:
                yield answer

        async def ask(question: pb.ExamineQuestion) -> None:
            self._down.put_nowait(question.SerializeToString())

        await self._desk.serve(self._epoch, answers(), ask)
        self._down.put_nowait(None)

    def cut(self) -> None:
        """The network is gone: both ends learn of it."""
        self._up.put_nowait(None)


class Standby:
    """A node with one witness; ``lines`` are the calls it opened."""

    def __init__(self, desk: Desk, *, epoch: int = 4) -> None:
        self.role: Role | None = Role.STANDBY
        self.promised = Epoch(0)
        self.served = Epoch(0)
        self.lines: list[Line] = []
        self.noted: list[float] = []
        self.asked: list[bytes] = []
        self.rested = 0
        self._desk = desk
        self._epoch = epoch

    async def promise(self, epoch: Epoch) -> None:
        self.promised = epoch

    def witness(self, name: DatasetName) -> Standby:
        if name != "known":
            raise Retryable("cannot answer about", subject=name)
        return self

    def answer(self, question: bytes) -> Iterator[bytes]:
        self.asked.append(question)
        if question == b"broken":
            raise ProtocolFault("cannot answer")
        if question == b"bug":
            raise ValueError("a bug")
        count = int(question)
        for number in range(count):
            yield b"%d" % number

    def rest(self) -> None:
        self.rested += 1

    @contextlib.asynccontextmanager
    async def dial(self) -> AsyncIterator[Line]:
        line = Line(self._desk, self._epoch)
        self.lines.append(line)
        try:
            yield line
        finally:
            if line.task is not None:
                line.task.cancel()

    def answerer(self) -> Answerer:
        member = Member(cluster_id=CLUSTER, node_id="n")
        return Answerer(self, member=lambda: member, dial=self.dial, noted=self.noted.append)


@contextlib.asynccontextmanager
async def joined(desk: Desk, standby: Standby) -> AsyncIterator[None]:
    task = asyncio.create_task(standby.answerer().run())
    try:
        async with asyncio.timeout(30):
            assert await desk.until_connected(20)
            yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def asked(desk: Desk, question: bytes, *, dataset: str = "known") -> list[bytes]:
    return [chunk async for chunk in desk.peer(DatasetName(dataset)).ask(question)]


async def test_several_questions_are_answered_each_whole_and_in_order() -> None:
    desk = Desk()
    standby = Standby(desk)
    async with joined(desk, standby):
        answers = await asyncio.gather(*(asked(desk, b"%d" % count) for count in (0, 3, 100, 1)))
    assert answers == [[b"%d" % n for n in range(count)] for count in (0, 3, 100, 1)]
    assert standby.promised == 4
    async with asyncio.timeout(20):
        while not standby.rested:  # in the witness's own thread
            await asyncio.sleep(0.005)
    assert standby.rested == 1


async def test_what_cannot_be_answered_is_told_and_the_call_goes_on() -> None:
    desk = Desk()
    standby = Standby(desk)
    async with joined(desk, standby):
        for question, dataset in ((b"broken", "known"), (b"bug", "known"), (b"1", "unknown")):
            with pytest.raises(Retryable):
                await asked(desk, question, dataset=dataset)
        assert await asked(desk, b"2") == [b"0", b"1"]
    assert len(standby.lines) == 1


async def test_a_reader_that_stops_in_the_middle_holds_nobody_up() -> None:
    desk = Desk()
    async with joined(desk, Standby(desk)):
        answer = desk.peer(DatasetName("known")).ask(b"%d" % (10 * CHUNKS_MAX))
        assert await anext(answer) == b"0"
        await answer.aclose()  # type: ignore[attr-defined]
        assert await asked(desk, b"2") == [b"0", b"1"]


async def test_a_call_that_ends_fails_every_waiting_question_and_is_opened_again() -> None:
    desk = Desk()
    standby = Standby(desk)
    async with joined(desk, standby):
        slow = desk.peer(DatasetName("known")).ask(b"%d" % (100 * CHUNKS_MAX))
        assert await anext(slow) == b"0"
        standby.lines[0].cut()
        with pytest.raises(Retryable):
            async for _ in slow:
                pass
        assert not desk.connected or len(standby.lines) > 1
        assert await desk.until_connected(20)
        assert await asked(desk, b"1") == [b"0"]


async def test_without_a_standby_a_question_fails_at_once() -> None:
    desk = Desk()
    with pytest.raises(Retryable, match="no standby"):
        await asked(desk, b"1")
    assert not await desk.until_connected(0.01)


async def test_nothing_of_a_lower_epoch_is_answered() -> None:
    desk = Desk()
    standby = Standby(desk, epoch=4)
    async with joined(desk, standby):
        assert await asked(desk, b"1") == [b"0"]
        standby.promised = Epoch(6)
        with pytest.raises(HaSyncError):
            await asked(desk, b"1")
    assert standby.asked == [b"1"]


@pytest.mark.parametrize(
    ("hello", "error"),
    [
        (pb.ExamineHello(protocol=2, cluster_id=CLUSTER), OperatorNeeded),
        (pb.ExamineHello(protocol=1, cluster_id="another"), ProtocolFault),
        (pb.ExamineHello(protocol=1, cluster_id=CLUSTER, promised_epoch=5), Fenced),
        (pb.ExamineHello(protocol=1, cluster_id=CLUSTER, served_epoch=5), Fenced),
    ],
)
def test_a_standby_that_does_not_fit_is_refused(hello: pb.ExamineHello, error: type[HaSyncError]) -> None:
    with pytest.raises(error):
        refuse_unsuited(hello, cluster_id=CLUSTER, epoch=Epoch(4))


async def test_the_standby_notes_when_the_last_full_backup_began() -> None:
    desk = Desk()
    desk.begun_unix_s = 1000.0
    standby = Standby(desk)
    async with joined(desk, standby):
        await desk.announce(2000.0)
        await asked(desk, b"1")
    assert standby.noted == [1000.0, 2000.0]


async def test_the_standby_knows_that_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    standby = Standby(desk)
    answerer = standby.answerer()
    standby.answerer = lambda: answerer  # type: ignore[method-assign]
    async with joined(desk, standby):
        assert answerer.answering == ""
        await asked(desk, b"1")
        assert answerer.answering == "known"
        monkeypatch.setattr(answering_module, "LATE_S", -1.0)
        assert answerer.answering == ""


async def test_a_node_that_is_not_standby_dials_nobody() -> None:
    desk = Desk()
    standby = Standby(desk)
    standby.role = Role.ACTIVE
    task = asyncio.create_task(standby.answerer().run())
    assert not await desk.until_connected(0.2)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert standby.lines == []


async def test_a_refusal_is_tried_again_later() -> None:
    desk = Desk()
    standby = Standby(desk, epoch=4)
    standby.promised = Epoch(8)
    task = asyncio.create_task(standby.answerer().run())
    while len(standby.lines) < 2:
        await asyncio.sleep(0.01)
    standby.promised = Epoch(3)
    async with asyncio.timeout(30):
        assert await desk.until_connected(20)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert issubclass(PeerUnreachable, Retryable)
