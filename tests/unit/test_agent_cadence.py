"""When the agent ticks: each 100 ms, on every path, whatever the peer does; one node beside the other one's beats."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_agent.heartbeat.beat import Boot, PathId, Told
from ha_agent.heartbeat.cadence import AFTER_S, APART_FOR, BEFORE_S, STEP_S, Cadence
from ha_agent.heartbeat.channel import Channel
from ha_agent.heartbeat.datagram import PathSpec
from tests.support.beats import BEAT, PAIR_A

pytestmark = pytest.mark.req("R1.7")
INTERVAL_S = 0.1
TICKS = 200


def follower(now: float = 0.0) -> Cadence:
    cadence = Cadence(interval_s=INTERVAL_S, follows=True)
    cadence.begin(now)
    return cadence


def distance_s(at: float, phase_s: float) -> float:
    """From a tick to the nearest beat of a peer that beats at this phase; negative: the tick comes before it."""
    apart = (at - phase_s) % INTERVAL_S
    return apart if apart <= INTERVAL_S / 2 else apart - INTERVAL_S


def test_who_does_not_follow_ticks_at_each_interval_exactly() -> None:
    cadence = Cadence(interval_s=INTERVAL_S, follows=False)
    now = cadence.begin(5.0)
    for number in range(1, TICKS):
        cadence.heard(now + 0.05)
        now = cadence.advance(now + 0.0004)
        assert now == pytest.approx(5.0 + number * INTERVAL_S)


@given(
    beats=st.lists(st.none() | st.floats(0, INTERVAL_S), min_size=20, max_size=60),
    late=st.lists(st.floats(0, INTERVAL_S * 0.9), min_size=20, max_size=60),
)
def test_a_tick_is_never_more_than_an_interval_after_the_last_whatever_is_heard(
    beats: list[float | None], late: list[float]
) -> None:
    cadence = follower()
    for beat, late_s in zip(beats, late, strict=False):
        due = cadence.due
        if beat is not None:
            cadence.heard(due - beat)
        after = cadence.advance(due + late_s)
        assert INTERVAL_S - STEP_S - 1e-9 <= after - due <= INTERVAL_S + 1e-9


def test_a_process_that_stood_still_ticks_at_once_and_makes_up_for_nothing() -> None:
    cadence = follower()
    assert cadence.advance(7.0) == 7.0
    assert cadence.advance(7.0) == pytest.approx(7.0 + INTERVAL_S)


@given(phase_s=st.floats(0, INTERVAL_S))
def test_the_secondary_comes_to_tick_beside_the_beats_of_the_primary_and_stays_there(phase_s: float) -> None:
    cadence = follower()
    now = 0.0
    for _ in range(TICKS):
        cadence.heard(now - (now - phase_s) % INTERVAL_S)
        now = cadence.advance(now)
    assert -BEFORE_S - 1e-9 <= distance_s(now, phase_s) <= AFTER_S + 1e-9
    before = now
    cadence.heard(now - (now - phase_s) % INTERVAL_S)
    assert cadence.advance(now) == pytest.approx(before + INTERVAL_S), "it stays"


def test_a_beat_that_was_held_up_moves_nothing() -> None:
    cadence = follower()
    now = 0.0
    for number in range(TICKS):
        held_up_s = 0.03 if number % (APART_FOR + 1) == APART_FOR else 0.0
        cadence.heard(now - 0.001 - held_up_s)
        now = cadence.advance(now)
    assert now == pytest.approx(TICKS * INTERVAL_S)


def test_a_peer_that_fell_silent_is_not_followed() -> None:
    cadence = follower()
    cadence.heard(-0.05)
    now = 0.0
    for _ in range(TICKS):
        now = cadence.advance(now)
    assert now == pytest.approx(TICKS * INTERVAL_S)


@given(st.floats(0, 100), st.floats(0.05, 10))
def test_what_is_aligned_to_the_ticks_is_hardly_sooner_and_little_later(now: float, wait_s: float) -> None:
    cadence = follower(now)
    at = cadence.nearest(now + wait_s)
    assert now < at
    assert -0.026 < at - (now + wait_s) < 0.076
    assert distance_s(at, now) == pytest.approx(0, abs=1e-9)


def test_what_begins_a_moment_after_a_tick_keeps_its_own_interval() -> None:
    """Not one tick later each time: the gateway is asked every 0.4 s, not every 0.5."""
    cadence = follower()
    began = 0.003
    asked = [began := cadence.nearest(began + 0.4) + 0.003 for _ in range(10)]
    assert [after - before for before, after in itertools.pairwise(asked)] == [pytest.approx(0.4)] * 9


async def test_a_beat_leaves_on_every_path() -> None:
    """Each with its own number in the envelope, all of one sequence."""
    heard: list[tuple[str, bytes]] = []

    class Inbox(asyncio.DatagramProtocol):
        def __init__(self, name: str) -> None:
            self.name = name

        def datagram_received(self, data: bytes, addr: object) -> None:
            heard.append((self.name, data))

    loop = asyncio.get_running_loop()
    names = ("cable", "lan", "third")
    ends = [await loop.create_datagram_endpoint(lambda name=name: Inbox(name), ("127.0.0.1", 0)) for name in names]
    specs = tuple(
        PathSpec(
            path=PathId(number),
            name=name,
            local="127.0.0.1",
            peer="127.0.0.1",
            port=0,
            peer_port=ends[number][0].get_extra_info("sockname")[1],
        )
        for number, name in enumerate(names)
    )
    channel = Channel(
        PAIR_A,
        specs,
        boot=Boot(1),
        timeout_s=3,
        on_heard=lambda *_: None,
        on_rejected=lambda _: None,
        clock=itertools.count(0, 0.1).__next__,
    )
    channel.open()
    try:
        for _ in range(4):
            channel.send(BEAT, Told())
        async with asyncio.timeout(20):
            while len(heard) < 12:
                await asyncio.sleep(0)
    finally:
        channel.close()
        for transport, _ in ends:
            transport.close()
    assert sorted(name for name, _ in heard) == sorted(names * 4)
    assert len({data for _, data in heard}) == 12, "no two are alike"
