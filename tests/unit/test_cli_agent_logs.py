"""``ha-sync logs``: the switch log of the agent, and the events of both daemons as one list."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ha_proto.agent.v1 import agent_pb2
from ha_proto.sync.v1 import control_pb2
from ha_sync.cli.main import main
from ha_sync.cli.times import moment
from tests.support.agent_service import SWITCH, FakeAgent, fake_agent
from tests.support.client import start_ha_sync
from tests.support.control_service import FakeEngine, fake_engine

Run = Callable[..., tuple[Any, str, str]]

ENGINE_EVENTS = [
    control_pb2.Event(id=7, unix_s=1_700_000_000.5, severity="warning", what="refused", fields={"peer": "x", "a": "b"}),
    control_pb2.Event(id=8, unix_s=1_700_000_002.5, severity="info", what="started"),
]
AGENT_EVENTS = [
    agent_pb2.EventRecord(id=1, unix_s=1_700_000_001.5, severity="info", what="took over", edge="none"),
    agent_pb2.EventRecord(
        id=2,
        unix_s=1_700_000_003.5,
        severity="error",
        what="path lost",
        subject="cable",
        edge="raised",
        fields={"age_s": "3\n4"},
    ),
]


@pytest.fixture
def agent(run_dir: Path) -> Iterator[FakeAgent]:
    with fake_agent(str(run_dir / "agent.sock")) as fake:
        fake.answers |= {"ListEvents": AGENT_EVENTS, "ListSwitches": [SWITCH]}
        yield fake


@pytest.fixture
def engine(run_dir: Path) -> Iterator[FakeEngine]:
    with fake_engine(str(run_dir / "sync.sock")) as fake:
        fake.answers["ListEvents"] = ENGINE_EVENTS
        yield fake


@pytest.fixture
def run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as left:
            main(["logs", *arguments, "--socket", str(run_dir / "sync.sock")])
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


@pytest.mark.req("R31")
def test_switches_are_a_table_with_reason_and_error_below(agent: FakeAgent, run: Run) -> None:
    failed = agent_pb2.SwitchRecord(
        begin_unix_s=1_700_000_100, trigger="fault", reason="peer_refused", result="aborted", epoch=9, error="no \x1b"
    )
    agent.answers["ListSwitches"] = [SWITCH, failed]
    code, out, err = run("switch", "--since", "2023-11-14T22:13:20+00:00", "--limit", "5")
    assert (code, err) == (0, "")
    took = "detect 0.00 address 0.31 services 1.20 drain 0.50"
    assert out.splitlines() == [
        "BEGIN                          TRIGGER    FROM -> TO             EPOCH  RESULT       SECONDS  PHASES, SECONDS",
        f"{moment(1_700_000_000.5)}  planned    standby -> active          8  done            1.62  {took}",
        f"{moment(1_700_000_100)}  fault      - -> -                     9  aborted            -  -",
        "    reason: the peer refused to take over",
        r"    error: 'no \x1b'",
    ]
    assert agent.asked == [agent_pb2.ListSwitchesRequest(since_unix_s=1_700_000_000, limit=5)]


@pytest.mark.req("R26", "R31")
def test_what_a_promotion_finished_stands_below_its_switch(agent: FakeAgent, run: Run) -> None:
    finished = {"spool: call file kept": 1, "recordings: header repaired": 12}
    agent.answers["ListSwitches"] = [agent_pb2.SwitchRecord(begin_unix_s=1.0, result="done", finished=finished)]
    _, out, _ = run("switch")
    assert out.splitlines()[-1] == (
        "    finished for the dead node: recordings: header repaired (12), spool: call file kept (1)"
    )


@pytest.mark.req("R31")
def test_switches_as_json_have_health_and_positions_and_can_be_chosen_by_result(agent: FakeAgent, run: Run) -> None:
    code, out, _ = run("switch", "--json", "--result", "done")
    switch = json.loads(out)
    assert code == 0
    assert list(switch) == [field.name for field in agent_pb2.SwitchRecord.DESCRIPTOR.fields]
    assert switch["peer_health"] == {"process:asterisk": "gone pid 12"}
    assert switch["positions"] == {"cdr": "8/ab/120"}
    assert agent.asked == [agent_pb2.ListSwitchesRequest(limit=100, result="done")]


def test_no_switch_yet_is_no_line_at_all(agent: FakeAgent, run: Run) -> None:
    agent.answers["ListSwitches"] = []
    assert run("switch") == (0, "", "")


@pytest.mark.req("R31")
def test_events_of_both_are_merged_by_time_and_a_column_says_whose(
    agent: FakeAgent, engine: FakeEngine, run: Run
) -> None:
    code, out, err = run("events")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{moment(1_700_000_000.5)} warning engine refused a=b peer=x",
        f"{moment(1_700_000_001.5)} info    agent  took over",
        f"{moment(1_700_000_002.5)} info    engine started",
        rf"{moment(1_700_000_003.5)} error   agent  raised: path lost (cable) age_s='3\n4'",
    ]


@pytest.mark.req("R31")
def test_the_newest_of_both_are_kept(agent: FakeAgent, engine: FakeEngine, run: Run) -> None:
    out = run("events", "--limit", "3", "--since", "2023-11-14T22:13:20+00:00")[1]
    assert [line.split()[4] for line in out.splitlines()] == ["took", "started", "raised:"]
    assert engine.asked == [control_pb2.ListEventsRequest(since_unix_s=1_700_000_000, limit=3)]
    assert agent.asked == [agent_pb2.ListEventsRequest(since_unix_s=1_700_000_000, limit=3)]


@pytest.mark.req("R31")
def test_events_as_json_have_the_same_fields_whoever_tells(agent: FakeAgent, engine: FakeEngine, run: Run) -> None:
    first, second, _, last = (json.loads(line) for line in run("events", "--json")[1].splitlines())
    assert first == {
        "source": "engine",
        "id": 7,
        "unix_s": 1_700_000_000.5,
        "severity": "warning",
        "what": "refused",
        "fields": {"a": "b", "peer": "x"},
        "subject": "",
        "edge": "none",
    }
    assert list(second) == list(first)
    assert (last["source"], last["subject"], last["edge"]) == ("agent", "cable", "raised")


def test_one_source_asks_only_that_one(agent: FakeAgent, engine: FakeEngine, run: Run) -> None:
    assert len(run("events", "--source", "agent")[1].splitlines()) == 2
    assert engine.asked == []
    assert len(run("events", "--source", "engine")[1].splitlines()) == 2
    assert len(agent.asked) == 1


@pytest.mark.parametrize("present", ["engine", "agent"])
def test_the_one_that_is_away_is_said_and_the_other_shown(
    request: pytest.FixtureRequest, run: Run, present: str
) -> None:
    request.getfixturevalue(present)
    away = {"engine": "agent", "agent": "engine"}[present]
    code, out, err = run("events")
    assert (code, len(out.splitlines())) == (0, 2)
    assert err.startswith(f"ha-sync: cannot reach the {away} at ")
    assert err.count("\n") == 1
    code, out, err = run("events", "--source", away)
    assert (code, out) == (1, "")
    assert f"cannot reach the {away}" in err


def test_where_both_are_away_the_command_fails(run: Run) -> None:
    code, out, err = run("events")
    assert (code, out) == (1, "")
    assert err.count("cannot reach the agent") == err.count("cannot reach the engine") == 1


@pytest.mark.req("R31")
def test_following_shows_what_comes_from_both_and_nothing_twice(agent: FakeAgent, engine: FakeEngine, run: Run) -> None:
    new_there = agent_pb2.EventRecord(id=3, unix_s=1_700_000_009, severity="info", what="new there")
    new_here = control_pb2.Event(id=9, unix_s=1_700_000_008, severity="info", what="new here")
    agent.answers["ListEvents"] = lambda asked, _: [*AGENT_EVENTS, *([new_there] if asked.follow else [])]
    engine.answers["ListEvents"] = lambda asked, _: [*ENGINE_EVENTS, *([new_here] if asked.follow else [])]
    code, out, err = run("events", "--follow", "--json", "--limit", "2")
    told = [json.loads(line) for line in out.splitlines()]
    assert (code, err) == (0, "")  # both streams ended in order
    assert [event["id"] for event in told[:2]] == [8, 2]
    assert sorted((event["source"], event["id"]) for event in told[2:]) == [("agent", 3), ("engine", 9)]


@pytest.mark.req("R31")
def test_following_goes_on_with_the_other_when_one_goes_away(agent: FakeAgent, engine: FakeEngine, run: Run) -> None:
    engine_went = threading.Event()

    def engine_goes(asked: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from ENGINE_EVENTS
        if asked.follow:
            engine_went.set()
            context.abort(grpc.StatusCode.UNAVAILABLE, "")

    def agent_goes_later(asked: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        yield from AGENT_EVENTS
        if asked.follow:
            assert engine_went.wait(60)
            yield agent_pb2.EventRecord(id=3, unix_s=1_700_000_009, severity="info", what="still here")
            context.abort(grpc.StatusCode.INTERNAL, "ended in the end")

    engine.answers["ListEvents"] = engine_goes
    agent.answers["ListEvents"] = agent_goes_later
    code, out, err = run("events", "--follow")
    assert code == 1
    assert out.splitlines()[-1].endswith("info    agent  still here")
    assert err.count("\n") == 2
    assert "the agent failed INTERNAL: ended in the end" in err
    assert "cannot reach the engine" in err


@pytest.mark.parametrize("log", ["events", "switch"])
def test_an_interrupted_follower_is_done_not_failed(
    agent: FakeAgent, engine: FakeEngine, run_dir: Path, log: str
) -> None:
    over = threading.Event()

    def follow(old: list[Any], new: Any) -> Any:
        def answer(asked: Any, _context: grpc.ServicerContext) -> Iterator[Any]:
            yield from old
            if asked.follow:
                yield new
                over.wait(60)

        return answer

    agent.answers["ListEvents"] = follow(AGENT_EVENTS, agent_pb2.EventRecord(id=3, what="new", severity="info"))
    agent.answers["ListSwitches"] = follow([], SWITCH)
    engine.answers["ListEvents"] = follow([], control_pb2.Event(id=9, what="new", severity="info"))
    lines = {"events": len(AGENT_EVENTS) + 2, "switch": 2}[log]
    with start_ha_sync("logs", log, "--follow", "--socket", run_dir / "sync.sock") as process:
        try:
            assert process.stdout is not None
            assert all(process.stdout.readline() for _ in range(lines))
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
            over.set()
    assert (process.returncode, err) == (0, "")


def test_a_reader_that_goes_away_ends_a_follower(agent: FakeAgent, engine: FakeEngine, run_dir: Path) -> None:
    reader_gone, over = threading.Event(), threading.Event()

    def answer(asked: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        if asked.follow:
            context.add_callback(over.set)
            yield AGENT_EVENTS[0]
            reader_gone.wait(60)
            yield AGENT_EVENTS[1]
            over.wait(60)

    agent.answers["ListEvents"] = answer
    engine.answers["ListEvents"] = []
    with start_ha_sync("logs", "events", "--follow", "--socket", run_dir / "sync.sock") as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.stdout.close()
            reader_gone.set()
            assert process.wait(30) == 1
        finally:
            process.kill()
            over.set()
        assert process.stderr is not None
        assert process.stderr.read() == ""
