"""The stand-in of the cluster IP on the loopback interface: a lease like the real one, answers like a holder's."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator

import pytest

from ha_agent.arbiter.values import Mac
from ha_agent.cluster_ip.holder import Found, Holder, Probed
from ha_agent.cluster_ip.lease import HELD, Outcome
from ha_agent.cluster_ip.stand_in import ECHOES_MAX, QUESTION, StandIn
from tests.support.agent_settings import Site, new_site

PEER = Mac("02:00:7f:00:00:02")
NOBODY = Probed(answered_by=None, sent=True)


class Clock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def site() -> Site:
    return new_site()


@pytest.fixture
def clock() -> Clock:
    return Clock()


def made(site: Site, clock: Clock) -> StandIn:
    return StandIn(ipaddress.ip_address(site.shared), site.port, peer_mac=PEER, clock=clock)


@pytest.fixture
async def holder(site: Site, clock: Clock) -> AsyncIterator[StandIn]:
    one = made(site, clock)
    yield one
    await one.close()


async def test_it_is_a_holder(holder: StandIn) -> None:
    as_the_driver_sees_it: Holder = holder
    as_the_driver_sees_it.open(lambda _mac: None)
    assert await holder.find() == Found(present=False, left_s=0.0)


async def asked(site: Site) -> bytes | None:
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        asking.connect((site.shared, site.port))
        try:
            asking.send(b"hello")
            async with asyncio.timeout(5):
                return await loop.sock_recv(asking, 100)
        except ConnectionRefusedError:
            return None


@pytest.mark.req("R13")
async def test_who_holds_it_answers_everybody(holder: StandIn, site: Site) -> None:
    assert await asked(site) is None
    assert await holder.add(valid_until=105.0, not_after=105.0) == HELD
    assert await asked(site) == b"hello"
    assert (await holder.remove()).outcome is Outcome.GONE
    assert await asked(site) is None


@pytest.mark.req("R13")
async def test_a_lease_ends_by_itself_and_is_not_renewed_after_its_end(
    holder: StandIn, site: Site, clock: Clock
) -> None:
    await holder.add(valid_until=105.0, not_after=105.0)
    clock.now = 104.9
    assert await holder.renew(valid_until=109.0) == HELD
    clock.now = 108.9
    assert await holder.holds()
    clock.now = 109.0
    assert not await holder.holds()
    assert (await holder.renew(valid_until=120.0)).outcome is Outcome.GONE
    assert await asked(site) is None


@pytest.mark.req("R13")
async def test_a_lapsed_lease_answers_nobody_although_nobody_looked(holder: StandIn, site: Site, clock: Clock) -> None:
    await holder.add(valid_until=105.0, not_after=105.0)
    clock.now = 105.0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        asking.connect((site.shared, site.port))
        asking.send(QUESTION)
        holder._echo()
        with pytest.raises((BlockingIOError, ConnectionRefusedError)):
            asking.recv(100)


async def test_what_is_too_late_is_not_added_and_not_renewed(holder: StandIn) -> None:
    assert (await holder.add(valid_until=100.0, not_after=100.0)).outcome is Outcome.LATE
    assert not await holder.holds()
    await holder.add(valid_until=105.0, not_after=105.0)
    assert (await holder.renew(valid_until=99.0)).outcome is Outcome.GONE


async def test_an_address_that_is_not_this_machines_is_refused(clock: Clock) -> None:
    foreign = StandIn(ipaddress.ip_address("192.0.2.53"), 9527, peer_mac=PEER, clock=clock)
    answer = await foreign.add(valid_until=105.0, not_after=105.0)
    assert answer.outcome is Outcome.REFUSED
    assert "assign" in answer.reason


@pytest.mark.req("R13")
async def test_the_next_holder_overrules_one_that_is_frozen(holder: StandIn, site: Site, clock: Clock) -> None:
    frozen = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    with frozen:
        frozen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        frozen.bind((site.shared, site.port))
        assert await holder.add(valid_until=105.0, not_after=105.0) == HELD
        assert await asked(site) == b"hello"


@pytest.mark.req("R10")
async def test_a_probe_finds_the_other_holder_and_nobody_where_there_is_none(
    holder: StandIn, site: Site, clock: Clock
) -> None:
    other = made(site, clock)
    assert await other.probe(count=2, wait_s=0.05) == NOBODY
    await holder.add(valid_until=105.0, not_after=105.0)
    assert await other.probe(count=100, wait_s=0.2) == Probed(answered_by=PEER, sent=True)
    assert await holder.probe(count=1, wait_s=0.05) == NOBODY, "I am not somebody else"


async def test_a_flood_does_not_keep_the_loop(holder: StandIn, site: Site) -> None:
    await holder.add(valid_until=105.0, not_after=105.0)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as asking:
        asking.connect((site.shared, site.port))
        for _ in range(2 * ECHOES_MAX):
            asking.send(QUESTION)
        holder._echo()
        got = 0
        while True:
            try:
                asking.recv(100)
            except BlockingIOError:
                break
            got += 1
        assert got == ECHOES_MAX, "the rest when the loop comes back"
