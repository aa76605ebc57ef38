"""A loss of power between any two steps of what an administrator does with a pair: the same step again leads out."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_agent.memory import window
from ha_agent.settings import load as load_agent
from ha_sync.accounts import AccountStore
from ha_sync.config import load as load_engine
from ha_sync.pairing.identity import Identity, init_cluster
from tests.support.power_cut import PROCEDURES

HA = """# of this node
[node]
state_dir = "{place}/state"
run_dir = "{place}/run"

[ha]
enabled = true
station_type = "secondary"
cluster_ip = "192.168.129.53/24"
peer_ip = "192.168.129.51"
peer_mac = "00:0b:82:aa:bb:01"
interface = "lo"
"""
SYNC = '# of this node\n[node]\nstate_dir = "{place}/state"\nrun_dir = "{place}/run"\n'


def furnished(place: Path, procedure: str) -> Path:
    """A node as the procedure finds it."""
    (place / "state").mkdir(parents=True, mode=0o700)
    (place / "ha.toml").write_text(HA.format(place=place))
    (place / "sync.toml").write_text(SYNC.format(place=place))
    if procedure in {"token", "replaced", "dissolved", "shared"}:
        init_cluster(str(place / "state"), address="192.0.2.1:9527")
    return place


@pytest.fixture(scope="module")
def cutter() -> Iterator[subprocess.Popen[str]]:
    line = [sys.executable, "-m", "tests.support.power_cut"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def done(cutter: subprocess.Popen[str], procedure: str, place: Path, last: int) -> int:
    """How it ended."""
    assert cutter.stdin is not None
    assert cutter.stdout is not None
    cutter.stdin.write(f"{procedure}\t{place}\t{last}\n")
    cutter.stdin.flush()
    return int(cutter.stdout.readline())


def judge(place: Path) -> None:
    """Whole files of one time or the other, one identity or none, nothing that others may read."""
    assert str(load_agent(str(place / "ha.toml")).pair) != "None"
    load_engine(str(place / "sync.toml"))
    AccountStore(str(place / "state")).read()
    assert window.opened_from(str(place / "state")) in {None, "1.0.27.5"}
    if (place / "state" / "identity").exists():
        Identity.load(str(place / "state"))
    for folder, _, files in os.walk(place / "state"):
        for name in files:
            assert stat.S_IMODE(os.lstat(os.path.join(folder, name)).st_mode) == 0o600, name


@pytest.mark.req("R1.1", "R3", "R7", "R8", "R8.1", "R33")
@pytest.mark.parametrize("procedure", PROCEDURES)
def test_after_a_loss_of_power_at_any_step_the_same_step_again_leads_out(
    cutter: subprocess.Popen[str], procedure: str, tmp_path: Path
) -> None:
    cuts = 0
    while True:
        place = furnished(tmp_path / f"{cuts}", procedure)
        ended = done(cutter, procedure, place, cuts + 1)
        judge(place)
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        cuts += 1
        assert done(cutter, procedure, place, 10_000) == 0
        judge(place)
        left = [name for _, _, files in os.walk(place) for name in files if name.startswith(".new-")]
        assert left == [], "the next one sweeps what was not finished"
        shutil.rmtree(place)
    assert cuts >= 3, "nothing durable was done"
