"""Which path a stream takes, and when it takes another: rules, and properties over any history of a pair's wires."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_sync.core.paths import FAILED_S, STEADY_S, Heard, Paths, PeerPath, Why, at_port, host_of

CABLE = PeerPath(name="cable", address="169.254.9.1:9527", heard=Heard.HEARD)
LAN = PeerPath(name="lan", address="10.77.0.1:9527", heard=Heard.HEARD)
PAIRED = PeerPath(address="pbx-a:9527")
SILENT_CABLE = PeerPath(name="cable", address=CABLE.address, heard=Heard.SILENT)
SILENT_LAN = PeerPath(name="lan", address=LAN.address, heard=Heard.SILENT)


def paths(*known: PeerPath, now: float = 0.0) -> Paths:
    made = Paths()
    made.know(known, now=now)
    return made


@pytest.mark.req("R10")
def test_the_order_is_that_of_the_agent_and_what_is_silent_or_failed_goes_last() -> None:
    assert paths(CABLE, LAN, PAIRED).order(now=0) == (CABLE, LAN, PAIRED)
    assert paths(SILENT_CABLE, LAN, PAIRED).order(now=0) == (LAN, PAIRED, SILENT_CABLE)
    failed = paths(CABLE, LAN)
    failed.failed(CABLE.address, now=5)
    assert failed.order(now=5 + FAILED_S / 2) == (LAN, CABLE)
    assert failed.order(now=5 + FAILED_S) == (CABLE, LAN)


def test_of_an_address_that_is_named_twice_the_first_counts() -> None:
    again = PeerPath(address=CABLE.address)
    assert paths(CABLE, LAN, again).known == (CABLE, LAN)


@pytest.mark.req("R10", "R22")
def test_a_stream_leaves_a_silent_path_at_once_unless_all_are_silent() -> None:
    known = paths(CABLE, LAN)
    assert known.must_leave(CABLE.address, now=0) is None
    known.know((LAN, SILENT_CABLE), now=1)
    assert known.must_leave(CABLE.address, now=1) is Why.SILENT
    assert known.must_leave(LAN.address, now=1) is None
    known.know((SILENT_LAN, SILENT_CABLE), now=2)
    assert known.must_leave(CABLE.address, now=2) is None, "the peer is dead, or both are: no other path is better"


def test_a_stream_leaves_a_path_that_is_not_named_any_more() -> None:
    known = paths(LAN)
    assert known.must_leave(CABLE.address, now=0) is Why.GONE


@pytest.mark.req("R10", "R22")
def test_a_stream_that_gets_through_on_a_silent_path_is_not_torn_away_again_and_again() -> None:
    known = paths(SILENT_CABLE, PAIRED)  # the other agent is dead, and the name of the pairing resolves no more
    assert known.must_leave(CABLE.address, now=0) is Why.SILENT
    known.failed(PAIRED.address, now=1)
    assert known.must_leave(CABLE.address, now=1 + STEADY_S / 2) is None
    assert known.must_leave(CABLE.address, now=1 + STEADY_S) is Why.SILENT, "now and then it is tried"


@pytest.mark.req("R10", "R22")
def test_the_better_path_is_taken_again_when_it_was_good_for_long_enough_and_answers() -> None:
    known = paths(CABLE, LAN)
    known.taken(CABLE, now=0)
    known.know((LAN, SILENT_CABLE), now=1)
    moved = known.taken(LAN, now=1)
    assert moved is not None
    assert (moved.before, moved.after, moved.why) == (CABLE, LAN, Why.SILENT)
    known.know((CABLE, LAN), now=10)
    known.answered(CABLE.address)
    assert known.better(LAN.address, now=10 + STEADY_S / 2) is None
    assert known.order(now=10 + STEADY_S / 2) == (LAN, CABLE), "a new stream goes where the others go"
    assert known.better(LAN.address, now=10 + STEADY_S) == CABLE
    assert known.order(now=10 + STEADY_S) == (CABLE, LAN)
    moved = known.taken(CABLE, now=10 + STEADY_S)
    assert moved is not None
    assert moved.why is Why.BETTER
    assert known.better(CABLE.address, now=1000) is None


@pytest.mark.req("R10")
def test_beats_alone_do_not_bring_a_stream_back_the_other_node_must_answer_there() -> None:
    known = paths(CABLE, LAN)
    known.taken(LAN, now=0)
    assert known.better(LAN.address, now=1000) is None
    known.answered(CABLE.address)
    assert known.better(LAN.address, now=1000) == CABLE, "never bad: nothing to wait for"
    known.failed(CABLE.address, now=1000)
    assert known.better(LAN.address, now=1000 + STEADY_S) is None
    known.answered(CABLE.address)
    assert known.better(LAN.address, now=1000 + STEADY_S) == CABLE


@pytest.mark.req("R10")
def test_a_loose_contact_never_brings_the_stream_back() -> None:
    known = paths(CABLE, LAN)
    known.taken(LAN, now=0)
    for start in range(0, 1000, int(STEADY_S) - 1):
        known.know((LAN, SILENT_CABLE), now=start)
        known.know((CABLE, LAN), now=start + 1)
        known.answered(CABLE.address)
        assert known.better(LAN.address, now=start + STEADY_S - 1) is None


@pytest.mark.req("R30")
def test_what_a_person_is_told_of_a_path() -> None:
    known = paths(CABLE, SILENT_LAN, PAIRED)
    assert [known.state_of(path, now=0) for path in known.known] == ["heard", "silent", "unknown"]
    known.failed(CABLE.address, now=0)
    assert known.state_of(CABLE, now=1) == "failed"
    known.answered(CABLE.address)
    known.know((CABLE, LAN, PAIRED), now=1)
    assert [known.state_of(path, now=1) for path in known.known] == ["heard", "heard", "unknown"]
    assert str(CABLE) == "cable (169.254.9.1:9527)"
    assert str(PAIRED) == "pbx-a:9527"


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("10.77.0.1:9527", "10.77.0.1"),
        ("[fd77::1]:40000", "fd77::1"),
        ("[::ffff:10.77.0.1]:40000", "10.77.0.1"),
        ("[fe80::1%3]:40000", "fe80::1"),
        ("pbx-a:9527", "pbx-a"),
    ],
)
def test_the_host_of_an_address(address: str, host: str) -> None:
    assert host_of(address) == host
    assert host_of(at_port(host, "1")) == host


def test_the_path_of_a_caller_is_known_by_its_host() -> None:
    known = paths(CABLE, LAN, PAIRED)
    assert known.name_of("169.254.9.1") == "cable"
    assert known.name_of("192.0.2.9") == ""
    linked = paths(PeerPath(name="cable6", address="[fe80::1%eth1]:9527"))
    assert linked.name_of(host_of("[fe80::1%3]:40312")) == "cable6", "the kernel tells the interface by its number"


# ---- any history

ADDRESSES = ("a:1", "b:1", "c:1")
HEARD = st.sampled_from(Heard)
ORDERS = st.permutations(ADDRESSES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    what: str
    address: str = ""
    known: tuple[PeerPath, ...] = ()
    after_s: float = 0.0


def known_paths(order: list[str], heard: dict[str, Heard]) -> tuple[PeerPath, ...]:
    return tuple(PeerPath(address=address, heard=heard[address]) for address in order)


KNOWN = st.builds(known_paths, ORDERS, st.fixed_dictionaries(dict.fromkeys(ADDRESSES, HEARD)))
AFTER = st.floats(0, 2 * STEADY_S)
HAPPENED = st.one_of(
    st.builds(Happened, what=st.just("know"), known=KNOWN, after_s=AFTER),
    st.builds(
        Happened,
        what=st.sampled_from(["answered", "failed", "taken"]),
        address=st.sampled_from(ADDRESSES),
        after_s=AFTER,
    ),
)


@pytest.mark.req("R10")
@given(KNOWN, st.lists(HAPPENED, max_size=30))
def test_whatever_happened_the_order_is_whole_and_nobody_leaves_for_a_silent_path(
    first: tuple[PeerPath, ...], history: list[Happened]
) -> None:
    known, now = paths(*first), 0.0
    bad_at: dict[str, float] = {path.address: 0.0 for path in first if path.heard is Heard.SILENT}
    for one in history:
        now += one.after_s
        path = next((each for each in known.known if each.address == one.address), None)
        match one.what:
            case "know":
                before = {each.address for each in known.known if each.heard is Heard.SILENT}
                known.know(one.known, now=now)
                silent = {each.address for each in one.known if each.heard is Heard.SILENT}
                bad_at |= dict.fromkeys(before | silent, now)
            case "answered":
                known.answered(one.address)
            case "failed":
                known.failed(one.address, now=now)
                bad_at[one.address] = now
            case "taken":
                assert path is not None
                known.taken(path, now=now)
        order = known.order(now=now)
        heard = [each.heard is Heard.SILENT for each in order]
        assert sorted(order, key=str) == sorted(known.known, key=str)
        assert heard == sorted(heard), "the silent ones last"
        for each in known.known:
            better = known.better(each.address, now=now)
            if better is not None:
                assert better.heard is not Heard.SILENT
                assert now - bad_at.get(better.address, float("-inf")) >= STEADY_S
                assert known.known.index(better) < known.known.index(each)
                assert known.better(better.address, now=now) is None, "one move is enough"
            if known.must_leave(each.address, now=now):
                assert order[0].address != each.address, "it would come back to what it left"
