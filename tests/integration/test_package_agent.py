"""A restore under agents: the services stop and start, the epoch grows by the table, the Standby takes it over."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from ha_proto.agent.v1 import agent_pb2 as apb
from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.sample.agents import HaNode, HaPair
from ha_sync.sample.stage import loopback
from tests.support.package_site import tree_looks
from tests.support.small_pair import until

TIMEOUT_S = 3.0


@pytest.fixture(scope="module")
def pair() -> Iterator[HaPair]:
    """One for all: forming it takes longer than what is tested."""
    with (
        tempfile.TemporaryDirectory(prefix="ha-", ignore_cleanup_errors=True) as folder,
        HaPair(folder, loopback(TIMEOUT_S).scenes, seed=7, calls=2) as made,
    ):
        made.form()
        yield made


def dataset_paths(node: HaNode) -> dict[str, str]:
    return {one.name: one.path for one in node.engine.status().datasets}


@pytest.mark.req("R24", "R33")
def test_a_restore_stops_the_services_raises_the_epoch_and_the_standby_follows(pair: HaPair, run_dir: Path) -> None:
    a, b = pair.a, pair.b
    file = str(run_dir / "pbx.package")
    told = json.loads(a.engine.command("package", "export", file, "--json", timeout_s=120).stdout)
    assert told["faults"] == []
    before, pbx = a.agent.status(), a.pbx.pid
    trees = [path for path in dataset_paths(a).values() if os.path.isdir(path)]
    Path(trees[0], "added-later").write_text("not in the package")
    assert pair.engines.a.wait_replicated() is not None

    restored = json.loads(a.engine.command("package", "restore", file, "--json", timeout_s=120).stdout)

    after = a.agent.status()
    assert restored["epoch"] == after.epoch > before.epoch
    assert after.epoch % 2 == before.epoch % 2, "chosen by the agent: the Primary's are even"
    assert not Path(trees[0], "added-later").exists()
    a.agent.until(lambda: a.pbx.pid not in {None, pbx}, "the services start again", timeout_s=30)
    assert after.role == "active"
    pair.engines.until_streaming(timeout_s=60)
    b.agent.until(lambda: b.agent.status().ready and b.agent.status().epoch == after.epoch, "readiness", timeout_s=60)
    other = dataset_paths(b)
    until(lambda: "added-later" not in tree_looks(other_tree(other, trees[0], a, b), own=True), "the Standby follows")
    # Nothing of it was a switch.
    assert [record.result for record in a.agent.switches() if record.result == "done"] == ["done"], "the election"


def other_tree(paths: dict[str, str], path: str, a: HaNode, b: HaNode) -> str:
    wanted = path.replace(a.engine.place.root, b.engine.place.root)
    assert wanted in paths.values()
    return wanted


@pytest.mark.req("R24")
def test_a_killed_engine_brings_back_what_was_and_no_service_starts_before(pair: HaPair, run_dir: Path) -> None:
    a = pair.a
    file = str(run_dir / "pbx.package")
    a.engine.command("package", "export", file, timeout_s=120)
    tree = next(path for path in dataset_paths(a).values() if os.path.isdir(path))
    Path(tree, "added-later").write_text("not in the package")
    epoch = a.agent.status().epoch
    with writing(f"{tree}/held"):
        call = stopping(a, file)
        a.agent.until(lambda: a.pbx.pid is None, "the services stop", timeout_s=40)
        assert a.engine.process is not None
        os.kill(a.engine.process.pid, signal.SIGKILL)
        with pytest.raises(grpc.RpcError):
            list(call)
    a.agent.until(lambda: not a.agent.status().engine_attached, "the loss of the engine", timeout_s=20)
    events = a.engine.command("logs", "events", "--source", "agent", "--json").stdout
    assert "the engine is gone within a restore" in events
    assert a.pbx.pid is None, "nobody knows yet whether the data is whole"
    a.engine.kill()
    a.engine.follow()
    until(lambda: a.engine.status().role == "active", "the role", timeout_s=30)
    a.agent.until(lambda: a.pbx.pid is not None, "the services start again", timeout_s=40)
    assert (logged(a)[-1]["kind"], logged(a)[-1]["result"]) == ("restore", "interrupted")
    assert Path(tree, "added-later").exists()
    assert a.agent.status().epoch == epoch
    until(lambda: not [name for name in os.listdir(tree) if name.startswith(".ha-restore")], "what was staged goes")


@contextlib.contextmanager
def writing(path: str) -> Iterator[None]:
    """Whoever writes to a dataset holds a restore up: its services count as stopped when he is gone."""
    line = [sys.executable, "-c", "import sys; f = open(sys.argv[1], 'w'); print(flush=True); sys.stdin.read()", path]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        yield
        writer.communicate()


def stopping(node: HaNode, file: str) -> Any:
    """A restore that waits for its services to stop."""
    call = node.engine.control().RestorePackage(pb.RestorePackageRequest(path=file))
    for progress in call:
        if progress.phase == "stopping":
            return call
    raise AssertionError("it never came that far")


def logged(node: HaNode) -> list[dict[str, object]]:
    return [json.loads(line) for line in node.engine.command("logs", "backup", "--json").stdout.splitlines()]


@pytest.mark.req("R24", "R6")
def test_ending_the_call_gives_the_restore_up_and_the_services_start_again(pair: HaPair, run_dir: Path) -> None:
    a = pair.a
    file = str(run_dir / "pbx.package")
    a.engine.command("package", "export", file, timeout_s=120)
    tree = next(path for path in dataset_paths(a).values() if os.path.isdir(path))
    Path(tree, "added-later").write_text("not in the package")
    epoch = a.agent.status().epoch
    with writing(f"{tree}/held"):
        call = stopping(a, file)
        a.agent.until(lambda: a.pbx.pid is None, "the services stop", timeout_s=40)
        answer = a.agent._ask(lambda stub: stub.Switch(apb.SwitchRequest(timeout_s=5), timeout=30))
        assert (answer.switched, answer.reason) == (False, "backup_running")
        call.cancel()
        a.agent.until(lambda: a.pbx.pid is not None, "the services start again", timeout_s=40)
    until(lambda: logged(a)[-1]["result"] != "running", "the run ends")
    assert (logged(a)[-1]["kind"], logged(a)[-1]["result"]) == ("restore", "cancelled")
    assert Path(tree, "added-later").exists()
    assert a.agent.status().epoch == epoch
    until(lambda: not [name for name in os.listdir(tree) if name.startswith(".ha-restore")], "what was staged goes")
