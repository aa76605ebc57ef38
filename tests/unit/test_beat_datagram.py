from __future__ import annotations

import asyncio
import socket
from contextlib import closing

import pytest

from ha_agent.errors import OperatorNeeded
from ha_agent.heartbeat.beat import PathId
from ha_agent.heartbeat.datagram import PathSocket, PathSpec, Received


def spec(local: str, peer: str, *, port: int = 0, device: str = "") -> PathSpec:
    return PathSpec(path=PathId(1), name="cable", local=local, peer=peer, port=port, device=device)


class Inbox:
    """Collects what came; ``first`` waits for the first batch."""

    def __init__(self) -> None:
        self.batches: asyncio.Queue[list[Received]] = asyncio.Queue()

    def put(self, received: list[Received]) -> None:
        self.batches.put_nowait(received)


def refuse(received: list[Received]) -> None:
    raise AssertionError(received)


@pytest.mark.req("R1.7")
@pytest.mark.parametrize(("first", "second"), [("127.0.0.1", "127.0.0.2"), ("::1", "::1")])
async def test_what_one_sends_the_other_hears_on_its_path(first: str, second: str) -> None:
    inbox = Inbox()
    sender, receiver = PathSocket(spec(first, second), refuse), PathSocket(spec(second, first), inbox.put)
    with closing(sender), closing(receiver):
        sender.open()
        receiver.open()
        sender.aim(receiver.port)
        assert sender.send(b"hello")
        (received,) = await inbox.batches.get()
        assert (received.path, received.data, received.source) == (1, b"hello", first)
        assert sender.state.usable
        assert (sender.state.sent, sender.state.failed) == (1, 0)


async def test_all_that_lies_in_the_socket_comes_oldest_first() -> None:
    inbox = Inbox()
    receiver = PathSocket(spec("127.0.0.2", "127.0.0.1"), inbox.put)
    with closing(receiver), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        receiver.open()
        for number in range(50):
            stranger.sendto(b"%d" % number, ("127.0.0.2", receiver.port))
        (first,) = await inbox.batches.get()
        at_once = receiver.drain()
        assert [int(one.data) for one in (first, *at_once)] == list(range(50))
        assert [one.at for one in (first, *at_once)] == sorted(one.at for one in (first, *at_once))


async def test_what_is_not_drained_comes_one_by_one() -> None:
    inbox = Inbox()
    receiver = PathSocket(spec("127.0.0.2", "127.0.0.1"), inbox.put)
    with closing(receiver), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        receiver.open()
        for number in range(5):
            stranger.sendto(b"%d" % number, ("127.0.0.2", receiver.port))
        batches = [await inbox.batches.get() for _ in range(5)]
        assert [[int(one.data) for one in batch] for batch in batches] == [[0], [1], [2], [3], [4]]


async def test_a_stalled_node_drains_its_socket_by_itself() -> None:
    receiver = PathSocket(spec("127.0.0.2", "127.0.0.1"), refuse)
    with closing(receiver), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        receiver.open()
        stranger.sendto(b"queued", ("127.0.0.2", receiver.port))
        assert [one.data for one in receiver.drain()] == [b"queued"]
        assert receiver.drain() == []


async def test_a_datagram_that_is_too_long_is_cut_above_the_limit() -> None:
    receiver = PathSocket(spec("127.0.0.2", "127.0.0.1"), refuse)
    with closing(receiver), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        receiver.open()
        stranger.sendto(bytes(9000), ("127.0.0.2", receiver.port))
        (received,) = receiver.drain()
        assert len(received.data) == 1024


async def test_an_unreachable_peer_is_a_state_and_no_exception() -> None:
    path = PathSocket(spec("127.0.0.1", "203.0.113.1"), refuse)  # from loopback: the kernel refuses
    with closing(path):
        path.open()
        path.aim(9)
        assert not path.send(b"x")
        assert not path.state.usable
        assert path.state.error in {"EINVAL", "ENETUNREACH", "EHOSTUNREACH"}
        assert path.state.failed == 1


async def test_a_refused_port_does_not_stop_the_path() -> None:
    receiver = PathSocket(spec("127.0.0.2", "127.0.0.1"), refuse)
    with closing(receiver):
        receiver.open()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as closed_soon:
            closed_soon.bind(("127.0.0.1", 0))
            receiver.aim(closed_soon.getsockname()[1])
        for _ in range(3):
            receiver.send(b"x")
        assert receiver.drain() == []
        assert receiver.send(b"x")


@pytest.mark.req("R1.7")
async def test_a_local_address_may_come_later() -> None:
    path = PathSocket(spec("192.0.2.77", "192.0.2.78"), refuse)
    with closing(path):
        path.open()
        path.aim(9527)
        assert not path.send(b"x")  # the kernel sends nothing from an address that is not here
        assert path.port != 0
        assert path.state.failed == 1


async def test_an_interface_that_is_not_there_is_tried_again() -> None:
    now = [100.0]
    path = PathSocket(spec("fe80::1%ha-none", "fe80::2%ha-none"), refuse, clock=lambda: now[0])
    with closing(path):
        path.open()
        assert path.state.error == "ENODEV"
        assert not path.send(b"x")
        now[0] += 1.5
        assert not path.send(b"x")
        assert (path.state.error, path.state.failed) == ("ENODEV", 2)


@pytest.mark.req("R1.7")
async def test_a_port_that_is_taken_is_told_at_once() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.3", 0))
        path = PathSocket(spec("127.0.0.3", "127.0.0.1", port=other.getsockname()[1]), refuse)
        with pytest.raises(OperatorNeeded, match="heartbeat_port is taken"):
            path.open()
        path.close()
