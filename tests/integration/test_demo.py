"""``ha-sync demo`` as a process: what it proves, and that nothing of it is left, however it ends."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ha_sync.cli.demo import demo as demo_command
from ha_sync.errors import WrongState
from ha_sync.sample import netns
from ha_sync.sample.agents import processes_of

LONGEST_S = 100
FEW = ("--seconds", "4", "--calls", "5", "--timeout", "7")  # lenient: the machine of a test may stand still for a while
HINDRANCE = netns.hindrance()


@pytest.fixture
def place() -> Iterator[Path]:
    """For the demo's files; short, since sockets lie below it."""
    made = Path(tempfile.mkdtemp(prefix="d-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


def begin(place: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "ha_sync.cli", "demo", *FEW, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "TMPDIR": str(place)},
    )


def namespaces_of(pid: int) -> list[str]:
    folder = Path("/run/netns")
    return [entry.name for entry in folder.iterdir() if f"-{pid}-" in entry.name] if folder.exists() else []


def nothing_is_left(place: Path) -> bool:
    return not list(place.iterdir()) and not list(processes_of(str(place)))


def result_of(demo: subprocess.Popen[str]) -> dict[str, object]:
    said, _ = demo.communicate(timeout=LONGEST_S)
    assert demo.returncode == 0, said
    found: dict[str, object] = json.loads(said)
    return found


@pytest.mark.req("R2")
@pytest.mark.req("R22")
def test_a_killed_active_is_replaced_without_loss_and_nothing_is_left(place: Path) -> None:
    found = result_of(begin(place, "--json"))
    assert found["acknowledged_missing"] == [] == found["faults"]
    assert found["present"] > 1000
    assert {"config", "cdr", "cel", "astdb"} <= found["lag_ms"].keys()
    switch, client = found["take_over"], found["client"]
    assert switch["epoch"] == 3, "the election took 2, the take-over the next one"
    assert {name for name, seconds in switch["phases_s"].items() if seconds is not None} == {
        "detect",
        "decide",
        "address",
        "services",
    }
    assert client["stand_in"]
    assert client["outage_s"]["arp"] is None
    # The silence counts from the last beat, which may be a beat older than the last answer.
    assert 6.5 < client["outage_s"]["udp"] <= switch["working_s"] + 1
    assert nothing_is_left(place)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_ended_in_mid_work_leaves_nothing(place: Path, number: signal.Signals) -> None:
    demo = begin(place)
    assert demo.stdout is not None
    try:
        seen = next((line for line in demo.stdout if "the agents chose a" in line or "failed" in line), "")
        assert "the agents chose a" in seen, demo.stdout.read()
        assert list(processes_of(str(place))), "six processes name the directory"
        demo.send_signal(number)
        demo.send_signal(number)  # impatience does not interrupt what removes the rest
        demo.communicate(timeout=LONGEST_S)
    finally:
        demo.kill()
        demo.communicate()
    assert demo.returncode not in {0, -number}
    assert nothing_is_left(place)


@pytest.mark.root
@pytest.mark.skipif(HINDRANCE is not None, reason=str(HINDRANCE))
@pytest.mark.req("R22")
def test_in_namespaces_a_client_asks_the_real_address_by_arp_and_udp(place: Path) -> None:
    demo = begin(place, "--netns", "--json")
    found = result_of(demo)
    assert found["acknowledged_missing"] == [] == found["faults"]
    client = found["client"]
    assert (client["cluster_ip"], client["stand_in"]) == (netns.CLUSTER_IP, False)
    # The dead node's kernel answers ARP until its lease ends; nobody answers UDP until the new holder is there.
    assert 0 < client["outage_s"]["arp"] < client["outage_s"]["udp"] <= found["take_over"]["working_s"] + 1
    assert nothing_is_left(place)
    assert not namespaces_of(demo.pid)


@pytest.mark.root
@pytest.mark.skipif(HINDRANCE is not None, reason=str(HINDRANCE))
def test_a_network_that_fails_half_way_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns.Network, "_plug", lambda *_: netns.ip("link", "no-such-verb"))
    with pytest.raises(netns.NetworkFailure, match="no-such-verb"):
        netns.Network()
    assert not namespaces_of(os.getpid())


@pytest.mark.parametrize(
    ("euid", "path", "remedy"), [(1000, "/usr/sbin:/sbin:/usr/bin:/bin", "run it as root"), (0, "", "iproute2")]
)
def test_netns_without_its_means_ends_with_3_and_the_remedy(
    monkeypatch: pytest.MonkeyPatch, euid: int, path: str, remedy: str
) -> None:
    monkeypatch.setattr(netns.os, "geteuid", lambda: euid)
    monkeypatch.setenv("PATH", path)
    error = CliRunner().invoke(demo_command, ["--netns"]).exception
    assert isinstance(error, WrongState)
    assert error.exit_code == 3
    assert remedy in error.hint
