"""Heartbeat paths on real wires: cables pulled, one-way loss, both families, bound to an interface."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

import pytest

from ha_agent.heartbeat.beat import PathId
from ha_agent.heartbeat.datagram import PathSocket, PathSpec, Received
from tests.support import netns

REASON = netns.unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=REASON or "")]
PORT = 9527


@pytest.fixture(scope="module")
def net() -> Iterator[netns.Net]:
    built = netns.Net()
    yield built
    built.close()


class Ends:
    """Both ends of one path, and what each received."""

    def __init__(self, net: netns.Net, address, *, device: str = "") -> None:
        self.heard: dict[str, list[Received]] = {"a": [], "b": []}
        self.came = asyncio.Event()
        self.sockets: dict[str, PathSocket] = {}
        for host, other in (("a", "b"), ("b", "a")):
            spec = PathSpec(
                path=PathId(1), name="cable", local=address(host), peer=address(other), port=PORT, device=device
            )
            with net.inside(host):
                self.sockets[host] = PathSocket(spec, lambda batch, host=host: self._put(host, batch))
                self.sockets[host].open()

    def _put(self, host: str, batch: list[Received]) -> None:
        self.heard[host].extend(batch)
        self.came.set()

    def close(self) -> None:
        for one in self.sockets.values():
            one.close()

    async def exchange(self) -> None:
        """Returns when both were heard by the other; sends again meanwhile."""
        for heard in self.heard.values():
            heard.clear()
        async with asyncio.timeout(10):
            while not all(self.heard.values()):
                for one in self.sockets.values():
                    one.send(b"beat")
                await asyncio.sleep(0.02)


@pytest.mark.req("R1.7", "R10")
@pytest.mark.parametrize("address", [netns.lan_ipv4, netns.lan_ipv6], ids=["ipv4", "ipv6"])
async def test_both_ends_hear_each_other_from_the_addresses_of_the_path(net: netns.Net, address) -> None:
    with contextlib.closing(Ends(net, address)) as ends:
        await ends.exchange()
        assert {one.source for one in ends.heard["a"]} == {address("b")}


async def test_a_path_bound_to_its_interface_uses_it(net: netns.Net) -> None:
    with contextlib.closing(Ends(net, netns.cable_ipv4, device="cable0")) as ends:
        await ends.exchange()


@pytest.mark.req("R11")
async def test_a_pulled_cable_is_silence_and_heals_by_itself(net: netns.Net) -> None:
    with contextlib.closing(Ends(net, netns.cable_ipv4)) as ends:
        await ends.exchange()
        net.cut_cable()
        ends.heard["b"].clear()
        for _ in range(20):
            ends.sockets["a"].send(b"lost")
        await asyncio.sleep(0)
        assert ends.sockets["b"].drain() == []
        net.restore_cable()
        await ends.exchange()
        assert b"lost" not in {one.data for one in ends.heard["b"][-1:]}


@pytest.mark.req("R11")
async def test_an_interface_that_is_switched_off_is_a_state_of_the_path(net: netns.Net) -> None:
    with contextlib.closing(Ends(net, netns.cable_ipv4)) as ends:
        net.run("a", "ip", "link", "set", "cable0", "down")
        try:
            assert not ends.sockets["a"].send(b"x")
            assert ends.sockets["a"].state.error == "ENETUNREACH"
        finally:
            net.run("a", "ip", "link", "set", "cable0", "up")
        await ends.exchange()
        assert ends.sockets["a"].state.usable


async def test_an_address_that_comes_late_makes_the_path_usable(net: netns.Net) -> None:
    net.run("a", "ip", "addr", "del", "169.254.9.1/24", "dev", "cable0")
    with contextlib.closing(Ends(net, netns.cable_ipv4)) as ends:
        assert not ends.sockets["a"].send(b"x")
        net.run("a", "ip", "addr", "add", "169.254.9.1/24", "dev", "cable0")
        await ends.exchange()


@pytest.mark.req("R11")
async def test_loss_in_one_direction_leaves_the_other(net: netns.Net) -> None:
    with contextlib.closing(Ends(net, netns.cable_ipv4)) as ends:
        await ends.exchange()
        net.lose_incoming("b", 100, "cable0")
        try:
            for host in ("a", "b"):
                ends.heard[host].clear()
                ends.sockets[host].drain()
            for _ in range(20):
                ends.sockets["a"].send(b"lost")
                ends.sockets["b"].send(b"heard")
            ends.came.clear()
            async with asyncio.timeout(10):
                while len(ends.heard["a"]) < 20:
                    ends.came.clear()
                    await ends.came.wait()
            assert ends.sockets["b"].drain() == []
            assert ends.heard["b"] == []
        finally:
            net.lose_incoming("b", 0, "cable0")
        await ends.exchange()


async def test_random_loss_loses_about_its_share(net: netns.Net) -> None:
    with contextlib.closing(Ends(net, netns.cable_ipv4)) as ends:
        await ends.exchange()
        ends.sockets["b"].drain()
        net.lose_outgoing("a", 30, "cable0")
        came = 0
        try:
            for _ in range(50):
                for _ in range(40):
                    ends.sockets["a"].send(b"x")
                came += len(ends.sockets["b"].drain())
        finally:
            net.lose_outgoing("a", 0, "cable0")
        assert 1200 < came < 1600  # of 2000; nine standard deviations
