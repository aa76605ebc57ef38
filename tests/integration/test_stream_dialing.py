"""The engine's dialing over TLS on loopback: any address of the paired node will do, and nobody else's.

The nodes are real identities behind real ports; only what is replicated is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest

from benchmarks.harness.relay import Relay
from ha_sync.core.dataset import DatasetName, Role
from ha_sync.core.paths import Heard
from ha_sync.errors import HaSyncError, PeerUnreachable, Refused
from ha_sync.pairing.gate import Gate, Refusals
from ha_sync.pairing.identity import Identity, init_cluster
from ha_sync.pairing.keyring import Keyring
from ha_sync.sample.pair import LocalPair, Place
from ha_sync.service import peer as dialing
from ha_sync.service.peer import MOVED, PATH_FAILED, AgentPath, PeerLink
from ha_sync.service.replication import ReplicationServicer
from tests.support.pairing_nodes import join_as, serving
from tests.support.small_pair import furnish, read_rows, small_toml, until, write_rows

ANSWER = b"the answer"


class FakeNode:
    """Has nothing to replicate, and says a word to whoever subscribes."""

    role, epoch = Role.ACTIVE, 2

    def datasets(self) -> list[Any]:
        return []

    async def publish(self, _subscribe: Any, _messages: Any, write: Callable[[bytes], Any], *, peer_at: str) -> None:
        assert peer_at.startswith(("127.0.0.", "[::1]")), peer_at
        await write(ANSWER)
        await asyncio.Event().wait()


async def nothing_shared() -> dict[str, str]:
    return {}


BESIDE: dict[str, Any] = {"shared": nothing_shared, "dissolved": lambda: False}


@contextlib.asynccontextmanager
async def answering(identity: Identity, *hosts: str) -> AsyncIterator[tuple[str, ...]]:
    """The engine's port of this identity at each of the hosts; yields the addresses."""
    keyring = Keyring(identity)
    gate = Gate(keyring, Refusals(lambda *_: None))
    server = grpc.aio.server()
    replication = ReplicationServicer(FakeNode(), gate, node_id=identity.node_id, **BESIDE)  # type: ignore[arg-type]
    server.add_generic_rpc_handlers((replication.handler(),))
    ports = [server.add_secure_port(f"{host}:0", keyring.server_credentials()) for host in hosts]
    await server.start()
    try:
        yield tuple(f"{host}:{port}" for host, port in zip(hosts, ports, strict=True))
    finally:
        await server.stop(0)


@pytest.fixture
async def nodes(tmp_path: Path) -> SimpleNamespace:
    """The identities of a pair, and of a stranger."""
    for name in "abs":
        (tmp_path / name).mkdir()
    a = init_cluster(str(tmp_path / "a"), node_name="a")
    async with serving(a) as port:
        joined = await asyncio.to_thread(join_as, port.token(), str(tmp_path / "b"))
        a = port.keyring.identity
        # The founder learns of its peer with the first call that the peer makes; here it is told.
        assert a.peer is None or a.peer.node_id == joined.identity.node_id
    stranger = init_cluster(str(tmp_path / "s"), node_name="s")
    return SimpleNamespace(a=Identity.load(str(tmp_path / "a")), b=joined.identity, stranger=stranger)


class Dialer:
    """The link of node b, and what it reported."""

    def __init__(self, identity: Identity, *configured: str) -> None:
        self.events: list[tuple[str, dict[str, object]]] = []
        self.link = PeerLink(
            lambda: self.keyring,
            configured=configured,
            report=lambda _severity, what, fields: self.events.append((what, fields)),
        )
        self.keyring = Keyring(identity)

    async def stream(self) -> str:
        """Opens a stream; at which address it was answered."""
        async with self.link.dial(DatasetName("cdr"))() as call:
            await call.write(subscribe())
            assert await call.read() == ANSWER
            return call.address

    def told(self, what: str) -> list[dict[str, object]]:
        return [fields for kind, fields in self.events if kind == what]


def subscribe() -> bytes:
    from ha_proto.sync.v1 import replication_pb2 as pb

    return pb.SubscriberMessage(subscribe=pb.Subscribe(dataset="cdr")).SerializeToString()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.mark.req("R3", "R10")
async def test_the_paired_node_is_taken_at_whatever_address_it_answers(nodes: SimpleNamespace) -> None:
    async with answering(nodes.a, "127.0.0.3", "[::1]") as addresses:
        for address in addresses:
            assert nodes.b.peer.address != address
            dialer = Dialer(nodes.b, address)
            assert (await dialer.link.describe()).node_id == nodes.a.node_id
            assert await dialer.stream() == address


@pytest.mark.req("R3")
async def test_the_other_node_is_looked_at_over_one_connection_until_it_breaks_or_is_the_wrong_one(
    nodes: SimpleNamespace,
) -> None:
    async with answering(nodes.a, "127.0.0.3") as (address,):
        relay = Relay(address)
        dialer = Dialer(nodes.b, relay.address)
        for _ in range(3):
            assert (await dialer.link.look()).node_id == nodes.a.node_id
        assert relay.accepted == 1
        dialer.keyring = Keyring(nodes.b)
        await dialer.link.look()
        assert relay.accepted == 2, "with the key that this node has now"
        await asyncio.to_thread(relay.reset)
        await dialer.link.look()
        assert relay.accepted > 2, "a peer that begins anew is dialled at once"
        await asyncio.to_thread(relay.cut)
        with pytest.raises(PeerUnreachable):
            await dialer.link.look()
        await asyncio.to_thread(relay.open)
        await dialer.link.look()
        await dialer.link.look_away()
        await asyncio.to_thread(relay.cut)


@pytest.mark.req("R10")
async def test_a_look_that_is_not_answered_in_time_marks_its_path(
    nodes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(*_: object) -> None:
        raise PeerUnreachable("cannot reach the other node", reason="no answer")

    async with answering(nodes.a, "127.0.0.3") as addresses:
        dialer = Dialer(nodes.b, *addresses)
        await dialer.link.look()
        ((_, good),) = dialer.link.shown()
        monkeypatch.setattr(dialing, "CONNECT_S", 0.0)
        monkeypatch.setattr(dialing, "_greet", silent)
        with pytest.raises(PeerUnreachable):
            await dialer.link.look()
        ((_, state),) = dialer.link.shown()
        assert state != good


@pytest.mark.req("R3", "R10")
async def test_a_stranger_at_one_of_the_addresses_is_refused_and_the_next_is_taken(nodes: SimpleNamespace) -> None:
    async with answering(nodes.stranger, "127.0.0.4") as (strange,), answering(nodes.a, "127.0.0.3") as (good,):
        dialer = Dialer(nodes.b, strange, good)
        assert await dialer.stream() == good
        assert [fields["path"] for fields in dialer.told(PATH_FAILED)] == [strange]
        await dialer.stream()
        assert len(dialer.told(PATH_FAILED)) == 1, "once, until it works again"
        alone = Dialer(nodes.b, strange)
        with pytest.raises(PeerUnreachable):
            await alone.stream()


@pytest.mark.req("R3", "R10")
async def test_a_node_that_has_a_certificate_of_the_pair_but_is_not_the_paired_one_is_refused(
    nodes: SimpleNamespace, tmp_path: Path
) -> None:
    async with answering(nodes.b, "127.0.0.4") as (own,), answering(nodes.a, "127.0.0.3") as (good,):
        dialer = Dialer(nodes.b, own, good)
        assert await dialer.stream() == good, "its own address is not the peer's"
        with pytest.raises(Refused):
            await Dialer(nodes.b, own).link.describe()
    # A node that took part once: the pair's authority signed its certificate, and it believes to be the peer still.
    (tmp_path / "c").mkdir()
    async with serving(nodes.a) as port:
        newer = await asyncio.to_thread(join_as, port.token(), str(tmp_path / "c"))
    assert newer.identity.peer is not None
    from dataclasses import replace

    former = replace(nodes.b, peer=replace(newer.identity.peer, node_id=newer.identity.node_id))
    async with answering(former, "127.0.0.4") as (address,):
        with pytest.raises(Refused, match="paired with"):
            await Dialer(newer.identity, address).link.describe()


@pytest.mark.req("R10", "R22")
async def test_a_path_that_says_nothing_is_given_up_in_time_for_the_next(
    nodes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dialing, "CONNECT_S", 1.0)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen(64)  # connects, and then nothing comes
        silent = f"127.0.0.1:{mute.getsockname()[1]}"
        async with answering(nodes.a, "127.0.0.3") as (good,):
            dialer = Dialer(nodes.b, silent, good)
            taken = ""
            async with asyncio.timeout(60):
                while not taken:  # on a slow machine the good one may be late as well
                    with contextlib.suppress(HaSyncError):
                        taken = await dialer.stream()
            assert taken == good


@pytest.mark.req("R10", "R22")
async def test_the_agents_paths_come_first_with_the_port_of_the_pairing_and_a_silent_one_is_left_at_once(
    nodes: SimpleNamespace,
) -> None:
    port = free_port()
    a = Keyring(nodes.a)
    server = grpc.aio.server()
    gate = Gate(a, Refusals(lambda *_: None))
    replication = ReplicationServicer(FakeNode(), gate, node_id=nodes.a.node_id, **BESIDE)  # type: ignore[arg-type]
    server.add_generic_rpc_handlers((replication.handler(),))
    server.add_secure_port(f"0.0.0.0:{port}", a.server_credentials())
    await server.start()
    try:
        dialer = Dialer(nodes.b, f"127.0.0.3:{port}")
        dialer.link.direct(paths(cable=Heard.HEARD, lan=Heard.HEARD))
        assert [path.address for path, _ in dialer.link.shown()] == [
            f"127.0.0.5:{port}",
            f"127.0.0.6:{port}",
            f"127.0.0.3:{port}",
        ]
        async with dialer.link.dial(DatasetName("cdr"))() as call:
            await call.write(subscribe())
            await call.read()
            assert call.address == f"127.0.0.5:{port}"
            leaving = asyncio.create_task(call.time_to_leave(lambda: False))
            dialer.link.direct(paths(lan=Heard.HEARD, cable=Heard.SILENT))
            async with asyncio.timeout(20):
                assert "no heartbeats" in await leaving
        assert await dialer.stream() == f"127.0.0.6:{port}"
        (moved,) = dialer.told(MOVED)
        assert (moved["before"], moved["after"]) == (f"cable (127.0.0.5:{port})", f"lan (127.0.0.6:{port})")
        assert dialer.link.path_name("127.0.0.6:41000") == "lan"
        dialer.link.agent_lost()
        assert [state for _, state in dialer.link.shown()] == ["unknown"] * 3
    finally:
        await server.stop(0)


def paths(**heard: Heard) -> tuple[AgentPath, ...]:
    hosts = {"cable": "127.0.0.5", "lan": "127.0.0.6"}
    return tuple(AgentPath(name=name, host=hosts[name], heard=each) for name, each in heard.items())


# ---- two engines without agents


@pytest.fixture
def relayed(tmp_path: Path) -> Iterator[tuple[LocalPair, Relay]]:
    """The Standby reaches the Active through a relay, or else at its IPv6 address."""
    relays: list[Relay] = []

    def toml(place: Place) -> str:
        text = small_toml(place)
        if place.name == "a":
            port = place.listen.rpartition(":")[2]
            return text.replace(f'listen = "{place.listen}"', f'listen = ["{place.listen}", "[::1]:{port}"]')
        relays.append(Relay(place.peer))
        port = place.peer.rpartition(":")[2]
        return text.replace(f'peer = "{place.peer}"', f'peer = ["{relays[0].address}", "[::1]:{port}"]')

    with LocalPair(str(tmp_path), toml) as made:
        furnish(made.a.place.root)
        made.start()
        yield made, relays[0]
    relays[0].cut()


@pytest.mark.req("R10", "R22", "R30")
def test_without_agents_the_addresses_of_sync_toml_are_tried_in_order(relayed: tuple[LocalPair, Relay]) -> None:
    pair, relay = relayed
    rows = f"{pair.a.place.root}/config.db"
    write_rows(rows, "INSERT INTO extension (number, name) VALUES ('1', 'x')")
    assert pair.a.wait_replicated() == ()
    assert {one.stream_address for one in pair.b.status().datasets} == {relay.address}
    incarnations = {one.name: one.position.incarnation for one in pair.b.status().datasets}
    relay.cut()
    write_rows(rows, "INSERT INTO extension (number, name) VALUES ('2', 'x')")
    assert pair.a.wait_replicated() == ()
    second = next(path.address for path in pair.b.status().peer.paths if path.address.startswith("[::1]"))
    until(lambda: {one.stream_address for one in pair.b.status().datasets} == {second}, "streams on IPv6")
    copied = read_rows(f"{pair.b.place.root}/config.db", "SELECT number FROM extension ORDER BY number")
    assert copied == [("1",), ("2",)]
    assert {one.name: one.position.incarnation for one in pair.b.status().datasets} == incarnations
    assert [(path.address, path.used) for path in pair.b.status().peer.paths] == [
        (relay.address, False),
        (second, True),
    ]
    assert all(one.stream_address.startswith("[::1]:") for one in pair.a.status().datasets)
    assert MOVED in pair.b.command("logs", "events").stdout


@pytest.mark.req("R7")
async def test_a_stream_is_held_while_the_agent_says_that_the_data_layouts_are_apart(nodes: SimpleNamespace) -> None:
    async with answering(nodes.a, "127.0.0.3") as addresses:
        dialer = Dialer(nodes.b, *addresses)
        async with dialer.link.dial(DatasetName("cdr"))() as call:
            await call.write(subscribe())
            assert await call.read() == ANSWER
            leaving = asyncio.create_task(call.time_to_leave(lambda: True))
            dialer.link.hold("layouts")
            async with asyncio.timeout(20):
                assert await leaving == "held: layouts"
        with pytest.raises(HaSyncError, match="held: layouts"):
            await dialer.stream()
        assert (await dialer.link.describe()).node_id == nodes.a.node_id  # what is no data goes on
        dialer.link.hold("")
        assert await dialer.stream() == addresses[0]
