"""Probes and announcements on a real wire, seen by a third host. IPv4 and IPv6."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import Callable, Iterator

import pytest

from ha_agent.cluster_ip.announce import Announcer
from ha_agent.cluster_ip.frames import Claim
from ha_agent.cluster_ip.lease import Lease, Outcome
from ha_agent.cluster_ip.netlink import Address
from ha_agent.cluster_ip.probe import Neighbours
from tests.support import netns

REASON = netns.unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

FOUR = ipaddress.ip_address("10.77.0.53")
SIX = ipaddress.ip_address("fd77::53")
FAR = float("inf")


@pytest.fixture(params=[FOUR, SIX], ids=["ipv4", "ipv6"])
def address(request: pytest.FixtureRequest) -> Address:
    return request.param


@pytest.fixture(scope="module")
def shared() -> Iterator[netns.Net]:
    built = netns.Net()
    yield built
    built.close()


@pytest.fixture
def net(shared: netns.Net) -> Iterator[netns.Net]:
    yield shared
    for host in netns.LAN:
        for plain in (f"{FOUR}/32", f"{SIX}/128"):
            shared.run(host, "sh", "-c", f"ip addr del {plain} dev eth0 2>/dev/null || true")
        shared.run(host, "ip", "neigh", "flush", "dev", "eth0")


def own(host: str, address: Address) -> Address:
    return ipaddress.ip_address(netns.lan_ipv4(host) if address.version == 4 else netns.lan_ipv6(host))


def give(net: netns.Net, host: str, address: Address) -> None:
    nodad = ["nodad"] if address.version == 6 else []
    net.run(host, "ip", "addr", "add", f"{address}/{address.max_prefixlen}", "dev", "eth0", *nodad)


@pytest.fixture
async def neighbours(net: netns.Net, address: Address):
    """Of node a."""
    with net.inside("a"):
        opened = Neighbours("eth0", ipv6=address.version == 6)
        assert opened.open()
    yield opened
    opened.close()


@pytest.mark.req("R11")
async def test_silence_is_silence_after_three_questions(neighbours: Neighbours, address: Address) -> None:
    asked = await neighbours.probe(address, own=own("a", address))
    assert asked.silent
    assert asked.reply_s is None


@pytest.mark.req("R11")
@pytest.mark.parametrize("asks_as", ["node", "nobody"])
async def test_a_holder_answers_with_its_mac(
    net: netns.Net, neighbours: Neighbours, address: Address, asks_as: str
) -> None:
    give(net, "b", address)
    asked = await neighbours.probe(address, own=own("a", address) if asks_as == "node" else None)
    assert asked.macs == (net.mac("b"),)
    assert asked.reply_s is not None
    assert asked.reply_s >= 0


@pytest.mark.req("R13")
async def test_two_holders_are_both_named(net: netns.Net, neighbours: Neighbours, address: Address) -> None:
    give(net, "b", address)
    give(net, "client", address)
    asked = await neighbours.probe(address)
    assert set(asked.macs) == {net.mac("b"), net.mac("client")}


async def test_my_own_address_is_no_foreign_holder(net: netns.Net, neighbours: Neighbours, address: Address) -> None:
    give(net, "a", address)
    assert (await neighbours.probe(address, own=own("a", address))).silent


@pytest.mark.req("R11")
async def test_a_proxy_that_answers_for_the_address_is_seen_with_its_mac(
    net: netns.Net, neighbours: Neighbours, address: Address
) -> None:
    if address.version == 4:
        net.run("gw", "ip", "link", "add", "up0", "type", "veth", "peer", "name", "up1")
        net.run("gw", "ip", "link", "set", "up0", "up")
        net.run("gw", "ip", "route", "add", str(address), "dev", "up0")
        net.run("gw", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        net.run("gw", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/conf/eth0/proxy_arp")
        # Linux delays a proxy's answer by chance, by up to 0.8 s.
        net.run("gw", "sh", "-c", "echo 0 >/proc/sys/net/ipv4/neigh/eth0/proxy_delay")
    else:
        net.run("gw", "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
        net.run("gw", "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/eth0/proxy_ndp")
        net.run("gw", "sh", "-c", "echo 0 >/proc/sys/net/ipv6/neigh/eth0/proxy_delay")
        net.run("gw", "ip", "neigh", "add", "proxy", str(address), "dev", "eth0")
    asked = await neighbours.probe(address, own=own("a", address))
    if address.version == 4:
        net.run("gw", "ip", "link", "del", "up0")
    else:
        net.run("gw", "ip", "neigh", "del", "proxy", str(address), "dev", "eth0")
    assert asked.macs == (net.mac("gw"),)


@pytest.mark.req("R11", "R1.16")
async def test_the_gateway_answers_and_its_answer_is_dated_when_it_was_asked(
    net: netns.Net, neighbours: Neighbours, address: Address
) -> None:
    before = time.monotonic()
    asked = await neighbours.ask(own("gw", address), own=own("a", address), wait_s=5)
    assert asked.macs == (net.mac("gw"),)
    assert asked.answered_at is not None
    assert before <= asked.asked_at <= asked.answered_at


@pytest.mark.req("R11")
async def test_without_carrier_a_probe_proves_nothing(net: netns.Net, neighbours: Neighbours, address: Address) -> None:
    net.cut("a")
    try:
        asked = await neighbours.probe(address)
    finally:
        net.restore("a")
    assert not asked.sent
    assert not asked.silent


async def test_one_way_loss_looks_like_silence_and_heals(
    net: netns.Net, neighbours: Neighbours, address: Address
) -> None:
    give(net, "b", address)
    net.lose_incoming("a", 100)
    try:
        assert (await neighbours.probe(address)).silent
    finally:
        net.lose_incoming("a", 0)
    assert (await neighbours.probe(address)).macs == (net.mac("b"),)


async def test_the_kernels_reachable_neighbours_are_known(
    net: netns.Net, neighbours: Neighbours, address: Address
) -> None:
    family = "-4" if address.version == 4 else "-6"
    gateway = own("gw", address)
    net.run(
        "a", "ip", family, "neigh", "replace", str(gateway), "lladdr", net.mac("gw"), "dev", "eth0", "nud", "reachable"
    )
    assert (gateway, net.mac("gw")) in {(one.address, one.mac) for one in neighbours.known()}


def seen_by_client(net: netns.Net, address: Address) -> str | None:
    """The MAC in the client's table."""
    found = json.loads(net.run("client", "ip", "-j", "neigh", "show", str(address), "dev", "eth0"))
    return found[0].get("lladdr") if found else None


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.req("R14")
async def test_the_address_moves_in_a_clients_table_at_once(net: netns.Net, address: Address) -> None:
    """The client knew the old Active; the new one adds and announces, and the client asks nobody."""
    with net.inside("b"):
        lease, announcer = Lease("eth0", address), Announcer("eth0", address)
        assert announcer.open()
    family = "-4" if address.version == 4 else "-6"
    known = ["lladdr", net.mac("a"), "dev", "eth0", "nud", "reachable"]
    net.run("client", "ip", family, "neigh", "replace", str(address), *known)
    assert seen_by_client(net, address) == net.mac("a")
    try:
        wanted = net.mac("b")
        began = time.monotonic()
        assert (await lease.add(valid_s=5, not_after=FAR)).outcome is Outcome.HELD
        added = time.monotonic()
        assert announcer.now()
        announced = time.monotonic()
        await until(lambda: seen_by_client(net, address) == wanted)
        print(
            f"\n{address}: added in {(added - began) * 1000:.1f} ms, announced in {(announced - added) * 1000:.1f} ms,"
            f" in the client's table within {(time.monotonic() - began) * 1000:.1f} ms (looked at with ip neigh)"
        )
        assert announcer.sent == (10 if address.version == 4 else 5)
    finally:
        await lease.remove()
        await lease.close()
        announcer.close()


@pytest.mark.req("R13")
async def test_nothing_is_announced_by_who_does_not_hold_the_address(net: netns.Net, address: Address) -> None:
    with net.inside("b"):
        announcer = Announcer("eth0", address)
        announcer.open()
    assert not announcer.now()
    await announcer.repeat(again_after_s=(0.0, 0.0), until=lambda: False)
    assert announcer.sent == 0
    announcer.close()


@pytest.mark.req("R14")
async def test_announcements_are_repeated_until_the_address_goes(net: netns.Net, address: Address) -> None:
    give(net, "b", address)
    frames = 2 if address.version == 4 else 1
    with net.inside("b"):
        announcer = Announcer("eth0", address)
        announcer.open()
    await announcer.repeat(count=2, again_after_s=(0.01, 0.02, 0.03), until=lambda: False)
    assert announcer.sent == 5 * frames
    looks = iter([False, True])
    await announcer.repeat(count=1, again_after_s=(0.0, 0.0, 0.0), until=lambda: next(looks))
    assert announcer.sent == 7 * frames
    announcer.close()


@pytest.mark.req("R13", "R14")
async def test_another_nodes_announcement_is_heard_by_all(net: netns.Net, address: Address) -> None:
    heard: list[Claim] = []
    with net.inside("a"):
        listening = Neighbours("eth0", ipv6=address.version == 6, on_claim=lambda claim, _: heard.append(claim))
        listening.open()
    give(net, "b", address)
    with net.inside("b"):
        announcer = Announcer("eth0", address)
        announcer.open()
    assert announcer.now(1)
    await until(lambda: any(claim.address == address for claim in heard))
    assert {claim.mac for claim in heard if claim.address == address} == {net.mac("b")}
    announcer.close()
    listening.close()


async def test_an_interface_that_comes_later_is_opened_later(net: netns.Net) -> None:
    with net.inside("a"):
        neighbours = Neighbours("late0")
        assert not neighbours.open()
        assert not (await neighbours.probe(FOUR, count=1)).sent
    net.run("a", "ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1")
    net.run("a", "ip", "link", "set", "late1", "up")
    net.run("a", "ip", "link", "set", "late0", "up")
    try:
        with net.inside("a"):
            assert neighbours.open()
        assert (await neighbours.probe(FOUR, count=1)).silent
        net.run("a", "ip", "link", "del", "late0")
        assert not (await neighbours.probe(FOUR, count=1)).sent
    finally:
        neighbours.close()
