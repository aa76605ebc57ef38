"""In which order an engine is told of the ways to the peer."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_agent.agent.peer_paths import DEAD, preferred
from ha_agent.heartbeat.detector import Way
from ha_agent.settings.values import PathSettings

PEER_IP = ip_address("10.77.0.2")
LAN = PathSettings(name="lan", local=None, peer=PEER_IP)
LAN6 = PathSettings(name="lan6", local=ip_address("fd77::1"), peer=ip_address("fd77::2"))
CABLE = PathSettings(name="cable", local=ip_address("169.254.9.1"), peer=ip_address("169.254.9.2"))
OWN = frozenset({ip_address("10.77.0.1"), ip_address("fd77::1")})
PATHS = preferred((LAN, LAN6, CABLE), peer_ip=PEER_IP, on_interface=OWN)


def names(**ways: Way) -> list[str]:
    return [path.name for path in PATHS.as_directed(ways.items())]


@pytest.mark.req("R10")
def test_a_cable_of_its_own_comes_before_the_lan_and_what_is_silent_comes_last() -> None:
    both = dict.fromkeys(("lan", "lan6", "cable"), Way.BOTH)
    assert names(**both) == ["cable", "lan", "lan6"]
    assert names(**both | {"cable": Way.LOST}) == ["lan", "lan6", "cable"]
    assert names(**both | {"cable": Way.HALF}) == ["lan", "lan6", "cable"], "a connection needs both directions"
    assert names(**dict.fromkeys(both, Way.LOST)) == ["cable", "lan", "lan6"]
    assert names() == ["cable", "lan", "lan6"]


def test_the_engine_is_told_address_and_state() -> None:
    told = PATHS.as_directed([("cable", Way.HALF), ("lan6", Way.BOTH)])
    assert [(path.name, path.address, path.state) for path in told] == [
        ("lan", "10.77.0.2", "unknown"),
        ("lan6", "fd77::2", "both"),
        ("cable", "169.254.9.2", "half"),
    ]


@given(st.dictionaries(st.sampled_from(["lan", "lan6", "cable"]), st.sampled_from(Way)))
def test_every_path_is_told_once_and_none_before_one_that_lives(ways: dict[str, Way]) -> None:
    told = PATHS.as_directed(ways.items())
    assert sorted(path.name for path in told) == ["cable", "lan", "lan6"]
    dead = [Way(path.state) in DEAD for path in told]
    assert dead == sorted(dead)
