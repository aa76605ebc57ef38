"""Two channels over real UDP sockets of the loopback interface, IPv4 and IPv6."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest

from ha_agent.heartbeat.beat import Boot, PathId, Sequence, Told
from ha_agent.heartbeat.channel import Channel
from ha_agent.heartbeat.datagram import PathSpec
from ha_agent.heartbeat.detector import Verdict, Way
from ha_agent.heartbeat.seal import Heard, HeartbeatKey, Pair, Rejected, Rejection, seal
from tests.support.beats import BEAT, PAIR_A, PAIR_B, envelope

WITHIN_S = 20.0


@dataclass(slots=True)
class End:
    """One node's channel and what came in."""

    channel: Channel = field(init=False)
    address: tuple[str, int] = field(init=False)
    heard: list[tuple[Heard, Verdict]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)

    @property
    def lives(self) -> list[Verdict]:
        return [verdict for _, verdict in self.heard if verdict.life]


def free_ports(address: str, count: int) -> list[int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            free = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            free.bind((address, 0))
            ports.append(free.getsockname()[1])
        return ports


def end_of(pair: Pair, address: str, ports: list[tuple[int, int]], *, boot: int) -> End:
    """``ports``: own and the peer's, for each path."""
    end = End()
    specs = tuple(
        PathSpec(path=PathId(number), name=f"path{number}", local=address, peer=address, port=own, peer_port=peer)
        for number, (own, peer) in enumerate(ports)
    )
    end.channel = Channel(
        pair,
        specs,
        boot=Boot(boot),
        timeout_s=3.0,
        on_heard=lambda heard, verdict: end.heard.append((heard, verdict)),
        on_rejected=end.rejected.append,
    )
    end.address = (address, ports[0][0])
    return end


@pytest.fixture(params=["127.0.0.1", "::1"], ids=["ipv4", "ipv6"])
def loopback(request: pytest.FixtureRequest) -> str:
    with contextlib.suppress(OSError):
        free_ports(request.param, 1)
        return request.param
    pytest.skip(f"{request.param} is not there")


@contextlib.contextmanager
def two(loopback: str, *, pair_b: Pair = PAIR_B) -> Iterator[tuple[End, End]]:
    ports = free_ports(loopback, 4)
    a = end_of(PAIR_A, loopback, [(ports[0], ports[2]), (ports[1], ports[3])], boot=9)
    b = end_of(pair_b, loopback, [(ports[2], ports[0]), (ports[3], ports[1])], boot=3)
    try:
        for end in (a, b):
            end.channel.open()
        yield a, b
    finally:
        for end in (a, b):
            end.channel.close()


async def beating(wanted: Callable[[], bool], *ends: End) -> None:
    """All ends beat until it is as wanted."""
    async with asyncio.timeout(WITHIN_S):
        while not wanted():
            for end in ends:
                end.channel.send(BEAT, Told())
            await asyncio.sleep(0.01)


@pytest.mark.req("R1.8", "R10")
async def test_beats_are_life_when_they_echo_mine_and_say_when_i_sent_it(loopback: str) -> None:
    with two(loopback) as (a, b):
        began = asyncio.get_running_loop().time()
        await beating(lambda: len(a.lives) >= 5 and len(b.lives) >= 5, a, b)
        first, verdict = a.heard[0]
        assert not verdict.life, "who has not heard me says nothing of now"
        life = a.lives[-1]
        assert life.echoed_at is not None
        assert began <= life.echoed_at <= asyncio.get_running_loop().time()
        assert (first.envelope.boot, a.rejected, b.rejected) == (Boot(3), [], [])
        assert {heard.envelope.path for heard, _ in a.heard} == {PathId(0), PathId(1)}
        assert a.channel.look()
        assert {path.way for path in a.channel.paths()} == {Way.BOTH}
        assert [path.name for path in a.channel.paths()] == ["path0", "path1"]
        assert a.channel.name(PathId(1)) == "path1"
        assert all(path.heard_age_s is not None and path.heard_there_age_s is not None for path in a.channel.paths())
        assert all(path.beats > 0 for path in a.channel.paths())


async def test_one_beat_on_two_paths_is_news_once(loopback: str) -> None:
    with two(loopback) as (a, b):
        await beating(lambda: len(b.lives) >= 4, a, b)
        newest = [heard.envelope.sequence for heard, verdict in b.heard if verdict.newest]
        assert newest == sorted(set(newest))


@pytest.mark.req("R3")
@pytest.mark.parametrize(
    ("pair", "kind"),
    [
        (replace(PAIR_A, key=HeartbeatKey(bytes(32))), Rejection.STRANGER),
        (replace(PAIR_A, cluster_id=uuid.UUID(int=1)), Rejection.OTHER_CLUSTER),
        (PAIR_B, Rejection.OWN),
    ],
)
async def test_what_is_not_the_peers_is_dropped_counted_and_told(loopback: str, pair: Pair, kind: Rejection) -> None:
    with two(loopback) as (a, b):
        await beating(lambda: len(b.lives) >= 2, a, b)
        throw(b, *[seal(pair, envelope(1), BEAT, Told())] * 3)
        await beating(lambda: b.channel.rejected[kind] == 3, a, b)
        assert [one.kind for one in b.rejected] == [kind] * 3
        assert [one.first for one in b.rejected] == [True, False, False], "an alarm is raised once"
        assert b.channel.standing() == {kind}
        before = len(b.lives)
        await beating(lambda: len(b.lives) > before, a, b)


@pytest.mark.req("R3")
async def test_a_replay_is_dropped_and_a_garbled_datagram_too(loopback: str) -> None:
    with two(loopback) as (a, b):
        await beating(lambda: len(b.lives) >= 2, a, b)
        last = b.heard[-1][0].envelope
        replayed = seal(PAIR_A, replace(last, path=PathId(0)), BEAT, Told())
        garbled = replayed[:-1] + bytes([replayed[-1] ^ 1])
        throw(b, replayed, garbled, b"", b"x" * 2000)
        await beating(lambda: len(b.rejected) >= 4, a, b)
        assert b.channel.rejected[Rejection.OLD_SEQUENCE] == 1
        assert b.channel.rejected[Rejection.TOO_LONG] == 1
        assert sum(b.channel.rejected.values()) == 4


@pytest.mark.req("R3")
async def test_a_beat_of_an_older_boot_is_a_replay(loopback: str) -> None:
    with two(loopback) as (a, b):
        await beating(lambda: len(b.lives) >= 2, a, b)
        throw(b, seal(PAIR_A, replace(envelope(1 << 40), boot=Boot(8)), BEAT, Told()))
        await beating(lambda: b.channel.rejected[Rejection.OLD_BOOT] == 1, a, b)


async def test_a_peer_that_starts_anew_is_heard_at_once(loopback: str) -> None:
    with two(loopback) as (a, b):
        await beating(lambda: len(b.lives) >= 2, a, b)
        a.channel.close()
        specs = [(a.address[1], b.address[1])]
        again = end_of(PAIR_A, loopback, specs, boot=10)
        again.channel.open()
        try:
            await beating(lambda: b.heard[-1][0].envelope.boot == Boot(10) and b.heard[-1][1].life, again, b)
            assert b.heard[-1][0].envelope.sequence < Sequence(1000)
        finally:
            again.channel.close()


async def test_what_lies_in_the_socket_of_a_process_that_stood_still_is_taken_in_before_it_judges(
    loopback: str,
) -> None:
    with two(loopback) as (a, b):
        await beating(lambda: len(a.lives) >= 2 and len(b.lives) >= 2, a, b)
        before = len(b.lives)
        for _ in range(3):
            a.channel.send(BEAT, Told())
        b.channel.drain()  # no turn of the loop since: the process stood still
        assert len(b.lives) >= before + 3


@pytest.mark.req("R32")
async def test_a_path_to_nowhere_says_so_and_ends_nothing(loopback: str) -> None:
    (port,) = free_ports(loopback, 1)
    end = end_of(PAIR_A, loopback, [(port, port + 1 if port < 65535 else port - 1)], boot=1)
    end.channel.open()
    try:
        for _ in range(5):
            end.channel.send(BEAT, Told())
            await asyncio.sleep(0)
        (path,) = end.channel.paths()
        assert (path.heard_age_s, path.way, path.beats) == (None, Way.UNKNOWN, 0)
    finally:
        end.channel.close()


def throw(end: End, *datagrams: bytes) -> None:
    """At its first path, from somewhere."""
    family = socket.AF_INET6 if ":" in end.address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as thrower:
        for datagram in datagrams:
            thrower.sendto(datagram, end.address)
