"""The backup and the storage log of real engines: full syncs, runs that a crash cut off, and what tools ask."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.sample.pair import LocalNode, LocalPair
from tests.support.small_pair import furnish, small_toml, until

pytestmark = pytest.mark.req("R31")

DATASETS = "astdb, config, files, recordings"

# As an engine does that is killed in the middle of a run.
CUT_OFF = """
import os, signal, sys
from ha_sync.core.examine import Fault, Finding, Side
from ha_sync.logs.runs import Kind, RunLog, Trigger
log = RunLog(sys.argv[1], report=lambda *event: None)
run = log.begin(Kind.STORAGE_SYNC, Trigger.SCHEDULE, now=0.0, peer="usb0")
log.found(run, Finding(dataset="files", subject="a", fault=Fault.MISSING, side=Side.STANDBY))
log.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[LocalPair]:
    with LocalPair(str(tmp_path), small_toml) as made:
        furnish(made.a.place.root)
        yield made


def runs(node: LocalNode, log: str, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in node.command("logs", log, "--json", *arguments).stdout.splitlines()]


def until_done(node: LocalNode, number: int) -> list[dict[str, Any]]:
    """Until the backup log has so many full syncs that ended well."""
    found: list[dict[str, Any]] = []

    def looked() -> bool:
        found[:] = runs(node, "backup", "--result", "done", "--kind", "full-sync")
        return len(found) >= number

    until(looked, f"full sync number {number}", timeout_s=60)
    return found


@pytest.mark.req("R22")
def test_the_full_sync_of_a_pair_and_of_an_old_active_are_in_the_log_of_the_active(pair: LocalPair) -> None:
    content = bytes(range(256)) * 4000
    Path(pair.a.place.root, "files/f").write_bytes(content)
    pair.start()
    (first,) = until_done(pair.a, 1)
    assert (first["trigger"], first["facts"]["datasets"]) == ("boot", DATASETS)
    assert first["peer"] == pair.a.status().peer.node_id != ""
    assert first["bytes_sent"] > 0
    assert first["took_s"] > 0
    assert first["end_unix_s"] == pytest.approx(first["begin_unix_s"] + first["took_s"])
    assert runs(pair.b, "backup") == []
    pair.b.set_role("active", 3)
    pair.a.set_role("standby", 3)
    pair.until_streaming(active=pair.b)
    second = until_done(pair.b, 1)[-1]
    assert (second["trigger"], second["error"]) == ("rejoin", "")
    assert "full-sync" in pair.b.command("logs", "backup").stdout


def test_a_dataset_that_the_active_has_nothing_of_yet_does_not_keep_a_full_sync_open(pair: LocalPair) -> None:
    Path(pair.a.place.root, "config.db").unlink()
    Path(pair.a.place.root, "astdb.sqlite3").unlink()
    Path(pair.a.place.root, "files").rmdir()
    pair.pair_up()
    pair.b.serve("standby", 1)
    (run,) = until_done(pair.a, 1)
    assert run["facts"]["datasets"] == "recordings"
    furnish(pair.a.place.root)
    pair.until_streaming()
    named = ", ".join(run["facts"]["datasets"] for run in until_done(pair.a, 2)[1:])
    assert "recordings" not in named  # what it has now, in one run or in several


def test_a_run_that_a_kill_cut_off_is_closed_by_the_next_engine_and_told_of(pair: LocalPair) -> None:
    path = Path(pair.a.place.state_dir, "logs", "storage.db")
    killed = subprocess.run([sys.executable, "-c", CUT_OFF, str(path)], check=False, timeout=60)
    assert killed.returncode == -9
    pair.a.serve("active", 2)
    (run,) = runs(pair.a, "storage", "--result", "interrupted")
    assert (run["kind"], run["peer"], run["took_s"], run["findings"]) == ("storage-sync", "usb0", None, 1)
    told = json.loads(pair.a.command("logs", "storage", "--json", "--run", run["id"]).stdout)
    assert [item["subject"] for item in told["found"]] == ["a"]
    events = [json.loads(line) for line in pair.a.command("logs", "events", "--json").stdout.splitlines()]
    (event,) = [event for event in events if event["what"] == "a run was cut off by the end of the engine"]
    assert event["fields"] == {"run": run["id"], "kind": "storage-sync"}
    assert runs(pair.a, "backup") == []


@pytest.mark.req("R33")
def test_a_wrong_request_names_field_and_value_and_what_there_is(pair: LocalPair) -> None:
    pair.a.serve("active", 2)
    stub = pair.a.control()

    def refused(call: Any) -> str:
        with pytest.raises(grpc.RpcError) as failed:
            list(call)
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert ("ha-sync-exit-code", "2") in failed.value.trailing_metadata()
        return str(failed.value.details())

    for request, said in (
        (pb.ListRunsRequest(), "log: '' is none of backup, storage"),
        (pb.ListRunsRequest(log="switch"), "log: 'switch' is none of backup, storage"),
        (pb.ListRunsRequest(log="backup", result="odd"), "result: 'odd' is none of running, done, partial"),
        (pb.ListRunsRequest(log="backup", kind="odd"), "kind: 'odd' is none of full-backup, full-sync"),
        (pb.ListRunsRequest(log="backup", limit=2**32 - 1), "limit: 4.29497e+09 is not between 1 and 1e+06"),
        (pb.ListRunsRequest(log="backup", since_unix_s=float("nan")), "since_unix_s: nan is not between"),
        (pb.ListRunsRequest(log="backup", id="x"), "id: 'x' is no run of the backup log; `ha-sync logs backup` lists"),
    ):
        assert said in refused(stub.ListRuns(request, timeout=30))
    assert "id: '' is no run of the storage log" in refused(
        stub.ListFindings(pb.ListFindingsRequest(log="storage"), timeout=30)
    )
    done = pair.a.command("logs", "backup", "--run", "x", check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "id: 'x' is no run of the backup log" in done.stderr


def test_a_follower_sees_a_full_sync_begin_and_end(pair: LocalPair) -> None:
    pair.pair_up()
    request = pb.ListRunsRequest(log="backup", follow=True, kind="full-sync")
    following = pair.a.control().ListRuns(request, timeout=120)
    pair.b.serve("standby", 1)
    begun, ended = next(following), next(following)
    following.cancel()
    assert (begun.result, begun.HasField("took_s")) == ("running", False)
    assert (ended.id, ended.result) == (begun.id, "done")
