"""The desk: events in, messages out, over restarts; and what the chronicle hands it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ha_agent.agent.chronicle import TROUBLES_MAX, Chronicle, Scene
from ha_agent.alarms import courier as courier_module
from ha_agent.alarms.delivery import Delivered, Order, Outcome
from ha_agent.alarms.desk import Desk, opened
from ha_agent.alarms.outbox import Outbox, path_of
from ha_agent.alarms.reports import PairFacts, Station
from ha_agent.arbiter.actions import Moved
from ha_agent.arbiter.values import Cause, Epoch, Phase
from ha_agent.logs import AgentLogs, open_logs
from ha_agent.settings import Settings, settings_of
from ha_proto.agent.v1 import agent_pb2 as pb
from tests.unit.test_agent_settings import HA

WITHIN_S = 20.0
R32 = pytest.mark.req("R32")
R17 = pytest.mark.req("R17")


@pytest.fixture
def delivered(monkeypatch: pytest.MonkeyPatch) -> list[Order]:
    """What was sent; everything arrives."""
    found: list[Order] = []

    async def deliver(_commands: object, order: Order) -> Delivered:
        found.append(order)
        return Delivered(outcome=Outcome.SENT)

    monkeypatch.setattr(courier_module, "deliver", deliver)
    return found


def settings(root: Path, **alarms: Any) -> Settings:
    hook = {"kind": "webhook", "url": "http://127.0.0.1:9/"}
    return settings_of(
        {
            "node": {"name": "pbx-a", "state_dir": str(root / "state")},
            "ha": HA,
            "alarms": {"group_s": 0.1, "clear_after_s": 0} | alarms,
            "alarm": [{"name": "all", **hook}, {"name": "worst", "severity": "error", **hook}],
            "report": {"url": "http://127.0.0.1:9/", "secret_file": str(root / "absent")},
        },
        source="ha.toml",
    )


class Office:
    """A desk at work, and the logs it listens to."""

    def __init__(self, desk: Desk, logs: AgentLogs, delivered: list[Order]) -> None:
        self.desk, self.logs, self.delivered = desk, logs, delivered

    async def until(self, count: int, target: str) -> list[dict[str, Any]]:
        """So many messages to the target."""
        async with asyncio.timeout(WITHIN_S):
            while len(found := self.to(target)) < count:
                await asyncio.sleep(0.01)
        return found

    def to(self, target: str) -> list[dict[str, Any]]:
        return [dict(order.document) for order in self.delivered if order.target.name == target]

    async def settled(self) -> None:
        """Everything that was put is on the disk, and everything that was said has been heard."""
        await asyncio.to_thread(self.logs.writer.flush)
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def at_work(root: Path, delivered: list[Order], **alarms: Any) -> AsyncIterator[Office]:
    logs = open_logs(str(root / "state" / "log.db"))
    try:
        async with opened(settings(root, **alarms), logs.events) as desk:
            yield Office(desk, logs, delivered)
    finally:
        await asyncio.to_thread(logs.close)


def named(document: dict[str, Any]) -> list[tuple[str, str]]:
    return [(entry["change"], entry["what"]) for entry in document["entries"]]


@R32
async def test_each_target_is_told_what_is_bad_enough_for_it(tmp_path: Path, delivered: list[Order]) -> None:
    async with at_work(tmp_path, delivered) as office:
        told = threading.Thread(target=office.logs.events.append, args=("error", "a deed of the agent failed", {}))
        told.start()  # an event may come from any thread
        await asyncio.to_thread(told.join)
        office.logs.events.raise_alarm("warning", "heartbeat path lost", "cable", {})
        both, (worst, *_) = await office.until(1, "all"), await office.until(1, "worst")
        # The management service's secret is not there: that is an alarm of its own.
        assert {what for document in both for _, what in named(document)} >= {"a secret cannot be used"}
        assert all(entry["severity"] == "error" for entry in worst["entries"])
        async with asyncio.timeout(WITHIN_S):
            while ("raised", "heartbeat path lost") not in [one for found in office.to("all") for one in named(found)]:
                await asyncio.sleep(0.01)
        assert [target.target.name for target in office.desk.targets()] == ["all", "worst", "report"]


@R32
async def test_a_notice_of_the_engine_that_comes_again_is_the_same_also_after_a_restart(
    tmp_path: Path, delivered: list[Order]
) -> None:
    notices = [pb.Notice(serial=n, severity="error", what=f"event {n}", fields={"dataset": "cdr"}) for n in (1, 2)]
    async with at_work(tmp_path, delivered, clear_after_s=3600) as office:
        for notice in [*notices, *notices]:
            office.desk.noticed("run-1", notice)
        counts = {alarm.key.what: alarm.count for alarm in office.desk.alarms}
        assert (counts["event 1"], counts["event 2"]) == (1, 1)
    async with at_work(tmp_path, delivered, clear_after_s=3600) as office:
        for notice in notices:
            office.desk.noticed("run-1", notice)
        assert {alarm.count for alarm in office.desk.alarms if alarm.key.what.startswith("event")} == {1}
        office.desk.noticed("run-2", notices[0])
        assert {alarm.key.what: alarm.count for alarm in office.desk.alarms}["event 1"] == 2
        assert {alarm.key.subject for alarm in office.desk.alarms if alarm.key.what == "event 1"} == {"cdr"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@R32
async def test_starting_again_and_again_does_not_send_more_messages_than_an_hour_may_have(tmp_path: Path) -> None:
    clock, waiting = Clock(), []
    path = path_of(str(tmp_path / "state"))
    for number in range(6):
        outbox = Outbox(path, ["all", "worst", "report"])
        desk = Desk(settings(tmp_path, messages_per_hour_max=4), outbox, clock=clock, wall=clock)
        desk._observe("error", f"event {number}", "", "none", {})
        clock.now += 1.0  # longer than the group
        desk._go_on()
        waiting.append(outbox.waiting("all")[0])
        assert desk._timer is not None
        desk._timer.cancel()
        outbox.close()
    assert waiting == [1, 2, 2, 2, 2, 2]
    clock.now += 1800.0
    outbox = Outbox(path, ["all", "worst", "report"])
    desk = Desk(settings(tmp_path, messages_per_hour_max=4), outbox, clock=clock, wall=clock)
    clock.now += 61.0
    desk._go_on()
    outbox.close()
    for _ in range(2):
        first = outbox.head("all")
        assert first is not None
        outbox.sent(first)
    last = outbox.head("all")
    assert last is not None
    assert sorted(what for _, what in named(dict(last.document))) == ["event 2", "event 3", "event 4", "event 5"]


FACTS = PairFacts(
    cluster_id="c",
    node="pbx-a",
    cluster_addresses=("192.0.2.53",),
    own=Station(station_type="primary", mac="02:00:00:00:00:01", address="192.0.2.1"),
    peer=Station(station_type="secondary", mac="02:00:00:00:00:02", address="192.0.2.2"),
)


@R17
async def test_a_role_is_reported_once_for_each_epoch_whatever_is_restarted(
    tmp_path: Path, delivered: list[Order]
) -> None:
    async with at_work(tmp_path, delivered) as office:
        office.desk.serving(2, "election")  # before it knows of a pair
        office.desk.know(FACTS)
        office.desk.serving(2, "election")
        office.desk.serving(2, "resumed")
        await office.until(1, "report")
    async with at_work(tmp_path, delivered) as office:
        office.desk.know(FACTS)
        office.desk.serving(2, "resumed")
        office.desk.serving(4, "planned")
        await office.until(2, "report")
    replaced = replace(FACTS, peer=replace(FACTS.peer, mac="02:00:00:00:00:09"))
    async with at_work(tmp_path, delivered) as office:  # another node in the place of the peer; nobody has switched
        office.desk.know(replaced)
        office.desk.serving(4, "resumed")
        reports = await office.until(3, "report")
    assert [(one["epoch"], one["sequence"], one["cause"]) for one in reports] == [
        (2, 1, "election"),
        (4, 2, "planned"),
        (4, 3, "resumed"),
    ]
    assert reports[2]["nodes"][1]["mac"] == "02:00:00:00:00:09"


# ---- the chronicle


class Heard:
    def __init__(self, logs: AgentLogs, *, observing: bool = False) -> None:
        self.active: list[tuple[int, str]] = []
        self.notices: list[tuple[str, int]] = []
        self.chronicle = Chronicle(
            logs.switches, logs.events, scene=Scene, node="a", observing=observing,
            on_active=lambda epoch, cause: self.active.append((epoch, cause)),
            on_notice=lambda run, notice: self.notices.append((run, notice.serial)),
        )  # fmt: skip

    def moves(self, before: Phase, after: Phase, epoch: int) -> None:
        self.chronicle.moved(
            Moved(row="serve", why="", before=before, after=after, cause=Cause.SILENCE, epoch=Epoch(epoch)), now=1.0
        )


@R17
def test_only_who_becomes_active_says_so(tmp_path: Path) -> None:
    logs = open_logs(str(tmp_path / "log.db"))
    heard, watching = Heard(logs), Heard(logs, observing=True)
    for one in (heard, watching):
        one.moves(Phase.ADDING, Phase.ACTIVE, 4)
        one.moves(Phase.ACTIVE, Phase.QUIESCING, 4)
        one.moves(Phase.QUIESCING, Phase.ACTIVE, 4)
        one.moves(Phase.STARTING, Phase.ACTIVE, 4)
        one.moves(Phase.RELEASING, Phase.STANDBY, 4)
    logs.close()
    assert heard.active == [(4, "silence"), (4, "silence")]
    assert watching.active == []


@R32
def test_what_stands_at_the_engine_is_raised_and_cleared_once_and_bounded(tmp_path: Path) -> None:
    logs = open_logs(str(tmp_path / "log.db"))
    heard = Heard(logs)
    halted = pb.Trouble(severity="error", what="dataset halted", subject="cdr", fields={"reason": "deletes"})
    notices = [pb.Notice(serial=n, severity="error", what="x") for n in (1, 2)]
    heard.chronicle.reported(pb.EngineReport(troubles=[halted], run="r", notices=notices))
    heard.chronicle.reported(pb.EngineReport(troubles=[halted]))
    assert logs.events.standing == (("dataset halted", "cdr"),)
    heard.chronicle.reported(pb.EngineReport())
    assert logs.events.standing == ()
    assert [event.edge.value for event in logs.events.query()] == ["raised", "cleared"]
    storm = [pb.Trouble(severity="nonsense", what="w", subject=str(n)) for n in range(10 * TROUBLES_MAX)]
    heard.chronicle.reported(pb.EngineReport(troubles=storm))
    assert len(logs.events.standing) == TROUBLES_MAX
    assert heard.notices == [("r", 1), ("r", 2)]
    logs.close()
