"""Both families of the cluster IP as one thing: held whole or not at all. With leases that answer as the test says."""

from __future__ import annotations

import ipaddress

import pytest

from ha_agent.arbiter.values import Mac
from ha_agent.cluster_ip.holder import KernelHolder
from ha_agent.cluster_ip.lan import Lan
from ha_agent.cluster_ip.lease import HELD, Answer, Outcome
from ha_agent.cluster_ip.netlink import Index, NeighbourFacts
from ha_agent.cluster_ip.probe import Asked

FOUR, SIX = ipaddress.ip_address("192.0.2.53"), ipaddress.ip_address("2001:db8::53")
PEER = Mac("02:00:00:00:00:02")
GONE, LATE, REFUSED = (Answer(outcome=outcome) for outcome in (Outcome.GONE, Outcome.LATE, Outcome.REFUSED))


class FakeLease:
    """One family."""

    def __init__(self, answer: Answer = HELD) -> None:
        self.answer = answer
        self.here = False
        self.removed = 0

    async def add(self, **_facts: float) -> Answer:
        self.here = self.here or self.answer is HELD
        return self.answer

    async def renew(self, **_facts: float) -> Answer:
        self.here = self.here and self.answer.outcome is not Outcome.GONE
        return self.answer

    async def remove(self) -> Answer:
        self.here = False
        self.removed += 1
        return GONE

    async def holds(self) -> bool:
        return self.here

    async def close(self) -> None:
        """Nothing to let go of."""


async def holder(*leases: FakeLease) -> KernelHolder:
    made = KernelHolder("lo", (FOUR, SIX), peer_mac=PEER, clock=lambda: 100.0)
    for real in made._leases:
        await real.close()
    made._leases = leases  # type: ignore[assignment]
    return made


@pytest.mark.req("R1.11", "R13")
@pytest.mark.parametrize("bad", [REFUSED, LATE, GONE])
@pytest.mark.parametrize("swapped", [False, True])
async def test_an_address_of_which_half_cannot_be_added_is_not_added(bad: Answer, swapped: bool) -> None:
    leases = [FakeLease(), FakeLease(bad)][:: -1 if swapped else 1]
    held = await holder(*leases)
    assert (await held.add(valid_until=105.0, not_after=105.0)).outcome is bad.outcome
    assert not any(lease.here for lease in leases)
    assert not await held.holds()
    await held.close()


@pytest.mark.req("R1.11", "R13")
@pytest.mark.parametrize("other", [HELD, REFUSED])
@pytest.mark.parametrize("swapped", [False, True])
async def test_what_is_gone_takes_the_other_half_with_it(other: Answer, swapped: bool) -> None:
    leases = [FakeLease(), FakeLease()]
    held = await holder(*leases)
    await held.add(valid_until=105.0, not_after=105.0)
    gone, left = leases[:: -1 if swapped else 1]
    gone.answer, left.answer = GONE, other
    assert (await held.renew(valid_until=108.0)).outcome is Outcome.GONE
    assert not any(lease.here for lease in leases)
    await held.close()


@pytest.mark.req("R13")
async def test_a_refused_renewal_lets_the_old_lifetime_run_on() -> None:
    leases = FakeLease(), FakeLease()
    held = await holder(*leases)
    await held.add(valid_until=105.0, not_after=105.0)
    leases[1].answer = REFUSED
    assert (await held.renew(valid_until=108.0)).outcome is Outcome.REFUSED
    assert await held.holds()
    await held.close()


@pytest.mark.req("R13")
async def test_a_lease_that_is_over_is_removed_and_not_renewed() -> None:
    leases = FakeLease(), FakeLease()
    held = await holder(*leases)
    await held.add(valid_until=105.0, not_after=105.0)
    assert (await held.renew(valid_until=100.0)).outcome is Outcome.GONE
    assert [lease.removed for lease in leases] == [1, 1]
    assert (await held.add(valid_until=100.0, not_after=105.0)).outcome is Outcome.LATE
    assert not any(lease.here for lease in leases)
    await held.close()


@pytest.mark.req("R1.2")
async def test_at_a_remote_site_there_is_no_address_and_the_role_is_held_by_saying_so() -> None:
    held = KernelHolder("lo", (), peer_mac=PEER, clock=lambda: 100.0)
    assert not (await held.find()).present
    assert not await held.holds()
    assert await held.add(valid_until=105.0, not_after=105.0) == HELD
    assert await held.renew(valid_until=108.0) == HELD
    assert await held.holds()
    probed = await held.probe(count=1, wait_s=0.01)
    assert (probed.answered_by, probed.sent) == (None, True)
    assert (await held.remove()).outcome is Outcome.GONE
    assert not await held.holds()
    await held.close()


class FakeNeighbours:
    """Who is known on the LAN, and who answers."""

    def __init__(self, known: dict[str, str]) -> None:
        self._known = {ipaddress.ip_address(address): mac for address, mac in known.items()}
        self.asked: list[str] = []

    def known(self) -> tuple[NeighbourFacts, ...]:
        return tuple(NeighbourFacts(index=Index(1), address=a, mac=mac) for a, mac in self._known.items())

    async def ask(self, address: object, *, own: object, wait_s: float) -> Asked:
        self.asked.append(str(address))
        mac = self._known.get(address)  # type: ignore[call-overload]
        return Asked(
            address=address,  # type: ignore[arg-type]
            asked_at=7.0,
            sent=True,
            answered_at=7.1 if mac else None,
            macs=(mac,) if mac else (),
        )


class FakeLanHolder:
    def __init__(self, neighbours: dict[int, FakeNeighbours]) -> None:
        self.neighbours = neighbours

    def own(self, version: int) -> None:
        """None of our own."""


def lan(neighbours: dict[int, FakeNeighbours], answers: list[tuple[float, bool]], gateway: str | None = None) -> Lan:
    return Lan(
        FakeLanHolder(neighbours),  # type: ignore[arg-type]
        gateway=ipaddress.ip_address(gateway) if gateway else None,
        apart=frozenset({FOUR, ipaddress.ip_address("192.0.2.2")}),
        peer_mac=PEER,
        on_answer=lambda asked_at, is_gateway: answers.append((asked_at, is_gateway)),
    )


@pytest.mark.req("R1.11", "R10")
async def test_without_a_gateway_neighbours_of_both_families_are_witnesses() -> None:
    answers: list[tuple[float, bool]] = []
    four, six = FakeNeighbours({}), FakeNeighbours({"fe80::9": "02:00:00:00:00:09"})
    await lan({4: four, 6: six}, answers)._ask_neighbours()
    assert (answers, six.asked) == ([(7.0, False)], ["fe80::9"]), "a LAN without IPv4 is a LAN"


@pytest.mark.req("R10")
async def test_the_peer_and_the_cluster_ip_are_no_witnesses() -> None:
    answers: list[tuple[float, bool]] = []
    four = FakeNeighbours({str(FOUR): "02:00:00:00:00:07", "192.0.2.2": "02:00:00:00:00:08", "192.0.2.3": PEER})
    await lan({4: four}, answers)._ask_neighbours()
    assert (answers, four.asked) == ([], [])


@pytest.mark.req("R1.13", "R10")
async def test_a_gateway_that_is_the_peer_is_no_witness() -> None:
    answers: list[tuple[float, bool]] = []
    gateway = FakeNeighbours({"192.0.2.1": PEER})
    asking = lan({4: gateway}, answers, "192.0.2.1")
    await asking._ask(ipaddress.ip_address("192.0.2.1"), gateway=True)
    assert answers == []
    honest = FakeNeighbours({"192.0.2.1": "02:00:00:00:00:01"})
    await lan({4: honest}, answers, "192.0.2.1")._ask(ipaddress.ip_address("192.0.2.1"), gateway=True)
    assert answers == [(7.0, True)]
