"""What waits survives, in order and bounded; the courier brings it, and tries again."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_agent.alarms import courier as courier_module
from ha_agent.alarms.courier import REFUSALS_MAX, Courier
from ha_agent.alarms.delivery import Delivered, Order, Outcome, deliver, from_plain, to_plain
from ha_agent.alarms.outbox import BYTES_MAX, WAITING_MAX, Outbox
from ha_agent.alarms.values import Alarm, Key, Told
from ha_agent.commands import Ending, Finished
from ha_agent.settings import Security, Severity, Target, TargetKind

pytestmark = pytest.mark.req("R32")

WITHIN_S = 20.0
SENT = Delivered(outcome=Outcome.SENT)
DOWN = Delivered(outcome=Outcome.LATER, reason="nobody answers")
NO = Delivered(outcome=Outcome.REFUSED, reason="HTTP 422")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "alarms.db")


@contextlib.contextmanager
def opened(path: str | None, *targets: str) -> Iterator[Outbox]:
    outbox = Outbox(path, targets or ("a", "b"))
    try:
        yield outbox
    finally:
        outbox.close()


def taken(outbox: Outbox, target: str) -> list[Any]:
    """Takes everything off the queue, in order."""
    found = []
    while (message := outbox.head(target)) is not None:
        found.append(message.document["n"])
        outbox.sent(message)
    return found


def test_what_waits_is_there_after_a_restart_in_order_with_its_id(path: str) -> None:
    with opened(path) as outbox:
        for number in range(5):
            outbox.put("a", {"n": number})
            outbox.put("b", {"n": -number})
        first = outbox.head("a")
        assert first is not None
        outbox.sent(first)
        second = outbox.head("a")
    with opened(path) as outbox:
        assert outbox.head("a") == second
        outbox.put("a", {"n": 5})
        assert taken(outbox, "a") == [1, 2, 3, 4, 5]
        assert outbox.tally("a").sent == 6
        assert outbox.waiting("b")[0] == 5
    with opened(path) as outbox:
        assert taken(outbox, "a") == []
        assert outbox.tally("a").sent == 6


def test_too_many_drop_the_oldest_and_count_it(path: str) -> None:
    with opened(path) as outbox:
        for number in range(WAITING_MAX + 7):
            outbox.put("a", {"n": number})
        assert outbox.waiting("a")[0] == WAITING_MAX
    with opened(path) as outbox:
        assert outbox.tally("a").dropped == 7
        assert taken(outbox, "a") == list(range(7, WAITING_MAX + 7))


def test_too_large_ones_are_bounded_in_bytes(path: str) -> None:
    with opened(path) as outbox:
        for number in range(4):
            outbox.put("a", {"n": number, "text": "x" * (BYTES_MAX // 2 - 100)})
        assert outbox.tally("a").dropped == 2
        outbox.put("a", {"n": 9, "text": "x" * BYTES_MAX})
        assert outbox.head("a") is None
        assert outbox.tally("a").dropped == 5


def test_a_message_that_was_dropped_while_it_was_under_way_is_not_taken_off_twice(path: str) -> None:
    with opened(path) as outbox:
        outbox.put("a", {"n": 0})
        under_way = outbox.head("a")
        assert under_way is not None
        for number in range(1, WAITING_MAX + 1):
            outbox.put("a", {"n": number})
        outbox.sent(under_way)
        assert outbox.waiting("a")[0] == WAITING_MAX


def test_what_the_rules_knew_and_single_values_survive(path: str) -> None:
    alarm = Alarm(
        key=Key("fault", "fxo:3"), severity=Severity.ERROR, since_unix_s=1.5, once=False, count=3,
        fields={"reason": "alarm \udcff"}, gone_at=None, told=Told.STANDS, told_count=2, told_unix_s=2.5,
    )  # fmt: skip
    with opened(path) as outbox:
        outbox.keep_alarms({alarm.key: alarm, Key("x"): None})
        outbox.keep_fact("noticed", "run:7")
    with opened(path) as outbox:
        assert outbox.alarms == [alarm]
        assert outbox.facts == {"noticed": "run:7"}
        outbox.keep_alarms({alarm.key: None})
    with opened(path) as outbox:
        assert outbox.alarms == []


def test_a_target_that_the_settings_do_not_name_any_more_is_forgotten(path: str) -> None:
    with opened(path, "a", "gone") as outbox:
        outbox.put("gone", {"n": 1})
    with opened(path, "a"):
        pass
    with opened(path, "a", "gone") as outbox:
        assert outbox.head("gone") is None


def test_a_damaged_file_is_set_aside_and_the_outbox_works_on(path: str) -> None:
    with opened(path) as outbox:
        outbox.put("a", {"n": 1})
    Path(path).write_bytes(b"this is no database" * 1000)
    with opened(path) as outbox:
        assert outbox.head("a") is None
        outbox.put("a", {"n": 2})
    with opened(path) as outbox:
        assert taken(outbox, "a") == [2]
    assert list(Path(path).parent.glob("alarms.db.damaged-*"))


def test_a_disk_that_takes_nothing_holds_up_nobody(path: str, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    with opened(path) as outbox:
        outbox.put("a", {"n": 1})
        assert taken(outbox, "a") == [1]


def test_where_nobody_is_told_nothing_is_written(tmp_path: Path) -> None:
    with opened(None, "a") as outbox:
        outbox.keep_fact("x", "y")
        outbox.put("a", {"n": 1})
        assert taken(outbox, "a") == [1]
    assert not list(tmp_path.iterdir())


def test_no_text_of_an_event_breaks_the_file(path: str) -> None:
    with opened(path) as outbox:
        outbox.put("a", {"n": "\x00\udcff'\"; DROP TABLE message"})
    with opened(path) as outbox:
        assert taken(outbox, "a") == ["\x00\udcff'\"; DROP TABLE message"]
    with contextlib.closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@given(
    st.builds(
        Target,
        name=st.text(max_size=5),
        kind=st.sampled_from(TargetKind),
        severity=st.sampled_from(Severity),
        security=st.sampled_from(Security),
        recipients=st.lists(st.text(max_size=5), max_size=3).map(tuple),
        url=st.text(max_size=9),
        port=st.integers(0, 65535),
    )
)
def test_an_order_arrives_as_it_was_given(target: Target) -> None:
    order = Order(target=target, id="1", document={"kind": "test"})
    assert from_plain(to_plain(order)) == order


class Broken:
    """Commands of a machine in trouble."""

    def __init__(self, output: str | OSError) -> None:
        self._output = output

    async def run(self, command: tuple[str, ...], *, deadline_s: float, given: bytes) -> Finished:
        if isinstance(self._output, OSError):
            raise self._output
        return Finished(command=command, ending=Ending.FAILED, status=1, output=self._output, took_s=0.0)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (OSError(24, "Too many open files"), "[Errno 24] Too many open files"),
        ("", "exit status 1: "),
        ("Traceback ...\nMemoryError", "exit status 1: Traceback ...\nMemoryError"),
        ('{"outcome": "perhaps", "reason": "", "asked_s": 0}', "exit status 1: "),
        ("[]", "exit status 1: []"),
    ],
)
async def test_a_process_that_does_not_answer_is_tried_again(output: str | OSError, reason: str) -> None:
    order = Order(target=Target(name="a", kind=TargetKind.WEBHOOK), id="1", document={})
    found = await deliver(Broken(output), order)  # type: ignore[arg-type]
    assert found.outcome is Outcome.LATER
    assert found.reason.startswith(reason)


# ---- the courier


class World:
    """A courier whose deliveries end as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, outbox: Outbox, name: str = "a") -> None:
        self.answers: list[Delivered] = []
        self.delivered: list[tuple[str, Any]] = []
        self.pauses: list[float] = []
        self.outbox = outbox
        self.courier = Courier(Target(name=name, kind=TargetKind.WEBHOOK), outbox, lambda: None, chance=lambda: 0.0)  # type: ignore[arg-type,return-value]
        monkeypatch.setattr(courier_module, "deliver", self._deliver)
        monkeypatch.setattr(courier_module, "delay_s", self._delay)

    async def _deliver(self, _commands: object, order: Order) -> Delivered:
        self.delivered.append((order.id, order.document["n"]))
        await asyncio.sleep(0)
        return self.answers.pop(0) if self.answers else SENT

    def _delay(self, tries: int, chance: float, *, asked_s: float) -> float:
        self.pauses.append(tries)
        return 0.001

    async def until(self, wanted: Callable[[], bool]) -> None:
        async with asyncio.timeout(WITHIN_S):
            while not wanted():
                await asyncio.sleep(0.001)

    def put(self, *numbers: int) -> None:
        for number in numbers:
            self.outbox.put(self.courier.target.name, {"n": number})
        self.courier.wake()

    @property
    def numbers(self) -> list[Any]:
        return [number for _, number in self.delivered]

    def empty(self) -> bool:
        return self.outbox.head(self.courier.target.name) is None


@contextlib.asynccontextmanager
async def working(world: World) -> AsyncIterator[World]:
    running = asyncio.create_task(world.courier.run())
    try:
        yield world
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_messages_go_out_in_order_and_what_fails_holds_up_those_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, Outbox(None, ["a"]))
    world.answers = [SENT, DOWN, DOWN, DOWN]
    world.put(1, 2, 3)
    async with working(world):
        await world.until(world.empty)
        assert world.numbers == [1, 2, 2, 2, 2, 3]
        assert len({id_ for id_, number in world.delivered if number == 2}) == 1, "the same id each time"
        assert world.pauses == [1, 2, 3]
        assert (world.courier.trouble.reason, world.courier.trouble.tries) == ("", 0)
        world.put(4)
        await world.until(lambda: world.numbers[-1:] == [4])


async def test_what_is_refused_again_and_again_is_given_up_and_the_next_one_goes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = World(monkeypatch, Outbox(None, ["a"]))
    world.answers = [DOWN, *[NO] * REFUSALS_MAX]
    world.put(1, 2)
    async with working(world):
        await world.until(world.empty)
    assert world.numbers == [1] * (REFUSALS_MAX + 1) + [2]
    tally = world.outbox.tally("a")
    assert (tally.given_up, tally.sent, tally.dropped) == (1, 1, 0)


@pytest.mark.req("R17")
async def test_a_report_is_never_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(monkeypatch, Outbox(None, ["report"]), name="report")
    world.answers = [NO] * (3 * REFUSALS_MAX)
    world.put(1, 2)
    async with working(world):
        await world.until(world.empty)
    assert world.numbers == [1] * (3 * REFUSALS_MAX + 1) + [2]
    assert world.outbox.tally("report").given_up == 0
