"""Links of a real pair that fail, one by one and together: who holds the cluster IP, and what a third host hears."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from ha_proto.agent.v1 import agent_pb2 as pb
from tests.support import netns
from tests.support.netns_pair import CLUSTER_IP, CLUSTER_IP6, NetNode, NetPair, until
from tests.support.netns_watch import Client, Holders

REASON = netns.unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=REASON or "")]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetPair]:
    with NetPair(str(tmp_path_factory.mktemp("pair")), ipv6=True) as pair:
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


def path(node: NetNode, name: str) -> pb.PathStatus:
    return next(one for one in node.status().paths if one.name == name)


def until_longer_than_the_timeout(pair: NetPair, node: NetNode, name: str) -> None:
    """A silence of T on one path has passed, and a second in which a switch would have begun."""
    until(lambda: path(node, name).heard_age_s > pair.timeout_s + 1, "a silent path", pair.told)


@pytest.mark.req("R10", "R11", "R32")
def test_a_pulled_heartbeat_cable_is_an_alarm_and_no_switch(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    pair.net.cut_cable()
    for node in pair.nodes.values():
        until_longer_than_the_timeout(pair, node, "cable")
        assert "heartbeat path lost: cable" in node.status().alarms
        assert path(node, "lan").state == "both"
    assert standby.status().ready
    assert [set(who) for _, who in holders.history] == [{active.name}]
    pair.net.restore_cable()
    until(lambda: not active.status().alarms, "the end of the alarm", pair.told)


@pytest.mark.req("R11", "R13")
def test_the_active_without_lan_hands_over_in_one_exchange(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    with Client(pair.net, CLUSTER_IP) as client, Client(pair.net, CLUSTER_IP6) as client6:
        for one in (client, client6):
            one.first(active.name, since=0)
        pair.net.cut(active.name)
        at = holders.until({standby.name})
        for one in (client, client6):
            one.first(standby.name, since=at - 1)
    assert {"switch-link", "granted", "go"} <= set(active.rows_taken())
    assert holders.seconds(2) == 0


@pytest.mark.req("R11", "R13")
def test_the_active_without_any_link_lets_go_and_the_standby_takes_over(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    pair.net.cut_off(active.name)
    holders.until({standby.name})
    # It fenced itself before: nobody held the address in between.
    assert [set(who) for _, who in holders.history] == [{active.name}, set(), {standby.name}]
    assert active.rows_taken()[-1] in {"lease-lapsed", "address-absent"}
    pair.net.plug_in(active.name)
    pair.until_ready()
    assert pair.active is standby
    assert holders.seconds(2) == 0


@pytest.mark.req("R11")
def test_a_switch_that_reboots_fences_the_active_and_one_election_follows(pair: NetPair, holders: Holders) -> None:
    pair.net.switch_off()
    holders.until(set())
    pair.net.switch_on()
    pair.until_ready()
    assert [len(who) for _, who in holders.history] == [1, 0, 1]


@pytest.mark.req("R10", "R11", "R32")
def test_loss_in_one_direction_is_named_and_is_no_switch(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    pair.net.lose_outgoing(active.name, 100, "cable0")
    until_longer_than_the_timeout(pair, standby, "cable")
    assert path(active, "cable").state == "half"
    assert "heartbeat path is one-way: cable" in active.status().alarms
    assert [set(who) for _, who in holders.history] == [{active.name}]


@pytest.mark.req("R11")
def test_the_standby_lost_and_then_the_gateway_never_takes_the_address_from_the_active(
    pair: NetPair, holders: Holders
) -> None:
    active, standby = pair.roles
    standby.power_off()
    until(lambda: active.status().single, "a single Active", pair.told)
    pair.net.cut("gw")
    # By its carrier alone: the lease is renewed again and again, for three of its lifetimes.
    lefts = [active.status().lease_left_s]
    until(lambda: seen(lefts, active.status().lease_left_s) > 6, "renewals", pair.told)
    pair.net.restore("gw")
    standby.power_on()
    pair.until_ready()
    assert [set(who) for _, who in holders.history] == [{active.name}]


def seen(lefts: list[float], left_s: float) -> int:
    """How often what is left of a lease grew."""
    lefts.append(left_s)
    return sum(later > earlier for earlier, later in itertools.pairwise(lefts))


@pytest.mark.req("R11", "R12", "R32")
def test_a_foreign_holder_is_named_and_blocks_the_take_over(pair: NetPair, holders: Holders) -> None:
    active, standby = pair.roles
    pair.net.run("gw", "ip", "addr", "add", f"{CLUSTER_IP}/32", "dev", "eth0")
    try:
        active.power_off()
        until(lambda: "arbiter: foreign_holder: " + standby.name in standby.status().alarms, "an alarm", pair.told)
        until_longer_than_the_timeout(pair, standby, "lan")
        raised = standby.events("arbiter: foreign_holder")[-1]
        assert raised.fields["mac"] == pair.net.mac("gw")
        assert holders.now == set()
    finally:
        pair.net.run("gw", "ip", "addr", "del", f"{CLUSTER_IP}/32", "dev", "eth0")
    holders.until({standby.name})
