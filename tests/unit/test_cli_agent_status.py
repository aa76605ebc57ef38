"""``ha-sync status`` with an agent, with and without an engine."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_proto.sync.v1 import control_pb2
from ha_sync.cli import agent_page
from ha_sync.cli.main import main
from ha_sync.cli.times import moment
from tests.support.agent_service import STATUS, FakeAgent, fake_agent
from tests.support.control_service import FakeEngine, fake_engine

Run = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def agent(run_dir: Path) -> Iterator[FakeAgent]:
    with fake_agent(str(run_dir / "agent.sock")) as fake:
        yield fake


@pytest.fixture
def engine(run_dir: Path) -> Iterator[FakeEngine]:
    with fake_engine(str(run_dir / "sync.sock")) as fake:
        yield fake


@pytest.fixture
def run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--socket", str(run_dir / "sync.sock")])
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


def changed(**fields: Any) -> pb.AgentStatus:
    status = pb.AgentStatus()
    status.CopyFrom(STATUS)
    status.MergeFrom(pb.AgentStatus(**fields))
    return status


PAGE = [
    "role     active, epoch 8: pbx-a, primary",
    "address  192.168.129.53: this node, lease 4.2 s",
    "pair     the peer is standby, epoch 8: ready",
    "path     lan: both, heard 0.1 s ago, there 0.1 s ago",
    "path     cable: lost, never heard, there never",
    "probes   1 bad, 2 good",
    "fault    fxo:3: alarm RED",
    "alarm    path lost: cable",
    f"switch   {moment(1_700_000_000.5)} planned, standby -> active, epoch 8: done in 1.6 s",
]


@pytest.mark.req("R30")
def test_the_agents_page_stands_above_the_engines(agent: FakeAgent, engine: FakeEngine, run: Run) -> None:
    code, out, err = run("status")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[: len(PAGE)] == PAGE
    assert lines[len(PAGE) : len(PAGE) + 2] == [
        "",
        "node     n-1: active, epoch 1099511627776, pair pair, up 1h 2m, version 0.1.0",
    ]
    assert "missing" not in out


@pytest.mark.req("R30")
def test_a_standby_that_could_not_take_over_says_why() -> None:
    status = pb.AgentStatus(
        role="standby",
        phase="candidate",
        epoch=8,
        cluster_ip="192.168.129.53",
        holder="the peer",
        reasons=["behind", "engine_gone"],
        peer_role="active",
        peer_epoch=8,
        peer_reasons=[],
        maintenance_left_s=1799,
        held=True,
        observe_only=True,
        beats_refused={"foreign": 3, "replayed": 0},
    )
    assert [line for line in agent_page.page(status) if "\x1b" not in line] == [
        "role     standby (candidate), epoch 8",
        "address  192.168.129.53: the peer",
        "ready    no: the data is behind the Active's; the engine is gone",
        "pair     the peer is active, epoch 8",
        "mode     maintenance for 29m 59s more: no automatic switch",
        "mode     held after repeated automatic switches; `ha-sync release` ends it",
        "mode     observe-only: what would be done is logged and not done",
        "beats    refused: foreign 3",
    ]


@pytest.mark.req("R30")
@pytest.mark.parametrize(
    ("facts", "line"),
    [
        ({"peer_role": ""}, "pair     the peer is not heard"),
        ({"peer_role": "", "single": True}, "pair     single: the peer is not heard"),
        (
            {"peer_role": "standby", "peer_epoch": 4, "peer_reasons": ["faulty"]},
            "pair     the peer is standby, epoch 4: could not take over: a health probe is bad",
        ),
        ({"role": "standby", "ready": True}, "ready    yes"),
        ({"role": "standby"}, "ready    no: no reason given"),
        ({"engine_attached": False}, "\x1b[31mengine   is not attached to the agent\x1b[0m"),
        ({"cluster_ip": ""}, "address  -: nobody known"),
    ],
)
def test_what_is_known_of_the_pair_in_a_line(facts: dict[str, Any], line: str) -> None:
    assert line in agent_page.page(pb.AgentStatus(**facts))


@pytest.mark.req("R30")
def test_the_document_is_the_engines_with_the_agents_in_it(agent: FakeAgent, engine: FakeEngine, run: Run) -> None:
    code, out, err = run("status", "--json")
    status = json.loads(out)
    assert (code, err) == (0, "")
    assert status["node_id"] == "n-1"
    assert list(status["agent"]) == [field.name for field in pb.AgentStatus.DESCRIPTOR.fields]
    assert status["agent"]["holds"] is True
    assert status["agent"]["paths"][1] == {
        "name": "cable",
        "heard_age_s": None,
        "peer_heard_age_s": None,
        "state": "lost",
        "beats": 0,
    }
    assert status["agent"]["last_switch"]["phases_s"]["address"] == 0.31


@pytest.mark.req("R30")
def test_an_agent_without_an_engine_is_shown_and_the_missing_one_said(agent: FakeAgent, run: Run) -> None:
    code, out, _ = run("status")
    assert code == 0
    assert out.splitlines()[:-2] == PAGE
    assert out.splitlines()[-1].startswith("missing  cannot reach the engine at ")
    code, out, _ = run("status", "--json")
    status = json.loads(out)
    assert code == 0
    assert status.pop("agent")["role"] == "active"
    assert status == {field.name: None for field in control_pb2.Status.DESCRIPTOR.fields}


def test_an_engine_that_fails_does_not_hide_the_agent(agent: FakeAgent, engine: FakeEngine, run: Run) -> None:
    engine.fails = (grpc.StatusCode.UNKNOWN, "boom", None)
    assert run("status")[1].splitlines()[-1] == "missing  the engine failed UNKNOWN: boom"


def test_an_agent_that_hangs_does_not_hide_the_engine(
    engine: FakeEngine, run: Run, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ha_sync.cli.status.LOOK_S", 0.1)
    with socket.socket(socket.AF_UNIX) as frozen:
        frozen.bind(str(run_dir / "agent.sock"))
        frozen.listen()
        code, out, _ = run("status")
    assert code == 0
    assert out.startswith("node     n-1: active")
    assert out.splitlines()[-1].startswith("missing  waiting for the agent's answer ")


def test_where_neither_answers_both_are_named_and_the_command_fails(run: Run) -> None:
    code, out, err = run("status")
    assert (code, out) == (1, "")
    assert [line.split(" at ")[0] for line in err.splitlines()] == [
        "ha-sync: cannot reach the agent",
        "ha-sync: cannot reach the engine",
    ]


@pytest.mark.req("R30")
def test_watch_shows_both_and_goes_on_when_one_goes_away(agent: FakeAgent, engine: FakeEngine, run: Run) -> None:
    looks = []

    def engine_goes_first(request: Any, context: grpc.ServicerContext) -> pb.AgentStatus:
        looks.append(request)
        if len(looks) == 2:
            engine.fails = (grpc.StatusCode.UNAVAILABLE, "", None)
        if len(looks) == 5:
            context.abort(grpc.StatusCode.UNAVAILABLE, "")
        return changed(reasons=["behind"])

    agent.answers["GetStatus"] = engine_goes_first
    code, out, err = run("status", "--watch", "--interval", "0.1")
    words = [line.split()[1] for line in out.splitlines()]
    assert code == 1  # in the end neither answers
    assert words == ["agent", "active", "active", "agent", "active", "active", "agent", "agent"]
    assert (
        "agent role=active phase=active epoch=8 holds=true ready=true reasons=behind peer_role=standby single=false "
        "paths=lan:both,cable:lost faults=fxo:3 alarms=1 unsent=0 maintenance_left_s=0 held=false"
    ) in out
    # Said once for two looks, and once more at the end with the agent's absence.
    assert err.count("cannot reach the engine") == 2
    assert err.count("cannot reach the agent") == 1
