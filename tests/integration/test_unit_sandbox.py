"""The capabilities that the units leave are enough: agent and engine do with them what they must."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_proto.agent.v1 import agent_pb2 as pb
from tests.integration.test_agent_cli import InNamespace, holds, lan_toml
from tests.support import netns
from tests.support.agent_engine import FakeEngine
from tests.support.agent_process import Client, command, environment, is_sound
from tests.support.agent_settings import pair_up

ROOT = Path(__file__).resolve().parent.parent.parent
SETPRIV = shutil.which("setpriv")
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(SETPRIV is None, reason="needs setpriv (Debian: package util-linux)"),
]
needs_namespaces = pytest.mark.skipif(netns.unavailable() is not None, reason=netns.unavailable() or "")

FILES_OF_OTHERS = """
import json, os, sys
folder, pid = sys.argv[1:]
done = {}

def attempt(what, call):
    try:
        call()
    except OSError as refused:
        done[what] = refused.strerror
    else:
        done[what] = ""

path = folder + "/theirs"
attempt("read", lambda: open(path).close())
attempt("write", lambda: open(path, "a").close())
attempt("time", lambda: os.utime(path, (1, 1)))
attempt("attribute", lambda: os.setxattr(path, "user.x", b"y"))
attempt("mode", lambda: os.chmod(path, 0o6755))
attempt("owner", lambda: os.chown(path, 4321, 4321))
attempt("open files", lambda: os.readlink(f"/proc/{pid}/fd/0"))
print(json.dumps(done))
"""


def within(unit: str) -> list[str]:
    """The command line that leaves what the unit leaves."""
    text = (ROOT / "deploy/systemd" / unit).read_text()
    names = " ".join(re.findall(r"^CapabilityBoundingSet=(.*)$", text, re.M)).split()
    assert SETPRIV is not None
    return [SETPRIV, "--bounding-set", ",".join(["-all", *(f"+{name[4:].lower()}" for name in names)]), "--"]


@pytest.fixture(scope="module")
def net() -> Iterator[netns.Net]:
    built = netns.Net()
    yield built
    built.close()


class Confined(InNamespace):
    """Node a's agent with what its unit leaves it."""

    def start(self) -> None:
        run = self._net.command("a", *within("ha-agent.service"), *command("run", "--config", str(self.config)))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(run, stdout=log, stderr=log, env=environment())


@needs_namespaces
@pytest.mark.req("R13")
async def test_an_agent_takes_and_leaves_the_cluster_ip_with_the_capabilities_of_its_unit(
    run_dir: Path, net: netns.Net
) -> None:
    pair_up(run_dir, "primary")
    config = lan_toml(run_dir, net, heartbeat_timeout_s="10")
    process = Confined(config, net)
    try:
        async with Client(process.socket_path) as client, FakeEngine(str(process.socket_path)):
            await client.until(is_sound)
            answer = await client.stub.Switch(pb.SwitchRequest(force=True, accept_dual=True))
            assert answer.switched, answer
            assert holds(net)
            process.kill()
            # The lease that it left, made long: the wait for the command does not take it.
            lease = "10.77.0.53/32 label eth0:ha valid_lft 600 preferred_lft 600 dev eth0"
            net.run("a", "ip", "addr", "replace", *lease.split())
            command_line = [*within("ha-agent.service"), *command("release", "--force", "--config", str(config))]
            released = await asyncio.to_thread(net.run, "a", *command_line)
            assert "removed 10.77.0.53/32" in released
            assert not holds(net)
    finally:
        process.close()


def attempted(folder: Path, prefix: list[str]) -> dict[str, str]:
    theirs = folder / "theirs"
    theirs.write_text("x")
    os.chown(theirs, 1234, 1234)
    theirs.chmod(0o600)
    with subprocess.Popen(["sleep", "600"], stdin=subprocess.DEVNULL, user=1234, group=1234, extra_groups=[]) as other:
        try:
            done = subprocess.run(
                [*prefix, sys.executable, "-c", FILES_OF_OTHERS, str(folder), str(other.pid)],
                capture_output=True,
                text=True,
                check=True,
            )
        finally:
            other.kill()
    found: dict[str, str] = json.loads(done.stdout)
    return found


@pytest.mark.req("R22")
def test_an_engine_keeps_owners_modes_and_attributes_with_the_capabilities_of_its_unit(run_dir: Path) -> None:
    run_dir.chmod(0o755)
    assert not [what for what, refused in attempted(run_dir, within("ha-sync.service")).items() if refused]
    assert SETPRIV is not None
    none = attempted(run_dir, [SETPRIV, "--bounding-set", "-all", "--"])
    assert {"read", "write", "mode", "owner", "open files"} <= {what for what, refused in none.items() if refused}
