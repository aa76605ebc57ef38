"""``ha-agent`` as its operator and its service manager meet it: exit codes, what it prints, notifications."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_agent.cli.main import main
from ha_agent.settings import load
from ha_proto.agent.v1 import agent_pb2 as pb
from tests.support import netns
from tests.support.agent_engine import FakeEngine
from tests.support.agent_process import ROOT, WITHIN_S, Client, Process, command, environment, is_active, is_sound
from tests.support.agent_settings import new_site, pair_up, write_toml

NOBODY = 65534


def ran(*arguments: str | Path, prefix: list[str] | None = None, **extra: str) -> subprocess.CompletedProcess[str]:
    """A verb to its end."""
    return subprocess.run(
        [*(prefix or []), *command(*map(str, arguments))],
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
        cwd=ROOT,
        env=environment(**extra),
    )


def spoken(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A verb that ends by itself, in this process: the same entry point, without the start of an interpreter."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as ended:
        main([*map(str, arguments)])
    assert isinstance(ended.value.code, int)
    return subprocess.CompletedProcess([*arguments], ended.value.code, out.getvalue(), err.getvalue())


@pytest.fixture
def config(run_dir: Path) -> Path:
    pair_up(run_dir, "primary")
    return write_toml(new_site(), "primary", run_dir)


# -- check-config


@pytest.mark.req("R1.1")
def test_settings_without_faults_are_accepted_and_what_is_odd_is_said(config: Path) -> None:
    done = spoken("check-config", "--config", config)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"{config}: no faults"
    assert "warning: ha.interface = lo: a stand-in" in done.stdout


@pytest.mark.req("R1.1", "R1.8")
def test_all_faults_are_listed_at_once_and_the_exit_code_is_two(config: Path) -> None:
    text = config.read_text().replace("heartbeat_timeout_s = 3", "heartbeat_timeout_s = 99\nflavour = 1")
    config.write_text(text.replace('station_type = "primary"', 'station_type = "tertiary"'))
    for done in (spoken("check-config", "--config", config), ran("run", "--config", config)):
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        for fault in ("ha.heartbeat_timeout_s", "ha.flavour", "ha.station_type"):
            assert fault in done.stderr, done.stderr


def test_a_settings_file_that_is_not_there_is_a_fault(run_dir: Path) -> None:
    done = spoken("run", "--config", run_dir / "none.toml")
    assert done.returncode == 2
    assert "there is no such file" in done.stderr


def test_another_file_can_be_named_by_the_environment(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HA_AGENT_CONFIG", str(config))
    assert spoken("check-config").returncode == 0


# -- what a machine cannot carry out


@pytest.fixture(scope="module")
def net() -> Iterator[netns.Net]:
    reason = netns.unavailable()
    if reason is not None:
        pytest.skip(reason)
    built = netns.Net()
    yield built
    built.close()


def lan_toml(root: Path, net: netns.Net, **changes: str) -> Path:
    """Of node a in its namespace."""
    facts = {
        "station_type": '"primary"',
        "cluster_ip": '"10.77.0.53/24"',
        "peer_ip": '"10.77.0.2"',
        "peer_mac": f'"{net.mac("b")}"',
        "interface": '"eth0"',
        "gateway": '"10.77.0.254"',
        **changes,
    }
    lines = [f'[node]\nstate_dir = "{root}/primary/state"\nrun_dir = "{root}/primary/run"\n[ha]\nenabled = true']
    path = root / "primary" / "ha.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines + [f"{key} = {value}" for key, value in facts.items()]))
    return path


@pytest.mark.root
@pytest.mark.req("R1.3", "R1.12")
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"interface": '"eth9"'}, "ha.interface = eth9: there is no such interface"),
        ({"cluster_ip": '"10.77.0.1/24"'}, "ha.cluster_ip = 10.77.0.1: is this node's own address"),
        ({"peer_ip": '"10.77.0.1"'}, "ha.peer_ip = 10.77.0.1: is this node's own address"),
    ],
)
def test_an_agent_that_its_machine_contradicts_does_not_start(
    run_dir: Path, net: netns.Net, changes: dict[str, str], words: str
) -> None:
    pair_up(run_dir, "primary")
    config = lan_toml(run_dir, net, **changes)
    done = ran("run", "--config", config, prefix=net.command("a"))
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    with net.inside("a"):
        checked = spoken("check-config", "--config", config)
    assert (checked.returncode, words in checked.stderr) == (2, True)
    assert spoken("check-config", "--offline", "--config", config).returncode == 0


@pytest.mark.req("R32")
def test_check_config_says_which_secrets_cannot_be_used(run_dir: Path) -> None:
    secret = run_dir / "secret"
    secret.write_text("do-not-show")
    secret.chmod(0o644)
    rest = f"""
[[alarm]]
name = "noc"
kind = "webhook"
url = "https://noc.example.org/"
secret_file = "{secret}"
"""
    config = write_toml(new_site(), "primary", run_dir, rest=rest)
    done = spoken("check-config", "--config", config)
    assert done.returncode == 0
    assert f"warning: {secret} may be read by others" in done.stdout
    assert "do-not-show" not in done.stdout + done.stderr
    assert "warning: /" not in spoken("check-config", "--offline", "--config", config).stdout


@pytest.mark.root
@pytest.mark.req("R1.6")
def test_the_peers_mac_is_not_this_nodes(run_dir: Path, net: netns.Net) -> None:
    pair_up(run_dir, "primary")
    config = lan_toml(run_dir, net, peer_mac=f'"{net.mac("a")}"')
    done = ran("run", "--config", config, prefix=net.command("a"))
    assert done.returncode == 2
    assert "is this node's own" in done.stderr


@pytest.mark.root
@pytest.mark.req("R1.3")
def test_a_cluster_ip_outside_of_the_subnet_is_a_warning(run_dir: Path, net: netns.Net) -> None:
    config = lan_toml(run_dir, net, cluster_ip='"10.99.0.53/24"', gateway='"none"')
    with net.inside("a"):
        done = spoken("check-config", "--config", config)
    assert done.returncode == 0, done.stderr
    assert "warning: ha.cluster_ip = 10.99.0.53/24: is outside of the networks of eth0" in done.stdout


@pytest.mark.root
@pytest.mark.req("R13")
def test_who_may_not_add_addresses_is_told_so(run_dir: Path, net: netns.Net) -> None:
    pair_up(run_dir, "primary")
    config = lan_toml(run_dir, net)
    for path in (run_dir, *run_dir.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
    tried = subprocess.run([*as_nobody, *command("--help")], check=False, env=environment(), capture_output=True)
    if tried.returncode != 0:
        pytest.skip("nobody may not read this checkout, or there is no setpriv")
    done = ran("run", "--config", config, prefix=[*net.command("a"), *as_nobody])
    assert done.returncode == 1
    assert "lacks CAP_NET_ADMIN and CAP_NET_RAW" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("key", ["state_dir", "run_dir"])
def test_a_folder_that_cannot_be_made_is_said_in_one_sentence(config: Path, key: str) -> None:
    (config.parent / "file").touch()
    lines = [
        f'{key} = "{config.parent}/file/below"' if line.startswith(key) else line
        for line in config.read_text().splitlines()
    ]
    config.write_text("\n".join(lines))
    done = ran("run", "--config", config)
    assert done.returncode == 1
    assert "cannot make the folder" in done.stderr
    assert "Traceback" not in done.stderr


# -- its life


async def ready(config: Path) -> Process:
    process = Process(config)
    async with Client(process.socket_path) as client:
        await client.until(lambda status: bool(status.paths))
    return process


@pytest.mark.req("R12")
async def test_one_agent_for_each_state_directory_and_a_killed_one_is_in_nobodys_way(config: Path) -> None:
    process = await ready(config)
    try:
        second = await asyncio.to_thread(ran, "run", "--config", config)
        assert second.returncode == 1
        assert "another agent uses" in second.stderr
        process.kill()
        process.start()
        async with Client(process.socket_path) as client:
            await client.until(lambda status: bool(status.paths))
        assert await process.terminate() == 0
        assert "Traceback" not in process.log.read_text()
    finally:
        process.close()


async def test_the_service_manager_is_told_of_its_life(config: Path) -> None:
    loop = asyncio.get_running_loop()
    place = str(config.parent / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notified:
        notified.bind(place)
        process = Process(config, NOTIFY_SOCKET=place, WATCHDOG_USEC="99000000")
        try:
            told: list[bytes] = []

            async def until(word: bytes) -> None:
                async with asyncio.timeout(WITHIN_S):
                    while word not in told:
                        told.append(await loop.sock_recv(notified, 1000))

            await until(b"READY=1")
            pair = load(str(config)).pair
            assert pair is not None
            assert b"WATCHDOG_USEC=%d" % round(pair.lease_s * 1e6) in told  # the lease, whatever the unit says
            async with Client(process.socket_path) as client:
                await client.until(lambda status: True)  # ready means that it answers
            told.clear()
            await until(b"WATCHDOG=1")
            told.clear()
            await until(b"WATCHDOG=1")  # again and again
            process.process.send_signal(signal.SIGINT)
            await until(b"STOPPING=1")
            assert await asyncio.to_thread(process.process.wait, WITHIN_S) == 0
        finally:
            process.close()


async def test_an_agent_that_waits_for_its_pairing_keeps_its_watchdog(run_dir: Path) -> None:
    config = write_toml(new_site(), "primary", run_dir)
    place = str(run_dir / "notify")
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notified:
        notified.bind(place)
        process = Process(config, NOTIFY_SOCKET=place)
        try:
            seen = 0
            async with asyncio.timeout(WITHIN_S):
                while seen < 2:
                    seen += await loop.sock_recv(notified, 1000) == b"WATCHDOG=1"
            assert await process.terminate() == 0
        finally:
            process.close()


@pytest.mark.root
@pytest.mark.req("R12", "R13")
async def test_an_agent_that_ends_takes_the_address_with_it_and_a_killed_one_goes_on_with_its_lease(
    run_dir: Path, net: netns.Net
) -> None:
    pair_up(run_dir, "primary")
    config = lan_toml(run_dir, net, heartbeat_timeout_s="10")
    process = InNamespace(config, net)
    try:
        async with Client(process.socket_path) as client, FakeEngine(str(process.socket_path)):
            await client.until(is_sound)
            answer = await client.stub.Switch(pb.SwitchRequest(force=True, accept_dual=True))
            assert answer.switched, answer
            assert holds(net)
            # Killed and started within its lease: it never stopped being Active.
            process.kill()
            assert holds(net)
            process.start()
            resumed = await client.until(is_active)
            assert resumed.epoch == answer.epoch
            events = await client.events()
            assert "resume" in {event.fields.get("row") for event in events}
            assert await process.terminate() == 0
        assert not holds(net)
        assert "Traceback" not in process.log.read_text()
    finally:
        process.close()


class InNamespace(Process):
    """Node a's agent."""

    def __init__(self, config: Path, net: netns.Net) -> None:
        self._net = net
        super().__init__(config)

    def start(self) -> None:
        # The shell is replaced on the way: the pid is the agent's own.
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._net.command("a", *command("run", "--config", str(self.config))),
                stdout=log,
                stderr=log,
                env=environment(),
            )


def holds(net: netns.Net) -> bool:
    return " 10.77.0.53/32 " in net.run("a", "ip", "-o", "addr", "show", "dev", "eth0")
