"""The verbs that talk to the agent: what is asked, what is printed, how the command ends."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ha_agent.arbiter.values import Reason
from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.cli.main import main
from ha_sync.cli.reasons import MEANINGS
from tests.support.agent_service import FakeAgent, fake_agent
from tests.support.client import start_ha_sync

Run = Callable[..., tuple[Any, str, str]]


@pytest.fixture
def agent(run_dir: Path) -> Iterator[FakeAgent]:
    with fake_agent(str(run_dir / "agent.sock")) as fake:
        yield fake


@pytest.fixture
def run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a verb against the fake; returns exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--agent-socket", str(run_dir / "agent.sock")])
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


@pytest.mark.req("R6", "R1.13")
def test_a_planned_switch_says_the_epoch_and_how_long_it_took(agent: FakeAgent, run: Run) -> None:
    agent.answers["Switch"] = pb.SwitchResponse(switched=True, epoch=9)
    code, out, err = run("switch", "--timeout", "40")
    assert (code, err) == (0, "")
    assert out.startswith("switched in ")
    assert out.endswith(" s, epoch 9\n")
    assert agent.asked == [pb.SwitchRequest(timeout_s=40)]


def test_a_switch_as_json_is_the_answer_and_how_long_it_took(agent: FakeAgent, run: Run) -> None:
    agent.answers["Switch"] = pb.SwitchResponse(switched=True, epoch=9)
    code, out, _ = run("switch", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts.pop("took_s") >= 0
    assert facts == {"switched": True, "reason": "", "peer_reasons": [], "epoch": 9, "detail": ""}


@pytest.mark.req("R6")
def test_force_is_passed_on_and_what_may_be_lost_is_said_before(agent: FakeAgent, run: Run) -> None:
    def refused(_request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(grpc.StatusCode.UNKNOWN, "stop here")

    agent.answers["Switch"] = refused
    _, out, err = run("switch", "--force", "--accept-data-loss", "--accept-dual")
    assert agent.asked == [pb.SwitchRequest(force=True, accept_data_loss=True, accept_dual=True)]
    assert out == ""
    assert [line.split(":")[0] for line in err.splitlines()] == [
        "--force",
        "--accept-data-loss",
        "--accept-dual",
        "ha-sync",
    ]
    assert all("lost" in line or "two nodes" in line for line in err.splitlines()[:3])
    assert run("switch", "--force", "--json")[2] == ""


@pytest.mark.req("R6")
@pytest.mark.parametrize(
    ("reason", "exit_code"),
    [
        ("not_active", 3),
        ("busy", 3),
        ("observing", 3),
        ("peer_silent", 5),
        ("peer_lost", 5),
        ("peer_not_ready", 6),
        ("peer_heard", 6),
        ("backup_running", 6),
        ("unsound", 6),
        ("deadline", 1),
        ("cancelled", 1),
        ("the moon is full", 1),
        ("", 1),
    ],
)
def test_a_refused_switch_ends_by_its_reason(agent: FakeAgent, run: Run, reason: str, exit_code: int) -> None:
    agent.answers["Switch"] = pb.SwitchResponse(switched=False, reason=reason)
    code, out, err = run("switch")
    assert (code, out) == (exit_code, "")
    assert err.startswith("ha-sync: the roles were not changed: ")
    assert (MEANINGS[reason].text if reason in MEANINGS else reason) in err


@pytest.mark.req("R6")
def test_a_refused_switch_names_reason_remedy_and_the_peers_reasons(agent: FakeAgent, run: Run) -> None:
    agent.answers["Switch"] = pb.SwitchResponse(
        switched=False, reason="peer_not_ready", peer_reasons=["behind", "\x1b[2Jgone"]
    )
    code, _, err = run("switch")
    assert code == 6
    assert err.splitlines() == [
        "ha-sync: the roles were not changed: the peer is not ready to take over (mend what it names, or --force)",
        "  peer: the data is behind the Active's",
        r"  peer: '\x1b[2Jgone'",
    ]
    code, out, err = run("switch", "--json")
    facts = json.loads(out)
    assert (code, err) == (6, "")
    assert (facts["switched"], facts["reason"], facts["peer_reasons"][0]) == (False, "peer_not_ready", "behind")
    assert (facts["error"]["kind"], facts["error"]["exit_code"]) == ("Refused", 6)


def test_an_exit_code_that_the_agent_states_with_its_answer_counts_more(agent: FakeAgent, run: Run) -> None:
    def answer(_request: Any, context: grpc.ServicerContext) -> pb.SwitchResponse:
        context.set_trailing_metadata((("ha-sync-exit-code", "5"),))
        return pb.SwitchResponse(reason="nobody there")

    agent.answers["Switch"] = answer
    assert run("switch") == (5, "", "ha-sync: the roles were not changed: nobody there\n")


def test_every_reason_of_the_arbiter_has_words() -> None:
    assert set(MEANINGS) == {reason.value for reason in Reason}


ASKED = {
    ("switch", "--cancel"): pb.CancelSwitchRequest(),
    ("maintenance", "--for", "30m"): pb.SetMaintenanceRequest(seconds=1800),
    ("maintenance", "--end"): pb.SetMaintenanceRequest(seconds=0),
    ("maintenance",): pb.GetStatusRequest(),
    ("release",): pb.ReleaseHoldRequest(),
    ("single",): pb.DeclareSingleRequest(),
}


@pytest.mark.parametrize(
    ("arguments", "out", "document"),
    [
        (("switch", "--cancel"), "cancelled: the Active goes on\n", {"cancelled": True}),
        (
            ("maintenance", "--for", "30m"),
            "maintenance for 30m 0s: no automatic switch\n",
            {"maintenance_left_s": 1800.0},
        ),
        (("maintenance", "--end"), "no maintenance\n", {"maintenance_left_s": 0.0}),
        (("maintenance",), "no maintenance\n", {"maintenance_left_s": 0.0}),
        (("release",), "released: the pair switches by itself again\n", {"released": True}),
        (("single",), "single: this node serves without its peer\n", {"single": True}),
    ],
)
def test_a_verb_asks_for_what_was_given(
    agent: FakeAgent, run: Run, arguments: tuple[str, ...], out: str, document: dict[str, object]
) -> None:
    assert run(*arguments) == (0, out, "")
    code, printed, err = run(*arguments, "--json")
    assert (code, json.loads(printed), err) == (0, document, "")
    assert agent.asked == [ASKED[arguments]] * 2


def test_maintenance_without_an_option_says_how_long_it_goes_on(agent: FakeAgent, run: Run) -> None:
    agent.answers["GetStatus"] = pb.AgentStatus(maintenance_left_s=61.5)
    assert run("maintenance")[1] == "maintenance for 1m 1s: no automatic switch\n"


@pytest.mark.parametrize("verb", ["switch", "maintenance", "release", "single"])
@pytest.mark.parametrize(("exit_code", "kind"), [(3, "WrongState"), (5, "PeerUnreachable"), (6, "Refused")])
@pytest.mark.req("R6")
def test_a_verb_ends_as_the_agent_says(agent: FakeAgent, run: Run, verb: str, exit_code: int, kind: str) -> None:
    agent.fails = (grpc.StatusCode.UNAVAILABLE, "cannot: the peer is heard", exit_code)
    assert run(verb) == (exit_code, "", "ha-sync: cannot: the peer is heard\n")
    code, out, err = run(verb, "--json")
    assert (code, err) == (exit_code, "")
    assert json.loads(out)["error"]["kind"] == kind


def test_no_agent_is_said_with_the_reason_and_a_hint(run: Run, run_dir: Path) -> None:
    path = run_dir / "agent.sock"
    missing = f"ha-sync: cannot reach the agent at {path}: there is no such socket (is `ha-agent run` running?)\n"
    assert run("release") == (1, "", missing)
    path.touch()
    assert "nobody answers (is `ha-agent run` running?)" in run("release")[2]


@pytest.mark.parametrize("by", ["engine's socket", "settings", "environment"])
def test_the_agents_socket_is_beside_the_engines_unless_it_is_named(
    agent: FakeAgent, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    config = tmp_path / "sync.toml"
    config.write_text(f'[node]\nrun_dir = "{run_dir}"\n')
    arguments = {
        "engine's socket": ["--socket", str(run_dir / "sync.sock")],
        "settings": ["--config", str(config)],
        "environment": ["--socket", "/nowhere/sync.sock"],
    }[by]
    if by == "environment":
        monkeypatch.setenv("HA_SYNC_AGENT_SOCKET", str(run_dir / "agent.sock"))
    with pytest.raises(SystemExit) as left:
        main(["release", *arguments])
    assert left.value.code == 0
    assert agent.asked == [pb.ReleaseHoldRequest()]


def test_an_interrupted_switch_says_that_it_goes_on(agent: FakeAgent, run_dir: Path) -> None:
    begun, over = threading.Event(), threading.Event()

    def long(_request: Any, context: grpc.ServicerContext) -> pb.SwitchResponse:
        context.add_callback(over.set)
        begun.set()
        over.wait(60)
        return pb.SwitchResponse()

    agent.answers["Switch"] = long
    with start_ha_sync("switch", "--agent-socket", run_dir / "agent.sock") as process:
        try:
            assert begun.wait(60)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
            over.set()
    assert (process.returncode, out) == (130, "")
    assert err.rstrip() == "ha-sync: interrupted; a switch that has begun goes on: `ha-sync switch --cancel`"


@pytest.mark.parametrize(
    "arguments",
    [
        ("switch", "--accept-dual"),
        ("switch", "--cancel", "--force"),
        ("switch", "--cancel", "--timeout", "3"),
        ("switch", "--timeout", "-1"),
        ("maintenance", "--for", "30"),
        ("maintenance", "--for", "0m"),
        ("maintenance", "--for", "9" * 400 + "d"),
        ("maintenance", "--for", "30m", "--end"),
        ("logs", "switch", "--result", "good"),
        ("logs", "switch", "--limit", "0"),
        ("logs", "events", "--source", "pbx"),
    ],
)
def test_wrong_usage_ends_with_2_and_asks_nobody(agent: FakeAgent, run: Run, arguments: tuple[str, ...]) -> None:
    assert run(*arguments)[0] == 2
    assert agent.asked == []
