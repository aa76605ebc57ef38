"""The switch log: every switch with what led to it and how long each part took; what a crash left open is closed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ha_agent.logs import AgentLogs, Phase, Result, SwitchId, open_logs, read_events, read_switches
from ha_agent.logs.switches import ENDED

pytestmark = pytest.mark.req("R31")


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "agent-logs.db")


@pytest.fixture
def logs(path: str) -> Iterator[AgentLogs]:
    made = open_logs(path)
    yield made
    made.close()


def begin(logs: AgentLogs, now: float = 100.0, **changes: Any) -> SwitchId:
    facts: dict[str, Any] = {
        "trigger": "fault",
        "reason": "process:asterisk gone",
        "epoch": 4,
        "role_before": "standby",
        "role_after": "active",
        "own_health": {"engine": "good"},
        "peer_health": {"process:asterisk": "gone pid 7"},
        "positions": {"config": "3/abc/17"},
    }
    return logs.switches.begin(now=now, **(facts | changes))


def test_a_switch_is_read_with_everything_that_was_known(logs: AgentLogs) -> None:
    switch = begin(logs)
    logs.switches.phase(switch, Phase.DETECT, 0.02)
    logs.switches.phase(switch, Phase.ADDRESS, 0.11)
    logs.switches.add(switch, epoch=6, positions={"config": "3/abc/19"})
    logs.switches.end(switch, Result.DONE, now=102.5)
    (entry,) = logs.switches.query()
    assert (entry.id, entry.trigger, entry.reason, entry.epoch) == (switch, "fault", "process:asterisk gone", 6)
    assert (entry.role_before, entry.role_after, entry.result) == ("standby", "active", Result.DONE)
    assert (entry.own_health, entry.peer_health) == ({"engine": "good"}, {"process:asterisk": "gone pid 7"})
    assert entry.positions == {"config": "3/abc/19"}
    assert entry.phases_s == {"detect": 0.02, "address": 0.11}
    assert entry.took_s == 2.5
    assert entry.ended_unix_s == entry.begun_unix_s + 2.5


def test_a_switch_that_runs_has_no_end(logs: AgentLogs) -> None:
    begin(logs)
    (entry,) = logs.switches.query()
    assert (entry.result, entry.ended_unix_s, entry.took_s) == (Result.OPEN, None, None)


def test_switches_are_found_by_result_and_date(logs: AgentLogs) -> None:
    for result in (Result.DONE, Result.ABORTED, Result.FAILED, Result.OBSERVED):
        logs.switches.end(begin(logs), result, now=101.0, error=result.value)
    (aborted,) = logs.switches.query(result=Result.ABORTED)
    assert aborted.error == "aborted"
    assert [entry.result for entry in logs.switches.query(limit=2)] == [Result.FAILED, Result.OBSERVED]
    assert logs.switches.query(since_unix_s=aborted.begun_unix_s + 3600) == []


SCRIPT = """
import sys, time
from ha_agent.logs import open_logs
logs = open_logs(sys.argv[1])
facts = dict(own_health={}, peer_health={}, positions={}, role_before="standby", role_after="active")
logs.switches.begin(now=1.0, trigger="silence", reason="", epoch=4, **facts)
logs.writer.flush()
print("open", flush=True)
time.sleep(60)
"""


def test_an_entry_that_a_crash_left_open_is_closed_as_interrupted(path: str) -> None:
    root = Path(__file__).resolve().parent.parent.parent
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, path], stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(root)}
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"open\n"
        child.send_signal(signal.SIGKILL)
        child.wait()
    (before,) = read_switches(path)
    assert before.result is Result.OPEN
    logs = open_logs(path)
    (after,) = logs.switches.query()
    assert (after.id, after.result, after.took_s) == (before.id, Result.INTERRUPTED, None)
    heard: list[tuple[str, str, object]] = []
    # Who listens only now hears of it all the same.
    logs.events.listen(lambda severity, what, _subject, _edge, fields: heard.append((severity, what, fields["result"])))
    assert heard == [("error", ENDED, "interrupted")]
    logs.close()
    assert [(event.what, event.fields["result"]) for event in read_events(path)] == [(ENDED, "interrupted")]


async def test_a_follower_sees_the_opening_the_phases_and_the_end(logs: AgentLogs) -> None:
    following = logs.switches.follow(after_revision=0)
    switch = begin(logs)
    assert (await asyncio.wait_for(anext(following), 10)).result is Result.OPEN
    logs.switches.phase(switch, Phase.DECIDE, 0.001)
    assert (await asyncio.wait_for(anext(following), 10)).phases_s == {"decide": 0.001}
    logs.switches.end(switch, Result.DONE, now=101.0)
    assert (await asyncio.wait_for(anext(following), 10)).result is Result.DONE
    await following.aclose()


def test_the_switch_log_is_bounded(path: str) -> None:
    logs = open_logs(path, switch_rows_max=3)
    for epoch in range(10):
        logs.switches.end(begin(logs, epoch=epoch), Result.DONE, now=101.0)
    logs.close()
    assert [entry.epoch for entry in read_switches(path)] == [7, 8, 9]


def test_a_switch_whose_clock_went_back_took_no_time(logs: AgentLogs) -> None:
    logs.switches.end(begin(logs, now=100.0), Result.DONE, now=99.0)
    (entry,) = logs.switches.query()
    assert entry.took_s == 0.0
