"""Window, gate and bottleneck: what may be under way, who goes first, when compressing pays."""

import asyncio

import pytest

from ha_sync.errors import ProtocolFault
from ha_sync.stream.bottleneck import Bottleneck
from ha_sync.stream.gate import BULK, Gate
from ha_sync.stream.window import Window


def test_the_window_bounds_what_is_under_way_and_lets_one_large_frame_through_alone():
    window = Window(100)
    assert window.fits(1000)
    window.sent(1000)
    assert not window.fits(1)
    assert window.received(950) == 950
    assert window.fits(50)
    assert not window.fits(51)


@pytest.mark.parametrize("total", [-1, 9, 101])
def test_an_impossible_acknowledgement_is_refused(total):
    window = Window(100)
    window.sent(100)
    window.received(10)
    with pytest.raises(ProtocolFault, match="acknowledgement"):
        window.received(total)


@pytest.mark.req("R20")
async def test_what_is_urgent_goes_before_what_waited_longer():
    gate = Gate(100, bulk_budget=50)
    await gate.enter(100, 3)
    went: list[str] = []

    async def enter(name: str, priority: int) -> None:
        await gate.enter(60, priority)
        went.append(name)

    async with asyncio.TaskGroup() as tasks:
        for name, priority in [("bulk", BULK), ("recordings", 3), ("config", 0)]:
            tasks.create_task(enter(name, priority))
            await asyncio.sleep(0)
        for _ in range(3):
            gate.leave(100 if not went else 60)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    assert went == ["config", "recordings", "bulk"]


async def test_bulk_leaves_a_part_of_the_budget_to_what_is_live():
    gate = Gate(100, bulk_budget=40)
    await gate.enter(40, BULK)
    bulk = asyncio.ensure_future(gate.enter(10, BULK))
    await asyncio.sleep(0)
    assert not bulk.done()
    await asyncio.wait_for(gate.enter(60, 0), 1)
    gate.leave(60)
    gate.leave(40)
    await asyncio.wait_for(bulk, 1)


async def test_a_waiter_that_gives_up_keeps_nothing():
    gate = Gate(10, bulk_budget=10)
    await gate.enter(10, 0)
    waiter = asyncio.ensure_future(gate.enter(10, 0))
    await asyncio.sleep(0)
    waiter.cancel()
    await asyncio.gather(waiter, return_exceptions=True)
    gate.leave(10)
    await asyncio.wait_for(gate.enter(10, 0), 1)


@pytest.mark.parametrize(
    ("waited", "starved", "is_link"),
    [(0.4, 0.45, True), (0.4, 0.1, False), (0.0, 0.5, False)],
    ids=["the bytes are on the way", "the standby's disk", "the active's own work"],
)
def test_only_a_slow_link_makes_compressing_pay(waited, starved, is_link):
    bottleneck = Bottleneck()
    bottleneck.starved(1.0, at=10.0)
    bottleneck.waited(waited)
    bottleneck.starved(1.0 + starved, at=10.6)
    assert bottleneck.is_link is is_link
