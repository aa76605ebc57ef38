"""What the kernel tells: carrier, links, addresses that somebody removed."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable, Iterator

import pytest

from ha_agent.cluster_ip.links import Change, Links, Overflow
from ha_agent.cluster_ip.netlink import AddressFacts, LinkFacts, Notice
from tests.support import netns

REASON = netns.unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=REASON or "")]


@pytest.fixture(scope="module")
def net() -> Iterator[netns.Net]:
    built = netns.Net()
    yield built
    built.close()


class Told:
    """Collects changes; ``until`` waits for one that fits."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Change] = asyncio.Queue()

    def put(self, changes: list[Change]) -> None:
        for change in changes:
            self.queue.put_nowait(change)

    async def until(self, fits: Callable[[Notice], bool]) -> Notice:
        async with asyncio.timeout(10):
            while True:
                change = await self.queue.get()
                if isinstance(change, Notice) and fits(change):
                    return change


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
async def links(net: netns.Net, told: Told):
    with net.inside("a"):
        opened = Links(told.put)
        opened.open()
    yield opened
    opened.close()


def is_link(notice: Notice, name: str, *, carrier: bool) -> bool:
    return isinstance(notice.what, LinkFacts) and notice.what.name == name and notice.what.carrier == carrier


@pytest.mark.req("R12")
async def test_a_pulled_plug_is_told_and_so_is_its_return(net: netns.Net, links: Links, told: Told) -> None:
    before = links.look("eth0")
    assert before is not None
    assert before.usable
    assert before.mac == net.mac("a")
    net.cut("a")
    lost = await told.until(lambda one: is_link(one, "eth0", carrier=False))
    assert isinstance(lost.what, LinkFacts)
    assert lost.what.up
    assert not lost.what.usable
    net.restore("a")
    await told.until(lambda one: is_link(one, "eth0", carrier=True) and one.what.operstate == "up")
    assert links.look("eth0") == before


@pytest.mark.req("R11")
@pytest.mark.parametrize("address", ["10.77.0.53/32", "fd77::53/128"])
async def test_an_address_that_somebody_removes_is_told(net: netns.Net, links: Links, told: Told, address: str) -> None:
    wanted = ipaddress.ip_interface(address).ip

    def is_it(notice: Notice, *, gone: bool) -> bool:
        return isinstance(notice.what, AddressFacts) and notice.what.address == wanted and notice.gone is gone

    net.run("a", "ip", "addr", "add", address, "dev", "eth0")
    await told.until(lambda one: is_it(one, gone=False))
    net.run("a", "ip", "addr", "del", address, "dev", "eth0")
    await told.until(lambda one: is_it(one, gone=True))


async def test_an_interface_that_goes_is_told(net: netns.Net, links: Links, told: Told) -> None:
    net.run("a", "ip", "link", "add", "gone0", "type", "veth", "peer", "name", "gone1")
    net.run("a", "ip", "link", "del", "gone0")
    await told.until(lambda one: one.gone and isinstance(one.what, LinkFacts) and one.what.name == "gone0")
    assert links.look("gone0") is None


async def test_lost_notices_are_told_as_such(net: netns.Net, links: Links) -> None:
    links._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    for number in range(40):
        net.run("a", "ip", "addr", "add", f"10.78.0.{number + 1}/32", "dev", "eth0")
    assert Overflow() in links.drain()
    net.run("a", "ip", "addr", "flush", "dev", "eth0", "to", "10.78.0.0/24")
