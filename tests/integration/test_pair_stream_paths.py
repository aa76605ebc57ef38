"""The stream of a real pair moves to another path when the one it uses is lost, and back: no switch, nothing lost."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Self

import pytest

from ha_proto.sync.v1 import control_pb2
from tests.support import netns
from tests.support.netns_pair import AGENT, NetNode, NetPair, until
from tests.support.netns_watch import Holders
from tests.support.small_pair import read_rows

REASON = netns.unavailable()
pytestmark = [pytest.mark.root, pytest.mark.timeout(300), pytest.mark.skipif(REASON is not None, reason=REASON or "")]
MOVED = "the stream moved to another path"
DATASETS = 4


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetPair]:
    with NetPair(str(tmp_path_factory.mktemp("pair"))) as pair:
        pair.start()
        yield pair


@pytest.fixture
def pair(built: NetPair) -> NetPair:
    built.settle()
    until(lambda: ways(built.standby) == ["cable"] * DATASETS, "all streams on the cable", told(built), timeout_s=120)
    return built


def ways(node: NetNode) -> list[str]:
    """By which path the stream of each dataset goes."""
    return [one.stream_path for one in node.engine_status().datasets]


def told(pair: NetPair) -> Callable[[], str]:
    return lambda: "\n".join([pair.told(), *(str(node.engine_status().peer) for node in pair.nodes.values())])


def moves(node: NetNode) -> list[tuple[str, str, str]]:
    """Path before, path after, and why; oldest first."""
    request = control_pb2.ListEventsRequest(limit=100_000)
    found = [one.fields for one in node.engine().ListEvents(request, timeout=5) if one.what == MOVED]
    return [(one["before"].split()[0], one["after"].split()[0], one["reason"]) for one in found]


class Writer:
    """A PBX that adds an extension again and again, and remembers what was committed."""

    def __init__(self, path: str, first: int) -> None:
        self._path = path
        self._numbers = itertools.count(first)
        self._over = threading.Event()
        self.committed: list[str] = []
        self._thread = threading.Thread(target=self._write)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _write(self) -> None:
        with closing(sqlite3.connect(self._path, timeout=30)) as connection:
            while not self._over.wait(0.02):
                number = str(next(self._numbers))
                connection.execute("INSERT INTO extension (number, name) VALUES (?, 'x')", (number,))
                connection.commit()
                self.committed.append(number)


def copied(node: NetNode) -> set[str]:
    return {str(row[0]) for row in read_rows(f"{node.data}/config.db", "SELECT number FROM extension")}


def until_all_is_copied(pair: NetPair, writer: Writer) -> None:
    """What is committed by now, and a row after it."""
    enough = len(writer.committed) + 1
    until(lambda: len(writer.committed) >= enough, "another row", told(pair))
    wanted = set(writer.committed)
    until(lambda: wanted <= copied(pair.standby), "the newest rows on the Standby", told(pair))


@pytest.mark.req("R10", "R22")
def test_a_pulled_cable_moves_the_stream_to_the_lan_and_its_return_moves_it_back(pair: NetPair) -> None:
    active, standby = pair.roles
    before = len(moves(standby))
    incarnations = {one.name: one.position.incarnation for one in standby.engine_status().datasets}
    with Holders(pair.net, pair.addresses) as holders:
        with Writer(f"{active.data}/config.db", 10_000) as writer:
            until_all_is_copied(pair, writer)
            pair.net.cut_cable()
            until(lambda: ways(standby) == ["lan"] * DATASETS, "streams on the LAN", told(pair))
            until_all_is_copied(pair, writer)
        assert ways(active) == ["lan"] * DATASETS
        assert {path.name: (path.state, path.used) for path in standby.engine_status().peer.paths} == {
            "lan": ("heard", True),
            "cable": ("silent", False),
        }
        assert moves(standby)[before:] == [("cable", "lan", "no heartbeats on the path")]
        # Now it is quiet.
        pair.net.restore_cable()
        until(lambda: ways(standby) == ["cable"] * DATASETS, "streams on the cable", told(pair), timeout_s=120)
        with Writer(f"{active.data}/config.db", 15_000) as writer:
            until_all_is_copied(pair, writer)
    assert moves(standby)[before + 1 :] == [("lan", "cable", "a better path is back")]
    assert [set(who) for _, who in holders.history] == [{active.name}]
    assert {one.name: one.position.incarnation for one in standby.engine_status().datasets} == incarnations
    assert pair.standby is standby


@pytest.mark.req("R10", "R22")
def test_a_standby_without_lan_keeps_its_stream_on_the_cable(pair: NetPair) -> None:
    active, standby = pair.roles
    before = moves(standby)
    with Writer(f"{active.data}/config.db", 20_000) as writer:
        pair.net.cut(standby.name)
        until(lambda: "heartbeat path lost: lan" in standby.status().alarms, "the loss", pair.told)
        until_all_is_copied(pair, writer)
        assert ways(standby) == ["cable"] * DATASETS
    pair.net.restore(standby.name)
    pair.until_ready()
    assert moves(standby) == before
    assert pair.standby is standby


@pytest.mark.req("R10", "R22")
def test_a_standby_that_loses_the_lan_while_the_cable_is_out_of_favour_moves_to_it_at_once(pair: NetPair) -> None:
    active, standby = pair.roles
    pair.net.cut_cable()
    until(lambda: ways(standby) == ["lan"] * DATASETS, "streams on the LAN", told(pair))
    pair.net.restore_cable()
    until(
        lambda: {"both"} == {path.state for path in standby.status().paths},
        "the cable heard again",
        pair.told,
    )
    with Writer(f"{active.data}/config.db", 30_000) as writer:
        pair.net.cut(standby.name)
        until(lambda: ways(standby) == ["cable"] * DATASETS, "streams on the cable", told(pair))
        until_all_is_copied(pair, writer)
    assert moves(standby)[-1] == ("lan", "cable", "no heartbeats on the path")


@pytest.mark.req("R10", "R22")
def test_a_cable_that_carries_nothing_in_one_direction_is_left_too(pair: NetPair) -> None:
    active, standby = pair.roles
    with Writer(f"{active.data}/config.db", 40_000) as writer:
        pair.net.lose_outgoing(standby.name, 100, "cable0")  # the Standby hears, and is not heard
        until(lambda: ways(standby) == ["lan"] * DATASETS, "streams on the LAN", told(pair))
        until_all_is_copied(pair, writer)
    assert pair.standby is standby


@pytest.mark.req("R10", "R22")
def test_without_its_agent_the_standby_notices_a_dead_cable_by_itself(pair: NetPair) -> None:
    active, standby = pair.roles
    standby.signal(signal.SIGKILL, AGENT)
    with Writer(f"{active.data}/config.db", 50_000) as writer:
        pair.net.cut_cable()  # no reset comes: only pings that nobody answers
        until(lambda: ways(standby) == ["lan"] * DATASETS, "streams on the LAN", told(pair))
        until_all_is_copied(pair, writer)
    assert moves(standby)[-1][:2] == ("cable", "lan")
    assert active.status().role == "active"
