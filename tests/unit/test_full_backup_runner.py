"""The runner of full backups: datasets in order, what is in its way is waited for, what was interrupted goes on."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ha_sync.backup.full import runner as runner_module
from ha_sync.backup.full.desk import Desk
from ha_sync.backup.full.memory import NOTHING, DatasetState, Memory, Remembered, RunState
from ha_sync.backup.full.progress import Meter
from ha_sync.backup.full.runner import FullBackup, Standing, Times
from ha_sync.config import BackupSettings
from ha_sync.core.dataset import DatasetName, Role
from ha_sync.core.examine import Depth, Examined, Fault, Finding, Peer, Run, Side
from ha_sync.core.position import Epoch
from ha_sync.errors import HaSyncError, OperatorNeeded, Retryable, WrongState
from ha_sync.logs.runs import Result, RunLog, Trigger

pytestmark = pytest.mark.req("R23")

ONE, TWO = DatasetName("one"), DatasetName("two")
Work = Callable[[Run], Awaitable[Examined]]


def examined(**counts: int) -> Examined:
    nothing = dict.fromkeys(("objects", "content_bytes", "differing", "repaired", "unverified"), 0)
    return Examined(**{**nothing, **counts})


@dataclass
class Node:
    """A node whose examiners do what the test says."""

    role: Role | None = Role.ACTIVE
    epoch: Epoch = field(default_factory=lambda: Epoch(4))
    works: dict[DatasetName, Work] = field(default_factory=dict)
    looked: list[DatasetName] = field(default_factory=list)

    def examined(self) -> dict[DatasetName, int]:
        return {ONE: 10, TWO: 10}

    def examiner(self, name: DatasetName) -> Examining:
        return Examining(self, name)

    async def replicated(self, name: DatasetName) -> None:
        del name


@dataclass
class Examining:
    node: Node
    name: DatasetName

    async def examine(self, peer: Peer, run: Run) -> Examined:
        del peer
        self.node.looked.append(self.name)
        work = self.node.works.get(self.name)
        return await work(run) if work is not None else examined(objects=10)


class Site:
    """A runner with everything that it needs, below one directory."""

    def __init__(self, tmp_path: Path, node: Node, *, times: Times | None = None, full: str = "") -> None:
        self.events: list[tuple[str, str, dict[str, object]]] = []
        self.log = RunLog(str(tmp_path / "backup.db"), report=self.report)
        self.memory = Memory(str(tmp_path / "full.json"))
        self.desk = Desk()
        self.runner = FullBackup(
            node,
            desk=self.desk,
            memory=self.memory,
            runs=self.log,
            settings=BackupSettings(full=full, rate_mib_per_s=0),
            report=self.report,
            peer=lambda: "b",
            times=times,
        )

    def report(self, severity: str, what: str, fields: dict[str, object]) -> None:
        self.events.append((severity, what, fields))

    async def over(self) -> Standing:
        async with asyncio.timeout(30):
            while self.runner.running:
                await asyncio.sleep(0.01)
        return self.runner.standing()


@contextlib.asynccontextmanager
async def site(
    tmp_path: Path, node: Node, *, connected: bool = True, times: Times | None = None, full: str = ""
) -> AsyncIterator[Site]:
    made = Site(tmp_path, node, times=times, full=full)
    task = asyncio.create_task(made.runner.run())
    line = asyncio.create_task(standby(made.desk)) if connected else None
    try:
        yield made
    finally:
        for each in (task, line):
            if each is not None:
                each.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await each
        await asyncio.to_thread(made.log.close)


async def standby(desk: Desk) -> None:
    """A Standby that is there, and is asked nothing."""

    async def answers() -> AsyncIterator[object]:
        await asyncio.Event().wait()
        yield None

    async def write(_question: object) -> None:
        return

    await desk.serve(Epoch(4), answers(), write)  # type: ignore[arg-type]


def finding(fault: Fault, *, side: Side = Side.STANDBY, repaired: bool = False) -> Finding:
    return Finding(dataset=ONE, subject="x", fault=fault, side=side, repaired=repaired)


async def test_datasets_are_examined_in_order_and_the_end_is_told(tmp_path: Path) -> None:
    node = Node()
    async with site(tmp_path, node) as made:
        assert not await made.runner.start(Depth.CONTENT, Trigger.MANUAL)
        last = await made.over()
        assert (last.result, last.exit_code, last.tally.objects) == ("done", 0, 20)
        assert last.done is not None
        assert last.done.percent == 100.0
        entry = made.log.query()[-1]
        assert (entry.result, entry.trigger, entry.tally.objects, entry.peer) == (Result.DONE, Trigger.MANUAL, 20, "b")
        assert made.log.last_equal(ONE) is not None
        assert made.memory.now.run is None
    assert node.looked == [ONE, TWO]
    assert [event[:2] for event in made.events] == [("info", "full backup begins"), ("info", "full backup ended")]


async def test_who_asks_while_one_goes_on_joins_it(tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def waits(_run: Run) -> Examined:
        await gate.wait()
        return examined(objects=1)

    async with site(tmp_path, Node(works={ONE: waits})) as made:
        answers = await asyncio.gather(*(made.runner.start(Depth.CONTENT, Trigger.MANUAL) for _ in range(3)))
        assert sorted(answers) == [False, True, True]
        gate.set()
        await made.over()
        assert len(made.log.query()) == 1


async def test_a_standby_makes_none(tmp_path: Path) -> None:
    async with site(tmp_path, Node(role=Role.STANDBY)) as made:
        with pytest.raises(WrongState, match="not the Active"):
            await made.runner.start(Depth.CONTENT, Trigger.MANUAL)


@pytest.mark.parametrize(
    ("found", "result", "severity"),
    [
        (finding(Fault.CONTENT, repaired=True), "done", "error"),
        (finding(Fault.CONTENT), "partial", "error"),
        (finding(Fault.ROTTEN, side=Side.ACTIVE), "partial", "error"),
        (finding(Fault.UNVERIFIED, side=Side.ACTIVE), "partial", "error"),
    ],
)
async def test_what_was_found_decides_the_result_and_is_an_event(
    tmp_path: Path, found: Finding, result: str, severity: str
) -> None:
    async def finds(run: Run) -> Examined:
        run.found(found)
        unverified = found.fault is Fault.UNVERIFIED
        return examined(objects=1, differing=not unverified, repaired=found.repaired, unverified=unverified)

    async with site(tmp_path, Node(works={ONE: finds})) as made:
        await made.runner.start(Depth.CONTENT, Trigger.MANUAL)
        last = await made.over()
        assert (last.result, last.exit_code) == (result, 0 if result == "done" else 4)
        assert made.log.findings(last.run) == [found]
        assert (made.log.last_equal(ONE) is not None) == (result == "done")
    told = made.events[-1]
    assert told[:2] == (severity, "full backup ended")
    assert "one: x" in str(told[2]["found"])


async def test_a_metadata_run_proves_no_content_equal(tmp_path: Path) -> None:
    async with site(tmp_path, Node()) as made:
        await made.runner.start(Depth.METADATA, Trigger.MANUAL)
        await made.over()
        assert made.log.last_equal(ONE) is None


async def test_what_comes_back_goes_on_from_its_cursor_and_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "RETRY_S", 0.01)
    cursors: list[bytes] = []

    async def breaks(run: Run) -> Examined:
        cursors.append(run.cursor)
        run.advance(objects=2, content_bytes=20)
        if len(cursors) < 3:
            await run.reached(run.cursor + b"+")
            raise Retryable("lost the standby")
        return examined(objects=2, content_bytes=20)

    async with site(tmp_path, Node(works={ONE: breaks})) as made:
        await made.runner.start(Depth.CONTENT, Trigger.MANUAL)
        last = await made.over()
    assert cursors == [b"", b"+", b"++"]
    assert (last.result, last.tally.objects, last.tally.content_bytes) == ("done", 6 + 10, 60)


@pytest.mark.parametrize("error", [Retryable("no copy"), OperatorNeeded("halted")])
async def test_a_dataset_in_trouble_is_not_verified_and_the_others_are_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: HaSyncError
) -> None:
    monkeypatch.setattr(runner_module, "RETRY_S", 0.001)

    async def fails(_run: Run) -> Examined:
        raise error

    node = Node(works={ONE: fails})
    async with site(tmp_path, node) as made:
        await made.runner.start(Depth.CONTENT, Trigger.MANUAL)
        last = await made.over()
        assert (last.result, last.exit_code, last.tally.unverified) == ("partial", 4, 1)
        assert made.log.findings(last.run)[0].detail == error.sentence()
    assert node.looked[-1] == TWO


async def test_without_a_standby_it_ends_as_unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(runner_module.PEER_WAIT_S, Trigger.MANUAL, 0.05)
    async with site(tmp_path, Node(), connected=False) as made:
        await made.runner.start(Depth.CONTENT, Trigger.MANUAL)
        last = await made.over()
    assert (last.result, last.exit_code) == ("failed", 5)


async def test_a_bug_ends_the_run_and_nothing_else(tmp_path: Path) -> None:
    async def bug(_run: Run) -> Examined:
        raise ValueError("a bug")

    async with site(tmp_path, Node(works={ONE: bug})) as made:
        await made.runner.start(Depth.CONTENT, Trigger.MANUAL)
        last = await made.over()
        assert (last.result, last.exit_code) == ("failed", 1)
        assert "a bug" in last.reason
        assert not await made.runner.start(Depth.METADATA, Trigger.MANUAL)
        await made.over()


async def test_a_pause_holds_the_next_reading(tmp_path: Path) -> None:
    held = asyncio.Event()
    steps: list[int] = []

    async def reads(run: Run) -> Examined:
        for number in range(3):
            if number == 1:
                held.set()
                await asyncio.sleep(0)
            await run.spend(1)
            steps.append(number)
        return examined(objects=3)

    async with site(tmp_path, Node(works={ONE: reads})) as made:
        await made.runner.start(Depth.CONTENT, Trigger.MANUAL)
        await held.wait()
        await made.runner.pause()
        standing = made.runner.standing()
        assert (standing.running, standing.phase, standing.dataset) == (True, "paused", "one")
        for _ in range(20):
            await asyncio.sleep(0)
        assert steps == [0]
        await made.runner.resume()
        await made.over()
    assert steps == [0, 1, 2]


@pytest.mark.parametrize("how", ["cancel", "role", "epoch"])
async def test_a_run_ends_by_a_request_and_with_the_role(tmp_path: Path, how: str) -> None:
    async def for_ever(_run: Run) -> Examined:
        await asyncio.Event().wait()
        return NOTHING

    node = Node(works={ONE: for_ever})
    async with site(tmp_path, node) as made:
        await made.runner.start(Depth.CONTENT, Trigger.MANUAL)
        while not node.looked:
            await asyncio.sleep(0.01)
        match how:
            case "cancel":
                await made.runner.cancel("by an operator")
            case "role":
                node.role = Role.STANDBY
            case "epoch":
                node.epoch = Epoch(6)
        last = await made.over()
        assert last.result == "cancelled"
        assert made.log.query()[-1].result is Result.CANCELLED
        assert made.memory.now.run is None
        with pytest.raises(WrongState):
            await made.runner.cancel("again")


async def test_an_engine_that_ends_leaves_its_run_and_the_next_one_goes_on_with_it(tmp_path: Path) -> None:
    reached = asyncio.Event()

    async def stops(run: Run) -> Examined:
        run.advance(objects=4, content_bytes=0)
        await run.reached(b"half")
        reached.set()
        await asyncio.Event().wait()
        return NOTHING

    node = Node(works={TWO: stops})
    async with site(tmp_path, node) as made:
        await made.runner.start(Depth.METADATA, Trigger.MANUAL)
        await reached.wait()
    cursors: list[bytes] = []

    async def goes_on(run: Run) -> Examined:
        cursors.append(run.cursor)
        return examined(objects=6)

    later = Node(works={TWO: goes_on})
    async with site(tmp_path, later) as made:
        while not made.runner.running and not later.looked:
            await asyncio.sleep(0.01)
        last = await made.over()
        assert (last.result, last.depth, last.tally.objects) == ("done", Depth.METADATA, 20)
        assert [entry.result for entry in made.log.query()] == [Result.INTERRUPTED, Result.DONE]
    assert later.looked == [TWO]
    assert cursors == [b"half"]


async def test_a_run_of_another_epoch_is_not_gone_on_with(tmp_path: Path) -> None:
    memory = Memory(str(tmp_path / "full.json"))
    old = RunState(depth=Depth.CONTENT, trigger="manual", epoch=Epoch(2), begun_unix_s=5.0)
    memory.store(Remembered(last_begun_unix_s=5.0, run=old))
    node = Node()
    async with site(tmp_path, node) as made:
        while made.memory.now.run is not None:
            await asyncio.sleep(0.01)
    assert node.looked == []


def test_what_is_remembered_is_read_back_and_rubbish_is_nothing(tmp_path: Path) -> None:
    path = str(tmp_path / "full.json")
    state = RunState(
        depth=Depth.CONTENT,
        trigger="schedule",
        epoch=Epoch(3),
        begun_unix_s=1.5,
        datasets={
            "one": DatasetState(cursor="00ff", begun_unix_s=2.0, so_far=examined(objects=3)),
            "two": DatasetState(done=NOTHING),
        },
        troubled=("three",),
    )
    kept = Remembered(last_begun_unix_s=1.5, run=state)
    Memory(path).store(kept)
    assert Memory(path).now == kept
    for rubbish in ("", "{", "[]", '{"last_begun_unix_s": 1, "run": {"depth": "deep"}}'):
        Path(path).write_text(rubbish)
        assert Memory(path).now == Remembered()


async def test_a_disk_that_takes_nothing_costs_the_memory_of_a_run_and_not_the_run(tmp_path: Path) -> None:
    node = Node()
    async with site(tmp_path, node) as made:
        (tmp_path / "full.json.new").mkdir()  # where the next state would be written first
        await made.runner.start(Depth.CONTENT, Trigger.MANUAL)
        last = await made.over()
        assert last.result == "done"
        assert made.memory.now.run is None
        (tmp_path / "full.json.new").rmdir()
        await made.runner.start(Depth.CONTENT, Trigger.MANUAL)
        await made.over()
    told = [what for _, what, _ in made.events if "cannot be stored" in what]
    assert told == ["the state of full backups cannot be stored"]


class FakeClock:
    """The wall clock of a node in Berlin."""

    def __init__(self, moment: str) -> None:
        self.zone = dt.timezone(dt.timedelta(hours=2))
        self.now = dt.datetime.fromisoformat(moment).replace(tzinfo=self.zone)

        self.looks = 0

    def times(self) -> Times:
        return Times(wall=self.now.timestamp, zone=self._zone, make_up_after_s=0.0, look_s=0.0)

    def _zone(self) -> dt.tzinfo:
        self.looks += 1
        return self.zone

    async def looked(self, times: int) -> None:
        """The schedule was looked at so often from now on."""
        until = self.looks + times
        async with asyncio.timeout(30):
            while self.looks < until:
                await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("last", "now", "starts"),
    [
        ("2026-05-02T03:00:00", "2026-05-03T02:59:59", False),
        ("2026-05-02T03:00:00", "2026-05-03T03:00:00", True),
        ("2026-05-02T03:00:00", "2026-05-09T11:00:00", True),
        ("", "2026-05-09T11:00:00", False),  # a fresh node begins with its first night
    ],
)
async def test_the_schedule_starts_what_is_due_and_makes_up_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str, now: str, starts: bool
) -> None:
    monkeypatch.setattr(runner_module, "LOOK_S", 0.005)
    clock = FakeClock(now)
    if last:
        begun = dt.datetime.fromisoformat(last).replace(tzinfo=clock.zone).timestamp()
        Memory(str(tmp_path / "full.json")).begun(begun)
    node = Node()
    async with site(tmp_path, node, times=clock.times(), full="0 3 * * *") as made:
        await clock.looked(2)
        if starts:
            await made.over()
            await clock.looked(3)  # often enough for a second one, were there one
        assert made.runner.standing().next_unix_s is not None
        runs = made.log.query()
    assert [run.trigger for run in runs] == ([Trigger.SCHEDULE] if starts else [])
    assert (made.memory.now.last_begun_unix_s == clock.now.timestamp()) == (starts or not last)


async def test_a_standby_starts_nothing_by_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "LOOK_S", 0.005)
    clock = FakeClock("2026-05-09T11:00:00")
    Memory(str(tmp_path / "full.json")).begun(1.0)
    node = Node(role=Role.STANDBY)
    async with site(tmp_path, node, connected=False, times=clock.times(), full="0 3 * * *") as made:
        rounds = 0

        def hang_up() -> None:
            nonlocal rounds
            rounds += 1

        monkeypatch.setattr(made.desk, "hang_up", hang_up)
        async with asyncio.timeout(30):
            while rounds < 5:
                await asyncio.sleep(0.005)
        assert made.log.query() == []
        assert clock.looks == 0


def test_the_meter_knows_the_rate_and_what_is_left() -> None:
    meter = Meter({"one": 100, "two": 100}, now=0.0)
    meter.advance("one", objects=50, content_bytes=500, now=5.0)
    now = meter.done(now=5.0)
    assert (now.percent, now.objects, now.objects_expected, now.bytes_per_s, now.left_s) == (25.0, 50, 200, 100.0, 15.0)
    meter.expect("one", objects=30, content_bytes=0)  # more is done than was expected
    meter.over("one")
    assert meter.done(now=5.0).objects_expected == 150
    meter.advance("two", objects=100, content_bytes=0, now=20.0)
    done = meter.done(now=20.0)
    assert (done.percent, done.left_s, done.bytes_per_s) == (99.9, 0.0, 0.0)
    assert Meter({}, now=0.0).done(now=0.0).percent == 0.0
