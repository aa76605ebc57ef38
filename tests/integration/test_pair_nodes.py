"""Nodes of a real pair that die, freeze, fail and come back; the roles, the data, the address."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from ha_proto.agent.v1 import agent_pb2 as pb
from tests.support import netns
from tests.support.netns_pair import AGENT, CALL_S, CLUSTER_IP, CLUSTER_IP6, ENGINE, NetNode, NetPair, until
from tests.support.netns_watch import Client, Holders
from tests.support.small_pair import read_rows, write_rows

REASON = netns.unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

PBX = """case $1 in
  start) setsid sleep infinity >/dev/null 2>&1 </dev/null & echo $! >{pid} ;;
  stop) p=$(cat {pid} 2>/dev/null) || exit 0
        kill "$p" 2>/dev/null
        while kill -0 "$p" 2>/dev/null; do sleep 0.01; done ;;
esac
"""


def pbx(node: NetNode) -> str:
    """A process that does nothing, as a service with a probe."""
    node.write("pbx", PBX.format(pid=node.file("pbx.pid")))
    script = node.file("pbx")
    return f"""
[[service]]
name = "pbx"
start = ["/bin/sh", "{script}", "start"]
stop = ["/bin/sh", "{script}", "stop"]
[[probe]]
name = "pbx"
kind = "process"
pid_file = "{node.file("pbx.pid")}"
interval_s = 0.2
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetPair]:
    with NetPair(
        str(tmp_path_factory.mktemp("pair")), ipv6=True, ha={"software_fault_switch": True}, sections=pbx
    ) as pair:
        pair.start()
        yield pair


@pytest.fixture
def pair(built: NetPair) -> NetPair:
    built.settle()
    return built


@pytest.fixture
def holders(pair: NetPair) -> Iterator[Holders]:
    with Holders(pair.net, pair.addresses) as watched:
        yield watched


def row(node: NetNode, number: str) -> list[tuple[object, ...]]:
    return read_rows(f"{node.data}/config.db", f"SELECT name FROM extension WHERE number = '{number}'")


def add_row(node: NetNode, number: str) -> None:
    write_rows(f"{node.data}/config.db", "INSERT INTO extension(number, name) VALUES(?, ?)", number, node.name)


@pytest.mark.req("R6", "R11", "R13", "R16")
def test_a_node_without_power_is_replaced_and_comes_back_as_standby_with_the_data_of_the_other(
    pair: NetPair, holders: Holders
) -> None:
    active, standby = pair.roles
    add_row(active, "100")
    pair.until_ready()  # so that the row is on the Standby
    with Client(pair.net, CLUSTER_IP) as client, Client(pair.net, CLUSTER_IP6) as client6:
        for one in (client, client6):
            one.first(active.name, since=0)
        at = active.power_off()
        for one in (client, client6):
            one.first(standby.name, since=at)
    assert row(standby, "100") == [(active.name,)]
    until(lambda: standby.switches()[-1].result == "done", "an entry of the switch log", pair.told)
    entry = standby.switches()[-1]
    assert (entry.trigger, entry.to_role) == ("silence", "active")
    assert {"detect", "decide", "address", "services"} <= set(entry.phases_s)
    add_row(standby, "200")
    active.power_on()
    pair.until_ready()
    assert pair.active is standby
    assert row(active, "200") == [(standby.name,)]
    assert holders.seconds(2) == 0


@pytest.mark.req("R11", "R13")
def test_a_frozen_agent_loses_the_address_and_wakes_as_standby(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    active.signal(signal.SIGSTOP, AGENT)
    holders.until({standby.name})
    active.signal(signal.SIGCONT, AGENT)
    pair.until_ready()
    assert pair.active is standby
    assert [set(who) for _, who in holders.history] == [{active.name}, set(), {standby.name}]


@pytest.mark.req("R11", "R13")
def test_a_node_that_is_frozen_whole_wakes_as_standby(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    active.freeze(network=False)
    holders.until({standby.name})
    active.thaw(network=False)
    pair.until_ready()
    assert pair.active is standby
    assert holders.seconds(2) == 0


@pytest.mark.req("R6", "R12")
def test_a_standby_without_engine_is_given_nothing_and_takes_over_from_the_dead_all_the_same(
    pair: NetPair, holders: Holders
) -> None:
    active, standby = pair.roles
    standby.signal(signal.SIGKILL, ENGINE)
    until(lambda: "engine_gone" in active.status().peer_reasons, "a Standby that is not ready", pair.told)
    refused = active.switch()
    assert (refused.switched, refused.reason) == (False, "peer_not_ready")
    assert "engine_gone" in refused.peer_reasons
    os.kill(pbx_pid(active), signal.SIGKILL)
    until(lambda: "fault: process:pbx" in active.status().alarms, "an alarm", pair.told)
    assert [set(who) for _, who in holders.history] == [{active.name}]
    active.power_off()
    holders.until({standby.name})  # policy availability
    until(lambda: bool(standby.events("arbiter: not_ready")), "an alarm", pair.told)


def pbx_pid(node: NetNode) -> int:
    with open(node.file("pbx.pid"), encoding="ascii") as file:
        return int(file.read())


def until_good(pair: NetPair) -> None:
    def good() -> bool:
        return any(one.name == "process:pbx" and one.state == "good" for one in pair.active.status().probes)

    until(good, "a PBX that was seen", pair.told)


def kill_pbx(pair: NetPair) -> None:
    until_good(pair)
    os.kill(pbx_pid(pair.active), signal.SIGKILL)


@pytest.mark.req("R12", "R14")
def test_two_faults_switch_the_third_is_held_until_an_administrator_releases(pair: NetPair, holders: Holders) -> None:
    first, second = pair.roles
    kill_pbx(pair)
    holders.until({second.name})
    pair.until_ready()
    kill_pbx(pair)
    holders.until({first.name})
    pair.until_ready()
    assert first.status().held
    kill_pbx(pair)
    until(lambda: "fault: process:pbx" in first.status().alarms, "an alarm", pair.told)
    assert holders.now == {first.name}
    first.agent().ReleaseHold(pb.ReleaseHoldRequest(), timeout=CALL_S)
    holders.until({second.name})
    assert holders.seconds(2) == 0


@pytest.mark.req("R11")
def test_two_that_boot_together_elect_one(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    standby.power_off()
    active.power_off()
    holders.until(set())
    standby.power_on()
    active.power_on()
    pair.until_ready()
    assert holders.seconds(2) == 0
