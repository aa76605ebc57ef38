"""Events of the agent: raised once, cleared once, bounded, readable while they are written."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_agent.logs import AgentLogs, Edge, Event, open_logs, read_events

pytestmark = pytest.mark.req("R32")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "agent-logs.db")


@pytest.fixture
def logs(path: str) -> Iterator[AgentLogs]:
    made = open_logs(path)
    yield made
    made.close()


def told(events: list[Event]) -> list[tuple[str, str, str]]:
    return [(event.what, event.subject, event.edge.value) for event in events]


def test_an_event_is_read_as_it_was_written(logs: AgentLogs) -> None:
    logs.events.append("warning", "a stranger spoke", {"address": "192.0.2.1", "message": 7})
    (event,) = logs.events.query()
    assert (event.severity, event.what, event.edge) == ("warning", "a stranger spoke", Edge.NONE)
    assert event.fields == {"address": "192.0.2.1", "message": "7"}


def test_an_alarm_is_raised_once_and_cleared_once(logs: AgentLogs) -> None:
    events = logs.events
    assert events.raise_alarm("error", "probe failed", "process:asterisk", {"reason": "gone"})
    assert not events.raise_alarm("error", "probe failed", "process:asterisk", {"reason": "gone"})
    assert events.raise_alarm("error", "probe failed", "fxo:3", {})
    assert events.standing == (("probe failed", "fxo:3"), ("probe failed", "process:asterisk"))
    assert events.clear_alarm("probe failed", "process:asterisk", {})
    assert not events.clear_alarm("probe failed", "process:asterisk", {})
    assert told(events.query()) == [
        ("probe failed", "process:asterisk", "raised"),
        ("probe failed", "fxo:3", "raised"),
        ("probe failed", "process:asterisk", "cleared"),
    ]


def test_an_alarm_that_stood_when_the_agent_ended_is_cleared_at_the_next_start(path: str) -> None:
    first = open_logs(path)
    first.events.raise_alarm("error", "held", "", {})
    first.events.clear_alarm("held", "", {})
    first.events.raise_alarm("error", "held", "", {})
    first.events.raise_alarm("error", "half", "cable", {})
    first.events.clear_alarm("half", "cable", {})
    first.close()
    second = open_logs(path)
    second.writer.flush()
    *_, last = second.events.query()
    assert (last.what, last.edge, last.fields) == ("held", Edge.CLEARED, {"reason": "the agent was started anew"})
    assert len(second.events.query()) == 6
    assert second.events.raise_alarm("error", "held", "", {})
    second.close()
    third = open_logs(path)
    assert [event.what for event in third.events.query() if event.edge is Edge.CLEARED] == [
        "held",
        "half",
        "held",
        "held",
    ]
    third.close()


def test_a_query_takes_the_newest_or_goes_on_from_a_place(logs: AgentLogs) -> None:
    for number in range(10):
        logs.events.append("info" if number % 2 else "error", f"event {number}", {})
    newest = logs.events.query(limit=3)
    assert [event.what for event in newest] == ["event 7", "event 8", "event 9"]
    assert [event.what for event in logs.events.query(after_id=newest[0].id - 6, limit=2)] == ["event 2", "event 3"]
    assert [event.what for event in logs.events.query(severity="warning", limit=2)] == ["event 6", "event 8"]
    assert logs.events.query(since_unix_s=newest[-1].unix_s + 1) == []


async def test_a_follower_sees_what_is_written_after_it_came(logs: AgentLogs) -> None:
    logs.events.append("info", "old", {})
    (old,) = await asyncio.to_thread(logs.events.query)
    following = logs.events.follow(after_id=old.id)
    first = asyncio.ensure_future(anext(following))
    logs.events.append("info", "new", {})
    assert (await asyncio.wait_for(first, 10)).what == "new"
    logs.events.append("info", "newer", {})
    assert (await asyncio.wait_for(anext(following), 10)).what == "newer"
    await following.aclose()


def test_the_log_is_bounded(path: str) -> None:
    logs = open_logs(path, event_rows_max=20)
    for number in range(100):
        logs.events.append("info", f"event {number}", {})
    logs.close()
    assert [event.what for event in read_events(path)] == [f"event {number}" for number in range(80, 100)]


def test_a_name_that_is_no_utf8_is_written_all_the_same(logs: AgentLogs) -> None:
    logs.events.append("info", "\udcff what", {"path": "/x/\udcff", "long": "x" * 10_000})
    (event,) = logs.events.query()
    assert event.what == "\\udcff what"
    assert len(event.fields["long"]) == 4096


def test_a_damaged_log_is_set_aside_and_a_new_one_begins(path: str) -> None:
    file = Path(path)
    file.parent.mkdir()
    file.write_bytes(b"this is no database" * 1000)
    logs = open_logs(path)
    logs.events.append("info", "after", {})
    assert [event.what for event in logs.events.query()] == ["after"]
    logs.close()
    assert len(list(file.parent.glob("*.damaged-*"))) == 1


def test_a_disk_that_takes_nothing_loses_events_and_says_how_many_later(path: str) -> None:
    logs = open_logs(path)
    logs.events.append("info", "first", {})
    logs.writer.flush()
    with sqlite3.connect(path) as held:  # a lock that lasts longer than the writer waits
        held.execute("BEGIN IMMEDIATE")
        logs.events.append("info", "lost", {})
        assert logs.writer.flush(timeout_s=20)
        held.rollback()
    held.close()
    logs.events.append("info", "later", {})
    assert [event.what for event in logs.events.query()] == ["first", "later", "log entries were left out"]
    assert logs.events.query()[-1].fields == {"count": "1"}
    logs.close()


def test_a_log_that_is_not_there_is_empty(path: str) -> None:
    assert read_events(path) == []


def test_after_the_close_nothing_waits(path: str) -> None:
    logs = open_logs(path)
    logs.close()
    logs.events.append("info", "too late", {})
    assert not logs.writer.flush()
    logs.close()
