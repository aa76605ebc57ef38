"""The units of deploy/systemd under a systemd that runs: watchdog, sandbox, conditions, and what each end leaves."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_proto.agent.v1 import agent_pb2 as pb
from tests.support import live_systemd, netns
from tests.support.live_systemd import PBX, LiveSystemd
from tests.support.netns_pair import CALL_S, ECHO, NetNode, NetPair, until

REASON = netns.unavailable() or live_systemd.unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

TIMEOUT_S = 5
"""A lease of three seconds: a busy machine may hold a process up for one, and then its watchdog bites."""

AGENT_UNIT, ENGINE_UNIT = "ha-agent.service", "ha-sync.service"


def services(node: NetNode) -> str:
    if node.name != "a":
        return ""
    words = {verb: f'["/usr/bin/systemctl", "{verb}", "{PBX}"]' for verb in ("start", "stop")}
    return f'[[service]]\nname = "asterisk"\nstart = {words["start"]}\nstop = {words["stop"]}\n'


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[NetPair, LiveSystemd]]:
    with NetPair(str(tmp_path_factory.mktemp("units")), timeout_s=TIMEOUT_S, sections=services) as pair:
        machine = LiveSystemd(pair.a)
        try:
            machine.start()
            pair.a.start(ECHO)
            pair.b.start()
            pair.until_ready()
            yield pair, machine
        finally:
            machine.kill()


@pytest.fixture
def pair(built: tuple[NetPair, LiveSystemd]) -> NetPair:
    """Node a, under its systemd, is the Active."""
    pair, machine = built
    for unit in (AGENT_UNIT, ENGINE_UNIT):
        machine.systemctl("start", unit)
    pair.until_ready()
    if pair.active is not pair.a:
        assert pair.b.switch().switched
        pair.until_ready()
    for node in pair.nodes.values():
        node.agent().ReleaseHold(pb.ReleaseHoldRequest(), timeout=CALL_S)
    until(lambda: machine.state(PBX) == "active", "a PBX")
    machine.systemctl("reset-failed")
    return pair


@pytest.fixture
def machine(built: tuple[NetPair, LiveSystemd]) -> LiveSystemd:
    return built[1]


def pbx_is_away(machine: LiveSystemd) -> bool:
    return machine.state(PBX) == "inactive" and not os.path.exists(f"{machine.node.run_dir}/active")


@pytest.mark.req("R10", "R16", "R33")
def test_the_units_run_a_node_as_they_stand(pair: NetPair, machine: LiveSystemd) -> None:
    assert [machine.state(unit) for unit in (AGENT_UNIT, ENGINE_UNIT, PBX)] == ["active"] * 3
    assert machine.shown(AGENT_UNIT, "WatchdogUSec") == "3s", "the agent tells systemd its own lease"
    assert machine.shown(AGENT_UNIT, "StatusErrno") == "0"
    assert "10.77.0.53/24: this node" in machine.within("ha-sync", "status").stdout
    doctor = machine.within("ha-sync", "doctor", "--output", f"{pair.a.home}/doctor.tar.gz")
    assert doctor.returncode == 0, doctor.stderr
    Path(pair.a.data, "files", "in-the-sandbox").write_text("x")
    pair.a.tool("wait", "--timeout", "30")
    assert Path(pair.b.data, "files", "in-the-sandbox").read_text() == "x"


@pytest.mark.req("R13", "R16")
@pytest.mark.parametrize("signal", ["SIGSTOP", "SIGKILL"])
def test_an_agent_that_stands_still_or_dies_takes_its_pbx_with_it(
    pair: NetPair, machine: LiveSystemd, signal: str
) -> None:
    before = machine.shown(AGENT_UNIT, "MainPID")
    machine.systemctl("kill", "--kill-whom=main", f"--signal={signal}", AGENT_UNIT)
    until(lambda: pbx_is_away(machine), "the end of the PBX")
    until(lambda: not pair.a.holds(), "the end of the address")
    until(lambda: pair.b.status().role == "active", "the other node's take-over")
    pair.until_ready()
    assert machine.shown(AGENT_UNIT, "MainPID") not in {before, "0"}, "it was started again"
    machine.systemctl("start", PBX, check=False)
    assert pbx_is_away(machine), "not even by hand on a Standby"


@pytest.mark.req("R16", "R22")
def test_an_engine_that_dies_is_started_again_and_the_pbx_goes_on(pair: NetPair, machine: LiveSystemd) -> None:
    pbx, before = machine.shown(PBX, "MainPID"), machine.shown(ENGINE_UNIT, "MainPID")
    machine.systemctl("kill", "--kill-whom=main", "--signal=SIGKILL", ENGINE_UNIT)
    until(lambda: machine.shown(ENGINE_UNIT, "MainPID") not in {before, "0"}, "another engine")
    pair.until_ready()
    assert (machine.shown(PBX, "MainPID"), pair.active) == (pbx, pair.a)


@pytest.mark.req("R13", "R16")
def test_a_stopped_agent_leaves_cleanly(pair: NetPair, machine: LiveSystemd) -> None:
    machine.systemctl("stop", AGENT_UNIT)
    assert not pair.a.holds()
    assert pbx_is_away(machine)
    assert machine.shown(AGENT_UNIT, "Result") == "success"
    until(lambda: pair.b.status().role == "active", "the other node's take-over")
    machine.systemctl("start", PBX, check=False)
    assert pbx_is_away(machine)


@pytest.mark.req("R10", "R13")
def test_after_a_loss_of_power_the_pbx_waits_for_the_agents_word(pair: NetPair, machine: LiveSystemd) -> None:
    machine.kill()
    pair.a.drop_leases()
    until(lambda: pair.b.status().role == "active", "the other node's take-over")
    pair.a.write("boot_id", "00000000-0000-4000-8000-000000000001\n")
    machine.start()
    pair.until_ready()
    assert pair.active is pair.b
    assert machine.state(AGENT_UNIT) == "active"
    assert pbx_is_away(machine), "its unit is wanted by the boot, and there is no condition file"
    assert machine.shown(PBX, "ConditionResult") == "no"
