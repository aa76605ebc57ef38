from __future__ import annotations

import uuid
from dataclasses import replace

import pytest

from ha_agent.heartbeat.beat import Boot, Echo, Envelope, NotUnderstood, PathId, Sequence
from ha_agent.heartbeat.seal import Gate, Heard, HeartbeatKey, Rejected, Rejection, key_of, mac_of, seal
from tests.support.beats import BEAT, CABLE, LAN, PAIR_A, PAIR_B, Told, envelope

OWN = Boot(3)


@pytest.fixture
def gate() -> Gate:
    return Gate(PAIR_B, own_boot=OWN)


def admit(gate: Gate, datagram: bytes, *, path: PathId = LAN, now: float = 1.0) -> Rejection | None:
    answer = gate.admit(datagram, path=path, source="10.0.0.1", now=now)
    return answer.kind if isinstance(answer, Rejected) else None


def said(sequence: int, pair=PAIR_A, **how) -> bytes:
    return seal(pair, envelope(sequence, **how), BEAT, Told())


@pytest.mark.req("R3")
def test_a_beat_of_another_key_is_a_strangers(gate: Gate) -> None:
    assert admit(gate, said(1, replace(PAIR_A, key=HeartbeatKey(bytes(32))))) is Rejection.STRANGER


def test_a_beat_of_another_cluster_is_refused(gate: Gate) -> None:
    assert admit(gate, said(1, replace(PAIR_A, cluster_id=uuid.uuid4()))) is Rejection.OTHER_CLUSTER


@pytest.mark.req("R1.6")
def test_a_peer_with_another_mac_is_refused_and_named(gate: Gate) -> None:
    other = mac_of("00-0B-82-AA-BB-77")
    answer = gate.admit(said(1, replace(PAIR_A, own_mac=other)), path=LAN, source="10.0.0.1", now=1.0)
    assert isinstance(answer, Rejected)
    assert (answer.kind, answer.mac) == (Rejection.WRONG_MAC, other)


def test_my_own_beat_that_comes_back_is_no_life(gate: Gate) -> None:
    assert admit(gate, said(1, PAIR_B)) is Rejection.OWN


def test_a_beat_on_the_wrong_path_is_refused(gate: Gate) -> None:
    assert admit(gate, said(1, path=CABLE), path=LAN) is Rejection.WRONG_PATH


@pytest.mark.req("R3")
def test_a_replayed_beat_is_refused_on_its_path_only(gate: Gate) -> None:
    assert admit(gate, said(5)) is None
    assert admit(gate, said(5)) is Rejection.OLD_SEQUENCE
    assert admit(gate, said(4)) is Rejection.OLD_SEQUENCE
    assert admit(gate, said(5, path=CABLE), path=CABLE) is None


@pytest.mark.req("R3")
def test_a_beat_of_an_earlier_boot_is_refused(gate: Gate) -> None:
    assert admit(gate, said(1, boot=9)) is None
    assert admit(gate, said(99, boot=8)) is Rejection.OLD_BOOT
    assert gate.peer_boot == 9


def test_a_peer_that_lost_its_boot_number_is_heard_again_once_it_answers_me(gate: Gate) -> None:
    assert admit(gate, said(1, boot=9, echo_boot=OWN, echoed=50)) is None
    assert admit(gate, said(1, boot=1)) is Rejection.OLD_BOOT
    assert admit(gate, said(2, boot=1, echo_boot=OWN, echoed=51)) is None
    assert gate.peer_boot == 1
    assert admit(gate, said(3, boot=1)) is None


@pytest.mark.req("R3")
def test_an_earlier_boots_beat_that_echoed_me_is_still_old(gate: Gate) -> None:
    old = said(7, boot=8, echo_boot=OWN, echoed=50)
    assert admit(gate, old) is None
    assert admit(gate, said(1, boot=9)) is None
    assert admit(gate, old) is Rejection.OLD_BOOT


def test_an_echo_of_my_former_boot_proves_nothing(gate: Gate) -> None:
    assert admit(gate, said(1, boot=9)) is None
    assert admit(gate, said(1, boot=8, echo_boot=OWN - 1, echoed=50)) is Rejection.OLD_BOOT


def test_rejections_are_counted_and_new_again_after_quiet(gate: Gate) -> None:
    def first(now: float) -> bool:
        answer = gate.admit(b"noise", path=LAN, source="", now=now)
        assert isinstance(answer, Rejected)
        return answer.first

    assert [first(now) for now in (0.0, 1.0, 50.0, 109.0, 169.5)] == [True, False, False, False, True]
    assert gate.rejected[Rejection.MALFORMED] == 5
    assert gate.standing(200.0) == {Rejection.MALFORMED}
    assert gate.standing(230.0) == frozenset()


def test_a_beat_carries_what_was_told(gate: Gate) -> None:
    told = Told(firmware="2.7\n" + "x" * 99, lease_left_s=4.25, faults=5, gateway_seen=True)
    answer = gate.admit(seal(PAIR_A, envelope(1), BEAT, told), path=LAN, source="", now=8.0)
    assert isinstance(answer, Heard)
    assert answer.at == 8.0
    assert answer.beat == BEAT
    assert answer.told.firmware == "2.7?" + "x" * 16
    assert (answer.told.lease_left_s, answer.told.faults) == (4.25, 5)


def test_two_nodes_that_start_together_come_to_echo_each_other() -> None:
    """Nobody has anything to echo at first: what is heard is echoed, whether or not it echoes me."""
    gates = {9: Gate(PAIR_A, own_boot=Boot(9)), 3: Gate(PAIR_B, own_boot=OWN)}
    for sequence in (1, 2, 3):
        for sender, receiver, pair in ((9, 3, PAIR_A), (3, 9, PAIR_B)):
            said_now = Envelope(
                boot=Boot(sender),
                sequence=Sequence(sequence),
                path=LAN,
                echo_boot=gates[sender].peer_boot,
                echoes=gates[sender].echoes(sequence + 0.5),
            )
            assert admit(gates[receiver], seal(pair, said_now, BEAT, Told()), now=float(sequence)) is None
    assert (said_now.echo_boot, said_now.echoes) == (9, (Echo(path=LAN, sequence=Sequence(3), age_s=0.5),))


@pytest.mark.parametrize("content", [b"", bytes(31), bytes(33)])
def test_a_key_of_another_length_is_none(content: bytes) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        key_of(content)


def test_the_key_stands_in_no_message() -> None:
    assert "key" not in repr(PAIR_A)


def test_not_understood_is_no_error_of_values() -> None:
    assert not issubclass(NotUnderstood, ValueError)
