"""``ha-agent release`` in a namespace of its own: what an agent left goes, what somebody configured stays."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_agent.service.process import LOCK_NAME
from tests.support import netns

REASON = netns.unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

RUN = "from ha_agent.cli.main import main; main()"
SETTINGS = """
[node]
state_dir = "{root}/state"
run_dir = "{root}/run"
[ha]
enabled = true
ipv6 = true
station_type = "primary"
cluster_ip = "10.77.0.53/24"
cluster_ip6 = "fd77::53/64"
peer_ip = "10.77.0.2"
peer_mac = "{mac}"
interface = "eth0"
gateway = "none"
"""


@pytest.fixture(scope="module")
def net() -> Iterator[netns.Net]:
    built = netns.Net()
    yield built
    built.close()


@pytest.fixture
def config(tmp_path: Path, net: netns.Net) -> Path:
    for folder in ("state", "run"):
        (tmp_path / folder).mkdir()
    (tmp_path / "run" / "active").touch()
    file = tmp_path / "ha.toml"
    file.write_text(SETTINGS.format(root=tmp_path, mac=net.mac("b")))
    return file


def left_behind(net: netns.Net) -> None:
    """As a killed agent leaves it: leases of both families; and an address that is nobody's lease."""
    for what in (
        "10.77.0.53/32 label eth0:ha valid_lft 600 preferred_lft 600",
        "fd77::53/128 nodad valid_lft 600 preferred_lft 600",
        "10.77.9.9/32",
    ):
        net.run("a", "ip", "addr", "replace", *what.split(), "dev", "eth0")


def addresses(net: netns.Net) -> set[str]:
    (link,) = json.loads(net.run("a", "ip", "-j", "addr", "show", "dev", "eth0"))
    return {f"{entry['local']}/{entry['prefixlen']}" for entry in link["addr_info"]}


def release(net: netns.Net, config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = net.command("a", sys.executable, "-c", RUN, "release", "--config", str(config), *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.req("R13")
def test_what_a_killed_agent_left_goes_and_what_is_configured_stays(net: netns.Net, config: Path) -> None:
    left_behind(net)
    done = release(net, config)
    assert (done.returncode, done.stderr) == (0, "")
    assert not {"10.77.0.53/32", "fd77::53/128"} & addresses(net)
    assert {"10.77.9.9/32", "10.77.0.1/24"} <= addresses(net)
    assert not (config.parent / "run" / "active").exists()
    again = release(net, config)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


@pytest.mark.req("R13")
def test_with_settings_that_cannot_be_read_the_label_tells(net: netns.Net, config: Path) -> None:
    left_behind(net)
    config.write_text(config.read_text() + "no_such_key = 1\n")
    done = release(net, config)
    assert done.returncode == 0
    assert "no faults" not in done.stderr
    assert "10.77.0.53/32" not in addresses(net)
    assert "10.77.9.9/32" in addresses(net)
    assert not (config.parent / "run" / "active").exists()


@pytest.mark.req("R13")
def test_a_running_agent_keeps_its_address_unless_it_is_forced(net: netns.Net, config: Path) -> None:
    left_behind(net)
    with (config.parent / "state" / LOCK_NAME).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = release(net, config)
        assert refused.returncode == 3
        assert "the agent of this node runs" in refused.stderr
        assert "10.77.0.53/32" in addresses(net)
        assert release(net, config, "--force").returncode == 0
    assert "10.77.0.53/32" not in addresses(net)
