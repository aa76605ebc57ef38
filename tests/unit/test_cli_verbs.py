"""The verbs that talk to the engine: what is asked, what is printed, how the command ends."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from ha_proto.sync.v1 import control_pb2 as pb
from ha_proto.sync.v1 import control_pb2_grpc
from ha_sync.cli.main import main
from tests.support.client import start_ha_sync

STATUS = pb.Status(
    node_id="n-1",
    cluster_id="c-1",
    role="active",
    epoch=2**40,
    pair="pair",
    version="0.1.0",
    uptime_s=3725,
    peer=pb.Peer(node_id="n-2", address="127.0.0.3:9527", connected=False, reason="wrong cluster"),
    datasets=[
        pb.Dataset(
            name="cdr",
            kind="sqlite",
            method="rows: WAL",
            state="streaming",
            position=pb.PositionValue(epoch=4, incarnation="ab", sequence=120),
            acknowledged=pb.PositionValue(epoch=4, incarnation="ab", sequence=118),
            backlog=2,
            consistent=True,
            lag=pb.Lag(p50_ms=2.25, p99_ms=9.75, samples=100),
            counts={"copies_rejected": 20, "checks": 3, "none": 0},
        ),
        pb.Dataset(name="voicemail", kind="tree", state="halted", reason="the root is empty", consistent=False),
    ],
    notices=["backup: kept"],
)


class FakeEngine(control_pb2_grpc.ControlServiceServicer):
    """Answers as it was told to and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.answers: dict[str, Any] = {"GetStatus": STATUS}
        self.fails: tuple[grpc.StatusCode, str, int | None] | None = None

    def _answer(self, method: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked.append(request)
        if self.fails is not None:
            code, details, exit_code = self.fails
            if exit_code is not None:
                context.set_trailing_metadata((("ha-sync-exit-code", str(exit_code)),))
            context.abort(code, details)
        return self.answers[method]

    def GetStatus(self, request, context):  # noqa: N802
        return self._answer("GetStatus", request, context)

    def WaitReplicated(self, request, context):  # noqa: N802
        return self._answer("WaitReplicated", request, context)

    def SetRole(self, request, context):  # noqa: N802
        return self._answer("SetRole", request, context)

    def Resume(self, request, context):  # noqa: N802
        return self._answer("Resume", request, context)

    def Attach(self, request, context):  # noqa: N802
        return self._answer("Attach", request, context)

    def Detach(self, request, context):  # noqa: N802
        return self._answer("Detach", request, context)

    def WatchStatus(self, request, context):  # noqa: N802
        yield from self._answer("WatchStatus", request, context)

    def ListEvents(self, request, context):  # noqa: N802
        yield from self._answer("ListEvents", request, context)


@pytest.fixture
def socket(run_dir: Path) -> str:
    return str(run_dir / "sync.sock")


@pytest.fixture
def engine(socket: str) -> Iterator[FakeEngine]:
    fake = FakeEngine()
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        control_pb2_grpc.add_ControlServiceServicer_to_server(fake, server)
        server.add_insecure_port(f"unix:{socket}")
        server.start()
        yield fake
        server.stop(None).wait()


@pytest.fixture
def run(socket: str, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs a verb against the fake; returns exit code, standard output, standard error."""

    def run(*arguments: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as left:
            main([*arguments, "--socket", socket])
        printed = capsys.readouterr()
        return left.value.code, printed.out, printed.err

    return run


@pytest.mark.req("R30")
def test_status_is_an_aligned_table_without_colour_in_a_pipe(engine: FakeEngine, run: Any) -> None:
    code, out, err = run("status")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "node     n-1: active, epoch 1099511627776, pair pair, up 1h 2m, version 0.1.0",
        "peer     n-2 at 127.0.0.3:9527: not connected (wrong cluster)",
        "notice   backup: kept",
        "",
        "DATASET    KIND    STATE      POSITION  ACKED  BACKLOG  P50 MS  P99 MS  OLDEST MS  METHOD",
        "cdr        sqlite  streaming       120    118        2     2.2     9.8          -  rows: WAL",
        "voicemail  tree    halted            0      -        0       -       -          -  -",
        "",
        "cdr: checks 3, copies_rejected 20",
        "voicemail: the root is empty",
        "voicemail: the copy is not a state that the Active had; a full sync is under way",
    ]


@pytest.mark.req("R30")
def test_status_as_json_has_every_field_by_its_name_and_numbers_as_numbers(engine: FakeEngine, run: Any) -> None:
    code, out, _ = run("status", "--json")
    status = json.loads(out)
    assert code == 0
    assert list(status) == [field.name for field in pb.Status.DESCRIPTOR.fields]
    assert status["epoch"] == 2**40
    assert status["peer"]["connected"] is False
    cdr, voicemail = status["datasets"]
    assert list(cdr) == list(voicemail) == [field.name for field in pb.Dataset.DESCRIPTOR.fields]
    assert cdr["position"] == {"epoch": 4, "incarnation": "ab", "sequence": 120}
    assert cdr["lag"] == {"p50_ms": 2.25, "p99_ms": 9.75, "samples": 100, "oldest_pending_ms": None}
    assert cdr["counts"] == {"checks": 3, "copies_rejected": 20, "none": 0}
    assert (voicemail["lag"], voicemail["acknowledged"], voicemail["counts"]) == (None, None, {})


@pytest.mark.req("R30")
def test_watch_prints_plain_lines_in_a_pipe(engine: FakeEngine, run: Any) -> None:
    engine.answers["WatchStatus"] = [STATUS, STATUS]
    code, out, _ = run("status", "--watch", "--interval", "0.5")
    lines = out.splitlines()
    assert code == 0
    assert engine.asked == [pb.WatchStatusRequest(interval_s=0.5)]
    assert len(lines) == 4
    assert "active epoch=1099511627776 connected=false dataset=cdr state=streaming" in lines[0]
    assert lines[0].endswith("position=120 acknowledged=118 backlog=2 p50_ms=2.2 p99_ms=9.8")
    assert "\x1b" not in out


def test_watch_as_json_is_one_document_a_line(engine: FakeEngine, run: Any) -> None:
    engine.answers["WatchStatus"] = [STATUS, STATUS, STATUS]
    _, out, _ = run("status", "--watch", "--json")
    assert [json.loads(line)["role"] for line in out.splitlines()] == ["active"] * 3


def test_watch_redraws_on_a_terminal(engine: FakeEngine, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine.answers["WatchStatus"] = [STATUS, STATUS]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    _, out, _ = run("status", "--watch")
    assert out.count("\x1b[H\x1b[2J") == 2
    assert "\x1b[32mstreaming\x1b[0m" in out


@pytest.mark.parametrize("arguments", [("status", "--watch"), ("logs", "events", "--follow")])
def test_an_interrupted_watch_is_done_not_failed(engine: FakeEngine, socket: str, arguments: tuple[str, ...]) -> None:
    over = threading.Event()

    def first_then_nothing(first: Any) -> Iterator[Any]:
        yield first
        over.wait(60)

    engine.answers["WatchStatus"] = first_then_nothing(STATUS)
    engine.answers["ListEvents"] = first_then_nothing(pb.Event(id=1, what="started", severity="info"))
    with start_ha_sync(*arguments, "--socket", socket) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline()
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
            over.set()
    assert (process.returncode, err) == (0, "")


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
    assert run("status") == (1, "", "ha-sync: the engine failed UNKNOWN: boom\n")
    engine.fails = (grpc.StatusCode.UNIMPLEMENTED, "", None)
    assert "restart it after an upgrade" in run("status")[2]


def test_no_engine_is_said_with_the_reason_and_a_hint(run: Any, socket: str) -> None:
    assert run("status") == (
        1,
        "",
        f"ha-sync: cannot reach the engine at {socket}: there is no such socket (is `ha-sync serve` running?)\n",
    )
    Path(socket).touch()
    assert "nobody answers" in run("status")[2]


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


def test_events_are_lines_and_as_json_one_document_a_line(engine: FakeEngine, run: Any) -> None:
    event = pb.Event(id=7, unix_s=1_700_000_000.5, severity="warning", what="refused", fields={"peer": "x", "a": "b"})
    engine.answers["ListEvents"] = [event]
    code, out, _ = run("logs", "events", "--since", "2023-11-14T22:13:20+00:00", "--limit", "5", "--follow")
    assert code == 0
    assert out.rstrip().endswith("warning refused a=b peer=x")
    assert engine.asked == [pb.ListEventsRequest(since_unix_s=1_700_000_000, limit=5, follow=True)]
    assert json.loads(run("logs", "events", "--json")[1])["fields"] == {"a": "b", "peer": "x"}


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
