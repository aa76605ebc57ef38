"""``ha-sync alarms`` and the line of ``ha-sync status`` that says what could not be sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.cli import agent_page
from ha_sync.cli.alarms import unsent
from ha_sync.cli.main import main
from ha_sync.cli.times import moment
from tests.support.agent_service import STATUS, FakeAgent, fake_agent

pytestmark = pytest.mark.req("R32")

Run = Callable[..., tuple[Any, str, str]]

WAITS = pb.AlarmTarget(
    name="admins", kind="mail", severity="warning", waiting=3, sent=7, dropped=1, given_up=2,
    reason="ConnectionRefusedError: [Errno 111]\x1b", next_try_s=12.0, oldest_unix_s=1_700_000_000,
)  # fmt: skip
FOUND = pb.ListAlarmsResponse(
    alarms=[
        pb.AlarmRecord(
            severity="error", what="fault", subject="fxo:3", since_unix_s=1_700_000_000, count=2, state="stands",
            told_unix_s=1_700_000_005, fields={"reason": "alarm"},
        ),
        pb.AlarmRecord(
            severity="warning", what="a divergence waits", since_unix_s=1_700_000_001, count=1, state="gone"
        ),
    ],
    targets=[WAITS, pb.AlarmTarget(name="report", kind="webhook", sent=1, sent_unix_s=1_700_000_009)],
    left_out=4,
)  # fmt: skip


@pytest.fixture
def agent(run_dir: Path) -> Iterator[FakeAgent]:
    with fake_agent(str(run_dir / "agent.sock")) as fake:
        fake.answers["ListAlarms"] = FOUND
        yield fake


@pytest.fixture
def run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--agent-socket", str(run_dir / "agent.sock")])
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


def test_the_list_shows_what_stands_whom_it_was_told_and_what_waits(agent: FakeAgent, run: Run) -> None:
    code, out, err = run("alarms", "list")
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert lines[0] == ["SEVERITY", "ALARM", "STATE", "SINCE", "COUNT", "TOLD"]
    assert out.splitlines()[1].startswith("error     fault: fxo:3        stands  ")
    assert moment(1_700_000_005) in out
    assert "and 4 more" in out
    assert ["admins", "mail", "3", "7", "1", "2", "-"] in lines
    assert r"admins: 3 messages wait: 'ConnectionRefusedError: [Errno 111]\x1b', next try in 12s" in out


def test_the_list_as_json_has_every_field_of_the_protocol(agent: FakeAgent, run: Run) -> None:
    code, out, _ = run("alarms", "list", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts.keys() == {"alarms", "targets", "left_out"}
    assert facts["alarms"][0] == {
        "severity": "error",
        "what": "fault",
        "subject": "fxo:3",
        "since_unix_s": 1_700_000_000,
        "count": 2,
        "state": "stands",
        "told_unix_s": 1_700_000_005,
        "fields": {"reason": "alarm"},
    }
    assert facts["alarms"][1]["told_unix_s"] is None
    assert facts["targets"][0].keys() == {
        "name", "kind", "severity", "waiting", "sent", "dropped", "given_up", "reason", "next_try_s", "oldest_unix_s",
        "sent_unix_s",
    }  # fmt: skip


def test_an_empty_list_says_so_and_that_nobody_is_told(agent: FakeAgent, run: Run) -> None:
    agent.answers["ListAlarms"] = pb.ListAlarmsResponse()
    assert run("alarms", "list")[1] == "no alarms\n\nnobody is told: add [[alarm]] to ha.toml\n"


@pytest.mark.parametrize(("arrived", "code"), [(True, 0), (False, 1)])
def test_a_test_message_ends_with_1_where_one_did_not_arrive(
    agent: FakeAgent, run: Run, arrived: bool, code: int
) -> None:
    results = [
        pb.TestResult(target="noc", sent=True, took_s=0.25),
        pb.TestResult(target="admins", sent=arrived, reason="550 no such user", took_s=1),
    ]
    agent.answers["TestAlarm"] = pb.TestAlarmResponse(results=results)
    found = run("alarms", "test", "--target", "admins")
    word = "sent" if arrived else "not sent"
    assert found == (code, f"noc: sent, 0.2 s\nadmins: {word}, 1.0 s: 550 no such user\n", "")
    assert agent.asked == [pb.TestAlarmRequest(target="admins")]
    assert json.loads(run("alarms", "test", "--json")[1])["results"][1]["sent"] is arrived


def test_the_status_says_what_could_not_be_sent() -> None:
    status = pb.AgentStatus()
    status.CopyFrom(STATUS)
    status.alarm_targets.extend([WAITS, pb.AlarmTarget(name="noc", waiting=1)])
    (line,) = [line for line in agent_page.page(status) if "unsent" in line]
    assert "unsent   admins: 3 messages wait: " in line
    assert "unsent=4" in agent_page.line_of(status)
    assert not unsent(pb.AlarmTarget(name="noc", reason="was down", sent=1)), "nothing waits"
