"""Full syncs in the backup log: when one begins and when all that differed is durable, told by the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.core.dataset import DatasetName
from ha_sync.core.frame import Body, Frame
from ha_sync.core.position import NOWHERE, Epoch, Incarnation, Position, Sequence
from ha_sync.logs.runs import Kind, LoggedRun, Result, RunLog, Trigger
from ha_sync.service.full_syncs import FullSyncs
from ha_sync.stream.full_sync import FullSync
from tests.support.memory_dataset import MemorySink, MemorySource
from tests.support.stream_wire import Wire

pytestmark = pytest.mark.req("R31")

CDR, FILES = DatasetName("cdr"), DatasetName("files")


class Watch:
    """Keeps what a stream told."""

    def __init__(self) -> None:
        self.began_with: list[tuple[str, str, bool]] = []
        self.ends: asyncio.Queue[tuple[str, bool, int, int]] = asyncio.Queue()

    def began(self, dataset: DatasetName, *, peer: str, booted: bool, absent: Callable[[], bool]) -> None:
        self.began_with.append((dataset, peer, booted))

    def ended(self, dataset: DatasetName, *, complete: bool, sent_bytes: int, inventory_bytes: int) -> None:
        self.ends.put_nowait((dataset, complete, sent_bytes, inventory_bytes))


def stream() -> tuple[MemorySource, MemorySink, Wire, Watch]:
    source, watch = MemorySource(), Watch()
    wire = Wire(source)
    wire.full_syncs = watch
    return source, MemorySink(), wire, watch


async def test_a_full_sync_is_complete_when_all_that_differed_is_durable_on_the_standby() -> None:
    source, sink, wire, watch = stream()
    sink.slow.clear()
    async with wire.feeding(sink), asyncio.timeout(20):
        await source.write(b"x" * 100)
        while not watch.began_with:
            await asyncio.sleep(0)
        assert watch.ends.empty()  # sent, and not durable there
        sink.slow.set()
        dataset, complete, sent_bytes, inventory_bytes = await watch.ends.get()
    assert watch.began_with == [("memory", "n", True)]
    assert (dataset, complete, inventory_bytes) == ("memory", True, len(b"one" + b"two"))
    assert sent_bytes > 0
    assert watch.ends.empty()  # once, whatever comes after


async def test_what_is_live_after_a_full_sync_is_no_part_of_it() -> None:
    source, sink, wire, watch = stream()
    async with wire.feeding(sink), asyncio.timeout(20):
        await source.write(b"a")
        _, _, sent_bytes, _ = await watch.ends.get()
        await source.write(b"b" * 10_000)
        await sink.until(2)
    assert sent_bytes < 1000
    assert len(watch.began_with) == 1


async def test_a_full_sync_whose_stream_breaks_is_not_complete_and_begins_again_without_a_boot() -> None:
    source, sink, wire, watch = stream()
    sink.slow.clear()
    async with wire.feeding(sink), asyncio.timeout(20):
        await source.write(b"a")
        while not watch.began_with:
            await asyncio.sleep(0)
        while wire.booted:  # until the subscriber counts as connected
            await asyncio.sleep(0)
        wire.cut()
        assert (await watch.ends.get())[:2] == ("memory", False)
        sink.slow.set()
        assert (await watch.ends.get())[:2] == ("memory", True)
    assert watch.began_with == [("memory", "n", True), ("memory", "n", False)]


async def test_a_stream_that_resumes_is_no_full_sync() -> None:
    source, sink, wire, watch = stream()
    await source.write(b"a")
    sink.applied = source.at(1)
    async with wire.feeding(sink):
        await source.write(b"b")
        await sink.until(1)
    assert watch.began_with == []
    assert watch.ends.empty()


# ---- into the log


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RunLog]:
    made = RunLog(str(tmp_path / "backup.db"), report=lambda *_event: None)
    yield made
    made.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def syncs(log: RunLog, clock: Clock) -> FullSyncs:
    return FullSyncs(log, settle_s=0.0, monotonic=clock)


def begin(syncs: FullSyncs, dataset: DatasetName, *, booted: bool, absent: Callable[[], bool] = lambda: False) -> None:
    syncs.began(dataset, peer="n-2", booted=booted, absent=absent)


def end(syncs: FullSyncs, dataset: DatasetName, *, complete: bool = True) -> None:
    syncs.ended(dataset, complete=complete, sent_bytes=1000, inventory_bytes=10)


async def ended(log: RunLog, number: int = 1) -> list[LoggedRun]:
    """Until so many runs have ended."""
    async with asyncio.timeout(20):
        while True:
            found = log.query()
            if sum(run.result is not Result.RUNNING for run in found) >= number:
                return found
            await asyncio.sleep(0)


async def test_datasets_that_overlap_are_one_run_that_ends_with_the_last(
    log: RunLog, syncs: FullSyncs, clock: Clock
) -> None:
    begin(syncs, CDR, booted=True)
    clock.now += 1
    begin(syncs, FILES, booted=True)
    end(syncs, CDR)
    (going,) = log.query()
    assert (going.kind, going.trigger, going.result) == (Kind.FULL_SYNC, Trigger.BOOT, Result.RUNNING)
    clock.now += 4
    end(syncs, FILES)
    clock.now += 60  # what the settling takes is no part of it
    (run,) = await ended(log)
    assert (run.result, run.peer, run.took_s, run.tally.bytes_sent) == (Result.DONE, "n-2", 5.0, 2000)
    assert run.facts == {"datasets": "cdr, files", "inventory_bytes": "20"}


async def test_a_dataset_that_comes_before_the_run_has_settled_belongs_to_it(log: RunLog, syncs: FullSyncs) -> None:
    begin(syncs, CDR, booted=False)
    end(syncs, CDR, complete=False)
    begin(syncs, CDR, booted=False)  # its stream came again
    end(syncs, CDR)
    (run,) = await ended(log)
    assert (run.trigger, run.result, run.error) == (Trigger.REJOIN, Result.DONE, "")


async def test_what_the_active_turns_out_to_have_nothing_of_keeps_no_run_open(log: RunLog, syncs: FullSyncs) -> None:
    there = True
    begin(syncs, CDR, booted=False, absent=lambda: not there)
    begin(syncs, FILES, booted=False)
    end(syncs, FILES)
    for _ in range(5):
        await asyncio.sleep(0)
    assert [run.result for run in log.query()] == [Result.RUNNING]
    there = False
    (run,) = await ended(log)
    assert (run.result, run.facts["datasets"]) == (Result.DONE, "files")
    end(syncs, CDR)  # it came to be, long after


@pytest.mark.parametrize(("other", "result"), [(True, Result.PARTIAL), (False, Result.FAILED)])
async def test_a_stream_that_ends_before_all_is_there_is_named(
    log: RunLog, syncs: FullSyncs, other: bool, result: Result
) -> None:
    begin(syncs, CDR, booted=False)
    begin(syncs, FILES, booted=False)
    end(syncs, CDR, complete=other)
    end(syncs, FILES, complete=False)
    (run,) = await ended(log)
    assert run.result is result
    assert run.error.endswith(": files" if other else ": cdr, files")


async def test_the_next_full_sync_after_a_restore_says_so_and_the_one_after_it_does_not(
    log: RunLog, syncs: FullSyncs
) -> None:
    begin(syncs, CDR, booted=False)
    syncs.restored()
    begin(syncs, FILES, booted=False)
    end(syncs, CDR)  # of the run that the restore cut short
    end(syncs, FILES)
    await ended(log, 2)
    begin(syncs, CDR, booted=False)
    end(syncs, CDR)
    runs = await ended(log, 3)
    assert [(run.trigger, run.result) for run in runs] == [
        (Trigger.REJOIN, Result.CANCELLED),
        (Trigger.RESTORE, Result.DONE),
        (Trigger.REJOIN, Result.DONE),
    ]


async def test_an_engine_that_stops_leaves_no_run_open(log: RunLog, syncs: FullSyncs) -> None:
    begin(syncs, CDR, booted=False)
    end(syncs, CDR)
    syncs.close()  # complete, and only settling
    begin(syncs, CDR, booted=False)
    syncs.close()
    syncs.close()
    assert [run.result for run in log.query()] == [Result.DONE, Result.INTERRUPTED]


def test_positions_of_another_journal_complete_nothing() -> None:
    target = Position(epoch=Epoch(2), incarnation=Incarnation(b"j" * 16), sequence=Sequence(5))
    told: list[bool] = []

    class Ends:
        def began(self, dataset: DatasetName, *, peer: str, booted: bool, absent: Callable[[], bool]) -> None:
            told.append(absent())

        def ended(self, dataset: DatasetName, *, complete: bool, sent_bytes: int, inventory_bytes: int) -> None:
            told.append(complete)

    def frame(*, consistent: bool, group_end: bool) -> Frame:
        return Frame(
            position=target, kind=Body.NOTHING, body=b"", payload=b"", group_end=group_end, consistent=consistent
        )

    there = False
    sync = FullSync(Ends(), pb.Subscribe(dataset="cdr"), absent=lambda: not there)
    assert told == []  # the Active has nothing of it yet
    there = True
    sync.sent(frame(consistent=False, group_end=True), 1)
    sync.sent(frame(consistent=True, group_end=False), 1)
    sync.acknowledged(target)
    assert told == [False]  # the group that leaves it consistent was not sent yet
    sync.sent(frame(consistent=True, group_end=True), 1)
    sync.acknowledged(NOWHERE)
    assert told == [False]
    sync.acknowledged(target)
    sync.close()
    assert told == [False, True]
