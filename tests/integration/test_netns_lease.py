"""The lease in real kernels' hands: added, renewed, lapsed; processes killed and frozen."""

from __future__ import annotations

import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from ha_agent.cluster_ip.lease import Lease, Outcome
from ha_agent.cluster_ip.plan import KERNEL_LATE_S
from ha_agent.errors import OperatorNeeded
from tests.support import netns

ROOT = Path(__file__).resolve().parent.parent.parent
REASON = netns.unavailable()
pytestmark = [pytest.mark.root, pytest.mark.skipif(REASON is not None, reason=REASON or "")]

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "1"))
FOUR = ipaddress.ip_address("10.77.0.53")
SIX = ipaddress.ip_address("fd77::53")
FAR = float("inf")
BUSY_S = 0.5  # what a loaded test machine may add


@pytest.fixture(scope="module")
def net() -> Iterator[netns.Net]:
    built = netns.Net()
    yield built
    built.close()


@pytest.fixture(params=[FOUR, SIX], ids=["ipv4", "ipv6"])
async def lease(net: netns.Net, request: pytest.FixtureRequest) -> AsyncIterator[Lease]:
    with net.inside("a"):
        made = Lease("eth0", request.param)
    yield made
    await made.remove()
    await made.close()


def shown(net: netns.Net, address: object, host: str = "a") -> dict[str, object] | None:
    """The address as iproute2 sees it: an independent witness."""
    for link in json.loads(net.run(host, "ip", "-j", "addr")):
        for entry in link["addr_info"]:
            if entry["local"] == str(address):
                return {**entry, "ifname": link["ifname"]}
    return None


@pytest.mark.req("R13")
async def test_an_added_address_is_a_host_address_with_a_lifetime(net: netns.Net, lease: Lease) -> None:
    assert (await lease.add(valid_s=5, not_after=FAR)).outcome is Outcome.HELD
    found = shown(net, lease.address)
    assert found is not None
    assert found["prefixlen"] == lease.address.max_prefixlen
    assert found["valid_life_time"] in {4, 5}
    assert not found.get("tentative")
    assert await lease.holds()
    assert await lease.left_s() in {4, 5}


async def test_a_renewal_makes_the_lifetime_whole_again(net: netns.Net, lease: Lease) -> None:
    await lease.add(valid_s=2, not_after=FAR)
    assert (await lease.renew(valid_s=9, not_after=FAR)).outcome is Outcome.HELD
    found = shown(net, lease.address)
    assert found is not None
    assert found["valid_life_time"] in {8, 9}


@pytest.mark.req("R13")
async def test_a_removed_address_is_gone(net: netns.Net, lease: Lease) -> None:
    await lease.add(valid_s=5, not_after=FAR)
    assert (await lease.remove()).outcome is Outcome.GONE
    assert shown(net, lease.address) is None
    assert not await lease.holds()
    assert (await lease.remove()).outcome is Outcome.GONE


@pytest.mark.req("R13")
async def test_a_lapsed_address_is_never_renewed(net: netns.Net, lease: Lease) -> None:
    await lease.add(valid_s=5, not_after=FAR)
    net.run("a", "ip", "addr", "del", f"{lease.address}/{lease.address.max_prefixlen}", "dev", "eth0")
    assert (await lease.renew(valid_s=5, not_after=FAR)).outcome is Outcome.GONE
    assert shown(net, lease.address) is None


@pytest.mark.req("R13")
async def test_an_address_that_lapses_during_the_renewal_is_deleted_again(
    net: netns.Net, lease: Lease, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's replace adds it again: no flag forbids that. The look afterwards must find it out."""
    await lease.add(valid_s=5, not_after=FAR)
    kernel, replace = lease._kernel, lease._kernel.replace

    def lapse_first(index, address, **how) -> None:
        assert kernel.delete(index, address)
        time.sleep(0.02)  # creation is told in hundredths of a second
        replace(index, address, **how)
        assert shown(net, address) is not None

    monkeypatch.setattr(kernel, "replace", lapse_first)
    answer = await lease.renew(valid_s=5, not_after=FAR)
    assert (answer.outcome, answer.reason) == (Outcome.GONE, "lapsed during the renewal")
    assert shown(net, lease.address) is None


@pytest.mark.req("R13")
@pytest.mark.parametrize("late_at", [1, 2], ids=["before the call", "after the call"])
async def test_a_late_renewal_deletes_the_address(net: netns.Net, lease: Lease, late_at: int) -> None:
    await lease.add(valid_s=5, not_after=FAR)
    before_the_call = {1: 1, 2: 3}[late_at]  # looks at the clock
    clock = iter([0.0] * before_the_call + [10.0] * 9)
    lease._clock = lambda: next(clock)
    assert (await lease.renew(valid_s=5, not_after=10.0)).outcome is Outcome.GONE
    assert shown(net, lease.address) is None


@pytest.mark.req("R13")
@pytest.mark.parametrize("looks", [1, 2], ids=["in the queue", "in the call"])
async def test_a_lifetime_counts_from_when_it_was_asked_for(net: netns.Net, lease: Lease, looks: int) -> None:
    await lease.add(valid_s=9, not_after=FAR)
    clock = iter([0.0] * (looks + 1) + [4.0] * 9)  # asked, looked whether it is late; and computed
    lease._clock = lambda: next(clock)
    assert (await lease.renew(valid_s=9, not_after=FAR)).outcome is Outcome.HELD
    assert await lease.left_s() == 5


@pytest.mark.req("R13")
async def test_a_late_addition_is_not_made_or_undone(net: netns.Net, lease: Lease) -> None:
    lease._clock = lambda: 10.0
    assert (await lease.add(valid_s=5, not_after=10.0)).outcome is Outcome.LATE
    clock = iter([9.9] * 3 + [10.0] * 9)
    lease._clock = lambda: next(clock)
    assert (await lease.add(valid_s=5, not_after=10.0)).outcome is Outcome.GONE
    assert shown(net, lease.address) is None


@pytest.mark.req("R1.4")
async def test_an_address_configured_by_hand_is_refused_and_left_alone(net: netns.Net, lease: Lease) -> None:
    net.run("a", "ip", "addr", "add", f"{lease.address}/24", "dev", "cable0")
    try:
        answer = await lease.add(valid_s=5, not_after=FAR)
        assert answer.outcome is Outcome.REFUSED
        assert "configured on this machine" in answer.reason
        assert (await lease.remove()).outcome is Outcome.REFUSED
        assert (await lease.renew(valid_s=5, not_after=FAR)).outcome is Outcome.GONE
        assert shown(net, lease.address) is not None
    finally:
        net.run("a", "ip", "addr", "del", f"{lease.address}/24", "dev", "cable0")


async def test_without_carrier_nothing_is_added(net: netns.Net, lease: Lease) -> None:
    net.cut("a")
    try:
        answer = await lease.add(valid_s=5, not_after=FAR)
        assert (answer.outcome, answer.reason) == (Outcome.REFUSED, "the interface has no carrier")
    finally:
        net.restore("a")
    assert shown(net, lease.address) is None


@pytest.mark.req("R1.16")
async def test_an_interface_that_is_not_there_or_is_off_is_named(net: netns.Net) -> None:
    with net.inside("a"):
        missing, off = Lease("eth7", FOUR), Lease("off0", FOUR)
    net.run("a", "ip", "link", "add", "off0", "type", "veth", "peer", "name", "off1")
    try:
        with pytest.raises(OperatorNeeded, match="eth7: no such interface"):
            await missing.check()
        with pytest.raises(OperatorNeeded, match="off0: the interface is switched off"):
            await off.check()
        assert (await missing.add(valid_s=5, not_after=FAR)).reason == "no such interface"
        assert (await off.add(valid_s=5, not_after=FAR)).reason == "the interface is switched off"
    finally:
        net.run("a", "ip", "link", "del", "off0")
        await missing.close()
        await off.close()


async def test_what_an_earlier_agent_left_is_swept(net: netns.Net, lease: Lease) -> None:
    await lease.add(valid_s=60, not_after=FAR)
    with net.inside("a"):
        later = Lease("cable0", lease.address)
    try:
        assert [one.address for one in await later.sweep()] == [lease.address]
        assert shown(net, lease.address) is None
        assert await later.sweep() == ()
    finally:
        await later.close()


@pytest.mark.req("R13")
def test_without_permission_the_answer_says_what_is_needed(net: netns.Net) -> None:
    code = (
        "import asyncio, ipaddress, os\n"
        "from ha_agent.cluster_ip.lease import Lease\n"
        "os.setuid(65534)\n"
        "async def main():\n"
        f"    lease = Lease('eth0', ipaddress.ip_address('{FOUR}'))\n"
        "    print(await lease.add(valid_s=5, not_after=float('inf')))\n"
        "    await lease.close()\n"
        "asyncio.run(main())\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}
    done = subprocess.run(
        net.command("a", sys.executable, "-c", code), env=environment, capture_output=True, text=True, check=False
    )
    assert "CAP_NET_ADMIN" in done.stdout, done.stderr
    assert shown(net, FOUR) is None


@pytest.mark.req("R13")
@pytest.mark.parametrize("address", [FOUR, SIX], ids=["ipv4", "ipv6"])
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
def test_the_kernel_takes_the_address_from_a_dead_or_frozen_agent(
    net: netns.Net, by: signal.Signals, address: object
) -> None:
    gone = []
    for _ in range(ROUNDS):
        process = subprocess.Popen(
            net.command("a", sys.executable, "-m", "tests.support.netns_agent", "eth0", str(address), "2"),
            cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'proto'}"}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            for _ in range(4):  # four renewals: it outlives its first lease only by them
                assert process.stdout.readline().startswith("held")
            with net.inside("a"):
                witness = Lease("eth0", address)
            process.send_signal(by)
            began = time.monotonic()
            while witness._kernel.addresses(address):
                assert time.monotonic() - began < 2 + KERNEL_LATE_S + BUSY_S
                time.sleep(0.005)
            gone.append(time.monotonic() - began)
            witness._kernel.close()
            if by is signal.SIGSTOP:
                process.send_signal(signal.SIGCONT)
                assert process.stdout.readline().startswith("gone")
                assert process.wait(5) == 0
                assert shown(net, address) is None
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
    print(f"\n{by.name} {address}: gone after {min(gone):.2f}..{max(gone):.2f} s, n={len(gone)}")
