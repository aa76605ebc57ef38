"""The holder in a real kernel's hands: both families together, what an earlier agent left, who else claims it."""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from ha_agent.arbiter.values import Mac
from ha_agent.cluster_ip.holder import KernelHolder
from ha_agent.cluster_ip.lan import Lan
from ha_agent.cluster_ip.lease import HELD, Outcome
from tests.support import netns

REASON = netns.unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=REASON or "")]
FOUR, SIX = ipaddress.ip_address("10.77.0.53"), ipaddress.ip_address("fd77::53")
WITHIN_S = 20.0


@pytest.fixture(scope="module")
def net() -> Iterator[netns.Net]:
    built = netns.Net()
    yield built
    built.close()


@pytest.fixture
async def holder(net: netns.Net) -> AsyncIterator[KernelHolder]:
    one = made(net)
    yield one
    await one.remove()
    await one.close()


def made(net: netns.Net, host: str = "a", *, claims: list[Mac] | None = None) -> KernelHolder:
    other = "b" if host == "a" else "a"
    with net.inside(host):
        one = KernelHolder("eth0", (FOUR, SIX), peer_mac=Mac(net.mac(other)), ipv6=True)
        one.open((claims if claims is not None else []).append)
    return one


def here(net: netns.Net, host: str = "a") -> set[str]:
    """Which of the two addresses iproute2 sees there."""
    shown = net.run(host, "ip", "-o", "addr", "show", "dev", "eth0")
    return {str(address) for address in (FOUR, SIX) if f" {address}/" in shown}


async def until(wanted: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not wanted():
            await asyncio.sleep(0.02)


async def added(holder: KernelHolder) -> None:
    until_ = time.monotonic() + 60
    assert await holder.add(valid_until=until_, not_after=until_) == HELD


@pytest.mark.req("R1.11", "R13")
async def test_both_families_come_and_go_together(net: netns.Net, holder: KernelHolder) -> None:
    await added(holder)
    assert here(net) == {str(FOUR), str(SIX)}
    assert await holder.holds()
    assert (await holder.remove()).outcome is Outcome.GONE
    assert (here(net), await holder.holds()) == (set(), False)


@pytest.mark.req("R1.11", "R13")
@pytest.mark.parametrize("lost", [FOUR, SIX])
async def test_when_one_family_is_taken_away_the_other_goes_with_it(
    net: netns.Net, holder: KernelHolder, lost: ipaddress.IPv4Address | ipaddress.IPv6Address
) -> None:
    await added(holder)
    net.run("a", "ip", "addr", "del", f"{lost}/{lost.max_prefixlen}", "dev", "eth0")
    assert not await holder.holds(), "half an address is none"
    assert (await holder.renew(valid_until=time.monotonic() + 60)).outcome is Outcome.GONE
    assert here(net) == set()


@pytest.mark.req("R13")
async def test_an_address_that_stands_in_the_network_configuration_is_refused_whole(
    net: netns.Net, holder: KernelHolder
) -> None:
    net.run("a", "ip", "addr", "add", f"{SIX}/128", "dev", "eth0", "nodad")
    try:
        until_ = time.monotonic() + 60
        answer = await holder.add(valid_until=until_, not_after=until_)
        assert answer.outcome is Outcome.REFUSED
        assert "network configuration" in answer.hint
        assert here(net) == {str(SIX)}, "what an administrator set is left alone, the other half is not held"
    finally:
        net.run("a", "ip", "addr", "del", f"{SIX}/128", "dev", "eth0")


@pytest.mark.req("R12", "R13")
async def test_an_agent_that_starts_anew_finds_what_the_last_one_held(net: netns.Net, holder: KernelHolder) -> None:
    assert not (await holder.find()).present
    await added(holder)
    again = made(net)
    try:
        found = await again.find()
        assert found.present
        assert 50 < found.left_s <= 60
        assert await again.holds()
        net.run("a", "ip", "addr", "del", f"{SIX}/128", "dev", "eth0")
        half = await again.find()
        assert (half.present, half.left_s) == (True, 0.0), "half an address is no lease to go on with"
    finally:
        await again.close()


@pytest.mark.req("R10")
async def test_the_peer_is_found_by_a_probe_and_whoever_announces_is_seen(net: netns.Net, holder: KernelHolder) -> None:
    claims: list[Mac] = []
    other = made(net, "b", claims=claims)
    try:
        nobody = await other.probe(count=1, wait_s=0.05)
        assert (nobody.answered_by, nobody.sent) == (None, True)
        await added(holder)
        assert (await other.probe(count=3, wait_s=0.2)).answered_by == net.mac("a")
        # Seen only by who means to hold the address: then it is somebody else.
        await added(other)
        holder.announce(2)
        await until(lambda: net.mac("a") in claims)
    finally:
        await other.remove()
        await other.close()


@pytest.mark.req("R10")
@pytest.mark.parametrize("gateway", ["10.77.0.254", "fd77::fe"])
async def test_the_gateway_is_a_witness_of_the_lan(net: netns.Net, holder: KernelHolder, gateway: str) -> None:
    answers: list[tuple[float, bool]] = []
    lan = Lan(
        holder,
        gateway=ipaddress.ip_address(gateway),
        apart=frozenset({FOUR, SIX}),
        peer_mac=Mac(net.mac("b")),
        on_answer=lambda asked_at, is_gateway: answers.append((asked_at, is_gateway)),
    )
    began = time.monotonic()
    asking = asyncio.create_task(lan.run())
    try:
        await until(lambda: len(answers) >= 2)
        assert all(is_gateway and began <= asked_at <= time.monotonic() for asked_at, is_gateway in answers)
        net.cut("a")
        net.restore("a")
        seen = len(answers)
        await until(lambda: len(answers) > seen)  # a plug that was pulled does not end the asking
    finally:
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
