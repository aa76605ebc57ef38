"""The verbs that talk to the engine: what is asked, what is printed, how the command ends."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.main import main
from tests.support.client import start_ha_sync
from tests.support.control_service import STATUS, FakeEngine, fake_engine


@pytest.fixture
def socket(run_dir: Path) -> str:
    return str(run_dir / "sync.sock")


@pytest.fixture
def engine(socket: str) -> Iterator[FakeEngine]:
    with fake_engine(socket) as fake:
        yield fake


@pytest.fixture
def run(socket: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb against the fake; returns exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--socket", socket])
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


def no_agent(socket: str) -> str:
    path = Path(socket).with_name("agent.sock")
    return f"cannot reach the agent at {path}: there is no such socket (is `ha-agent run` running?)"


@pytest.mark.req("R30")
def test_status_is_an_aligned_table_without_colour_in_a_pipe(engine: FakeEngine, run: Any, socket: str) -> None:
    code, out, err = run("status")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "node     n-1: active, epoch 1099511627776, pair pair, up 1h 2m, version 0.1.0",
        "peer     n-2 at 127.0.0.3:9527: not connected (wrong cluster)",
        "stream   cable at 127.0.0.3:9527: heard, in use",
        "stream   at 127.0.0.4:9527: unknown",
        "notice   backup: kept",
        "",
        "DATASET    KIND    STATE      POSITION  ACKED  BACKLOG  P50 MS  P99 MS  OLDEST MS  PATH   METHOD",
        "cdr        sqlite  streaming       120    118        2     2.2     9.8          -  cable  rows: WAL",
        "voicemail  tree    halted            0      -        0       -       -          -  -      -",
        "",
        "cdr: checks 3, copies_rejected 20",
        "voicemail: the root is empty",
        "voicemail: the copy is not a state that the Active had; a full sync is under way",
        "",
        f"missing  {no_agent(socket)}",
    ]


@pytest.mark.req("R30")
def test_status_as_json_has_every_field_by_its_name_and_numbers_as_numbers(engine: FakeEngine, run: Any) -> None:
    code, out, _ = run("status", "--json")
    status = json.loads(out)
    assert code == 0
    assert list(status) == [*(field.name for field in pb.Status.DESCRIPTOR.fields), "agent"]
    assert status["agent"] is None
    assert status["epoch"] == 2**40
    assert status["peer"]["connected"] is False
    cdr, voicemail = status["datasets"]
    assert list(cdr) == list(voicemail) == [field.name for field in pb.Dataset.DESCRIPTOR.fields]
    assert cdr["position"] == {"epoch": 4, "incarnation": "ab", "sequence": 120}
    assert cdr["lag"] == {
        "p50_ms": 2.25,
        "p99_ms": 9.75,
        "samples": 100,
        "oldest_pending_ms": None,
        "buckets": [{"at_most_ms": 2.5, "count": 80}, {"at_most_ms": 10.0, "count": 100}],
        "measured": 101,
        "sum_ms": 512.0,
    }
    assert cdr["counts"] == {"checks": 3, "copies_rejected": 20, "none": 0}
    assert (voicemail["lag"], voicemail["acknowledged"], voicemail["counts"]) == (None, None, {})


def looks(count: int) -> Any:
    """So many answers to GetStatus, then nobody answers: that ends a watch."""
    left = [STATUS] * count

    def answer(_request: Any, context: grpc.ServicerContext) -> pb.Status:
        if not left:
            context.abort(grpc.StatusCode.UNAVAILABLE, "")
        return left.pop()

    return answer


@pytest.mark.req("R30")
def test_watch_prints_plain_lines_in_a_pipe(engine: FakeEngine, run: Any) -> None:
    engine.answers["GetStatus"] = looks(2)
    code, out, err = run("status", "--watch", "--interval", "0.1")
    lines = out.splitlines()
    assert code == 1  # neither answers any more
    assert len(lines) == 4
    assert "active epoch=1099511627776 connected=false dataset=cdr state=streaming" in lines[0]
    assert lines[0].endswith("position=120 acknowledged=118 backlog=2 p50_ms=2.2 p99_ms=9.8 path=cable")
    assert "\x1b" not in out
    assert err.count("cannot reach the agent") == 2  # once for both looks, once at the end


def test_watch_as_json_is_one_document_a_line(engine: FakeEngine, run: Any) -> None:
    engine.answers["GetStatus"] = looks(3)
    _, out, _ = run("status", "--watch", "--json", "--interval", "0.1")
    *documents, last = (json.loads(line) for line in out.splitlines())
    assert [document["role"] for document in documents] == ["active"] * 3
    assert last["error"]["kind"] == "OperatorNeeded"


def test_watch_redraws_on_a_terminal(engine: FakeEngine, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.answers["GetStatus"] = looks(2)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = run("status", "--watch", "--interval", "0.1")
    assert out.count("\x1b[H\x1b[2J") == 2
    assert "\x1b[32mstreaming\x1b[0m" in out


def test_an_interrupted_watch_is_done_not_failed(engine: FakeEngine, socket: str) -> None:
    with start_ha_sync("status", "--watch", "--interval", "60", "--socket", socket) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, f"ha-sync: {no_agent(socket)}\n")


INTERRUPTED_IN_A_FINALIZER = """
import os, signal, sys
from ha_sync.cli import main, status

class Strikes:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):
            pass  # here the handler runs, and Python forgets what it raises

show = status._show_update
status._show_update = lambda look, **how: (show(look, **how), Strikes())
main.main(sys.argv[1:])
"""


def test_an_interrupt_that_strikes_within_a_finalizer_ends_a_watch_too(engine: FakeEngine, socket: str) -> None:
    line = [sys.executable, "-c", INTERRUPTED_IN_A_FINALIZER, "status", "--watch", "--interval", "60"]
    done = subprocess.run([*line, "--socket", socket], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    assert "Exception ignored in" in done.stderr


STRUCK_AT_EVERY_LINE = """
import signal, sys
from ha_sync.cli import status

def strike(at):
    lines = 0
    def trace(frame, event, _argument):
        nonlocal lines
        lines += event == "line"
        if event == "line" and lines == at:
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
        return trace
    return trace

status.look_at = lambda *_: status.Look(engine=status.pb.Status(), agent=status.agent_pb2.AgentStatus())
status._show_update = lambda look, **how: None
for at in range(1, 150):
    try:
        sys.settrace(strike(at))
        status._watch("", "", interval=0.01, as_json=False)
    except KeyboardInterrupt:
        print("ended", at)
    finally:
        sys.settrace(None)
"""


def test_an_interrupt_ends_a_watch_wherever_it_strikes() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STRUCK_AT_EVERY_LINE], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ended") > 100


@pytest.mark.req("R22")
def test_wait_ends_with_0_when_all_is_replicated(engine: FakeEngine, run: Any) -> None:
    engine.answers["WaitReplicated"] = pb.WaitReplicatedResponse(replicated=True)
    assert run("wait", "--timeout", "5", "--dataset", "cdr", "--dataset", "etc")[:2] == (0, "replicated\n")
    assert engine.asked == [pb.WaitReplicatedRequest(timeout_s=5, datasets=["cdr", "etc"])]


def test_wait_ends_with_4_and_says_what_is_missing(engine: FakeEngine, run: Any) -> None:
    engine.answers["WaitReplicated"] = pb.WaitReplicatedResponse(replicated=False, waiting_for=["cdr: 3 changes"])
    code, out, err = run("wait", "--timeout", "0.5")
    assert (code, out) == (4, "")
    assert err.splitlines() == ["ha-sync: not replicated within 0.5 s", "  cdr: 3 changes"]
    code, out, _ = run("wait", "--timeout", "0.5", "--json")
    assert (code, json.loads(out)) == (4, {"replicated": False, "waiting_for": ["cdr: 3 changes"]})


@pytest.mark.parametrize(
    ("exit_code", "kind"),
    [
        (1, "HaSyncError"),
        (2, "UsageFault"),
        (3, "WrongState"),
        (4, "RepairNeeded"),
        (5, "PeerUnreachable"),
        (6, "Refused"),
    ],
)
@pytest.mark.req("R33")
def test_a_command_ends_as_the_engine_says(engine: FakeEngine, run: Any, exit_code: int, kind: str) -> None:
    # UNAVAILABLE on purpose: with an exit code it is the engine's own word, not the engine's absence.
    engine.fails = (grpc.StatusCode.UNAVAILABLE, "cannot wait: this node is a Standby", exit_code)
    code, out, err = run("wait")
    assert (code, out, err) == (exit_code, "", "ha-sync: cannot wait: this node is a Standby\n")
    code, out, err = run("wait", "--json")
    assert (code, err) == (exit_code, "")
    assert json.loads(out)["error"]["kind"] == kind
    assert json.loads(out)["error"]["message"] == "cannot wait: this node is a Standby"


def test_a_failure_without_an_exit_code_is_1_with_the_status_in_it(engine: FakeEngine, run: Any) -> None:
    engine.fails = (grpc.StatusCode.UNKNOWN, "boom", None)
    assert run("wait") == (1, "", "ha-sync: the engine failed UNKNOWN: boom\n")
    engine.fails = (grpc.StatusCode.UNIMPLEMENTED, "", None)
    assert "restart it after an upgrade" in run("wait")[2]


def test_no_engine_is_said_with_the_reason_and_a_hint(run: Any, socket: str) -> None:
    no_engine = f"cannot reach the engine at {socket}: there is no such socket (is `ha-sync serve` running?)"
    assert run("wait") == (1, "", f"ha-sync: {no_engine}\n")
    assert run("status") == (1, "", f"ha-sync: {no_agent(socket)}\nha-sync: {no_engine}\n")
    Path(socket).touch()
    assert "nobody answers" in run("wait")[2]


def test_the_socket_follows_from_the_settings_also_when_they_have_faults_elsewhere(
    engine: FakeEngine, socket: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "sync.toml"
    config.write_text(f'[node]\nrun_dir = "{Path(socket).parent}"\n[[dataset]]\n')
    with pytest.raises(SystemExit) as left:
        main(["status", "--json", "--config", str(config)])
    assert left.value.code == 0
    assert json.loads(capsys.readouterr().out)["node_id"] == "n-1"


def test_role_lists_what_the_promotion_finished(engine: FakeEngine, run: Any) -> None:
    done = pb.FinishedValue(dataset="recordings", what="header repaired", subject="a.wav", detail="0 -> 32768")
    engine.answers["SetRole"] = pb.SetRoleResponse(role="active", epoch=6, finished=[done])
    code, out, _ = run("role", "active", "--epoch", "6")
    assert (code, out) == (0, "active, epoch 6\n  recordings: header repaired: a.wav (0 -> 32768)\n")
    assert engine.asked == [pb.SetRoleRequest(role="active", epoch=6)]
    assert json.loads(run("role", "active", "--epoch", "6", "--json")[1])["finished"][0]["subject"] == "a.wav"


def test_resume_attach_and_detach_ask_for_what_was_given(engine: FakeEngine, run: Any) -> None:
    engine.answers |= {
        "Resume": pb.ResumeResponse(),
        "Attach": pb.AttachResponse(installed=["cdr: 12 triggers"]),
        "Detach": pb.DetachResponse(),
    }
    assert run("resume", "recordings", "--accept-deletes")[:2] == (0, "recordings: resumed\n")
    assert run("attach", "cdr")[:2] == (0, "cdr: 12 triggers\n")
    assert run("detach")[:2] == (0, "nothing to remove\n")
    assert json.loads(run("detach", "cdr", "--json")[1]) == {"removed": []}
    assert engine.asked == [
        pb.ResumeRequest(dataset="recordings", accept_deletes=True),
        pb.AttachRequest(dataset="cdr"),
        pb.DetachRequest(),
        pb.DetachRequest(dataset="cdr"),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ("sttus",),
        ("role", "active"),
        ("role", "active", "--epoch", "0"),
        ("role", "primary", "--epoch", "2"),
        ("resume",),
        ("status", "--interval", "0"),
        ("wait", "--timeout", "-1"),
        ("logs", "events", "--since", "yesterday"),
        ("logs", "events", "--since", "9" * 400 + "d"),
        ("serve", "--role", "active", "--epoch", "0"),
        ("serve",),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    for extra in ((), ("--json",)):
        with pytest.raises(SystemExit) as left:
            main([*arguments, *extra])
        assert left.value.code == 2
