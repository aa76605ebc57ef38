"""The stream's two halves in conversation, without a network: resume, compare, fencing, need, failing sinks."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ha_sync.config import Compression, StreamSettings
from ha_sync.core.dataset import DatasetState
from ha_sync.core.frame import Frame
from ha_sync.core.position import Answer, Epoch
from ha_sync.errors import RepairNeeded, Retryable
from ha_sync.stream import subscriber as subscribing
from tests.support.memory_dataset import MemorySink, MemorySource
from tests.support.stream_wire import MemoryEpochs, Wire


@pytest.mark.req("R20", "R22")
async def test_a_new_standby_compares_first_and_then_gets_everything_in_order():
    source, sink = MemorySource(), MemorySink()
    wire = Wire(source)
    async with wire.feeding(sink):
        for number in range(50):
            await source.write(b"%d" % number)
        await sink.until(50)
    assert sink.begun == [(Answer.COMPARE, "rows")]
    assert source.inventories == [[b"one", b"two"]]
    assert sink.content == [b"%d" % number for number in range(50)]


@pytest.mark.req("R22")
async def test_the_active_learns_what_is_durable():
    source, sink = MemorySource(), MemorySink()
    async with Wire(source).feeding(sink):
        await source.write(b"x")
        await sink.until(1)
        async with asyncio.timeout(5):
            while source.acknowledged.sequence != 1:
                await asyncio.sleep(0)


@pytest.mark.req("R22")
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32))
def test_whatever_is_cut_everything_arrives_once_and_in_order(seed):
    async def run() -> None:
        rng = random.Random(seed)
        source, sink = MemorySource(frames_per_group=rng.randint(1, 3)), MemorySink()
        wire = Wire(source, settings=StreamSettings(window_mib=1, compression=rng.choice(list(Compression))))
        async with wire.feeding(sink):
            for number in range(60):
                await source.write(b"%d:" % number + rng.randbytes(rng.choice([0, 10, 70_000])))
                for _ in range(rng.choice([0, 0, 1, 5])):
                    await asyncio.sleep(0)
                if rng.random() < 0.08:
                    wire.cut()
                if rng.random() < 0.03:
                    sink.fail_next = rng.choice([Retryable("disk full"), RepairNeeded("mismatch")])
            await sink.until(60)
        assert sink.content == source.journal

    asyncio.run(run())


@pytest.mark.req("R22")
async def test_a_group_received_in_part_is_dropped_at_a_cut():
    source, sink = MemorySource(frames_per_group=3), MemorySink()
    wire = Wire(source)
    receive, cuts = sink.receive, [b"b"]

    async def cut_after_the_second_frame_of_b(frame: Frame) -> None:
        await receive(frame)
        if sink.group == [b"b", b"b"] and cuts:
            cuts.clear()
            wire.cut()

    sink.receive = cut_after_the_second_frame_of_b
    async with wire.feeding(sink):
        await source.write(b"a")
        await source.write(b"b")
        await sink.until(2)
    assert sink.content == [b"a", b"b"]
    assert sink.begun[1:] == [(Answer.RESUME, "rows")]


@pytest.mark.req("R22")
async def test_an_active_of_a_lower_epoch_is_never_applied():
    source, sink = MemorySource(epoch=4), MemorySink()
    wire = Wire(source)
    epochs = MemoryEpochs(promised=Epoch(5))
    async with wire.feeding(sink, epochs) as subscriber:
        await source.write(b"stale")
        async with asyncio.timeout(5):
            while "epoch 5" not in subscriber.reason:
                await asyncio.sleep(0.001)
        assert sink.content == []
        source.epoch = Epoch(6)
        await sink.until(1)
    assert epochs.promised == 6


async def test_the_epoch_of_the_answer_is_promised_before_a_frame_is_taken():
    source, sink = MemorySource(epoch=7), MemorySink()
    epochs = MemoryEpochs()
    promised_at_begin: list[int] = []
    begin = sink.begin

    async def noting(answer: Answer, method: str) -> None:
        promised_at_begin.append(epochs.promised)
        await begin(answer, method)

    sink.begin = noting
    async with Wire(source).feeding(sink, epochs):
        await source.write(b"x")
        await sink.until(1)
    assert promised_at_begin == [7]


@pytest.mark.req("R15")
async def test_what_the_sink_needs_is_asked_for_while_connected_and_again_when_subscribing():
    source, sink = MemorySource(), MemorySink()
    wire = Wire(source)
    wire.up = False
    async with wire.feeding(sink):
        sink.ask_for(b"tampered")
        wire.up = True
        await source.write(b"x")
        await sink.until(1)
        assert list(wire.subscribes[-1].need) == [b"tampered"]
        sink.ask_for(b"later")
        async with asyncio.timeout(5):
            while source.needed != [b"tampered", b"later"]:
                await asyncio.sleep(0)


@pytest.mark.req("R9", "R15")
async def test_the_partials_of_the_sink_are_told_when_it_subscribes():
    source, sink = MemorySource(), MemorySink()
    sink.told = (b"of one file", b"of another")
    async with Wire(source).feeding(sink):
        await source.write(b"x")
        await sink.until(1)
    assert source.partials == [b"of one file", b"of another"]


@pytest.mark.req("R22")
async def test_a_group_that_cannot_be_made_durable_later_restarts_the_stream():
    source, sink = MemorySource(), MemorySink()
    wire = Wire(source)
    async with wire.feeding(sink) as subscriber:
        await source.write(b"x")
        await sink.until(1)
        sink.fail_later(Retryable("cannot store", reason="disk full", hint="make room"))
        async with asyncio.timeout(5):
            while wire.connections < 2:
                if subscriber.reason:
                    assert "disk full" in subscriber.reason
                await asyncio.sleep(0.001)
        await source.write(b"y")
        await sink.until(2)
    assert sink.content == [b"x", b"y"]


async def test_a_stopped_standby_holds_back_the_active_within_the_window():
    source, sink = MemorySource(), MemorySink()
    wire = Wire(source, settings=StreamSettings(window_mib=1, compression=Compression.NEVER))
    sent: list[int] = []
    async with wire.feeding(sink):
        await source.write(b"first")
        await sink.until(1)
        sink.slow.clear()
        for _ in range(200):
            await source.write(bytes(100_000))
        for _ in range(500):
            await asyncio.sleep(0)
        sent.append(wire.outlet.gate.used)
        sink.slow.set()
        await sink.until(201)
    assert sent[0] <= 1 << 20
    assert wire.outlet.gate.used == 0


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


@pytest.mark.req("R22")
async def test_a_stream_that_goes_by_another_path_resumes_after_what_was_applied(monkeypatch):
    monkeypatch.setattr(subscribing, "QUIET_S", 0)
    source, sink = MemorySource(), MemorySink()
    wire = Wire(source)
    async with wire.feeding(sink) as subscriber:
        for number in range(30):
            await source.write(b"%d" % number)
            if number % 10 == 5:
                await sink.until(number - 2)  # there is a position; the rest is on the wire
                wire.better.set()
                await until(lambda: not wire.better.is_set())
        await sink.until(30)
        await until(lambda: subscriber.address == "memory:1")
    assert wire.connections == 4
    assert [answer for answer, _ in sink.begun] == [Answer.COMPARE, Answer.RESUME, Answer.RESUME, Answer.RESUME]
    assert sink.content == source.journal


@pytest.mark.req("R22")
async def test_a_full_sync_is_not_broken_off_for_a_better_path_nor_is_a_busy_stream(monkeypatch):
    monkeypatch.setattr(subscribing, "QUIET_S", 0)
    source, sink = MemorySource(), MemorySink()
    wire = Wire(source)
    sink.state = DatasetState.SYNCING
    async with wire.feeding(sink) as subscriber:
        await source.write(b"0")
        await sink.until(1)
        wire.better.set()
        await until(lambda: wire.ends.asked > 10)
        assert (wire.connections, subscriber.connected) == (1, True)
        monkeypatch.setattr(subscribing, "QUIET_S", 3600)  # so it is as if a frame had come just now
        sink.state = DatasetState.STREAMING
        asked = wire.ends.asked
        await until(lambda: wire.ends.asked > asked + 10)
        assert (wire.connections, subscriber.connected) == (1, True)
        monkeypatch.setattr(subscribing, "QUIET_WAIT_S", 0)  # it has waited long enough
        await until(lambda: wire.connections == 2)


@pytest.mark.req("R30")
async def test_a_stream_tells_its_address_while_it_is_connected_and_no_longer():
    source, sink = MemorySource(), MemorySink()
    wire = Wire(source)
    async with wire.feeding(sink) as subscriber:
        await until(lambda: subscriber.connected)
        assert subscriber.address == "memory:1"
        wire.up = False
        wire.cut()
        await until(lambda: not subscriber.connected)
        assert subscriber.address == ""
