from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ha_agent.heartbeat.beat import (
    PATHS_MAX,
    PAYLOAD_MAX,
    Boot,
    Message,
    NotUnderstood,
    PathId,
    Reader,
    Writer,
    read,
    write,
)
from ha_agent.heartbeat.seal import DATAGRAM_MAX, Gate, Heard, Rejected, Rejection, seal
from ha_proto.agent.v1 import beat_pb2 as pb
from tests.support.beats import (
    BEAT,
    CLUSTER,
    LAN,
    MAC_A,
    PAIR_A,
    PAIR_B,
    Told,
    beats,
    envelope,
    envelopes,
    largest,
    tolds,
)

OWN = Boot(3)


def gate() -> Gate:
    return Gate(PAIR_B, own_boot=OWN)


@given(envelope=envelopes, beat=beats, told=tolds)
def test_every_beat_arrives_as_it_was_said(envelope, beat, told) -> None:
    message = Message(cluster_id=CLUSTER.bytes, mac=MAC_A, envelope=envelope, beat=beat, told=told)
    assert read(write(message)) == message


@given(st.lists(st.tuples(envelopes, beats, tolds), min_size=1, max_size=3), st.lists(st.integers(0, 2), max_size=8))
def test_beats_in_any_order_arrive_on_each_path_as_they_were_said(said, order) -> None:
    """Whatever the last one was: what is said again is kept on both sides."""
    writer, reader = Writer(CLUSTER.bytes, MAC_A), Reader()
    paths = tuple(PathId(number) for number in range(PATHS_MAX))
    for chosen in order:
        envelope, beat, told = said[chosen % len(said)]
        for path, payload in zip(paths, writer.write(envelope, beat, told, paths), strict=True):
            assert len(payload) <= PAYLOAD_MAX
            assert reader.read(payload) == Message(
                cluster_id=CLUSTER.bytes, mac=MAC_A, envelope=replace(envelope, path=path), beat=beat, told=told
            )


@pytest.mark.req("R3")
@given(envelope=envelopes, beat=beats, told=tolds)
@example(*largest())
def test_a_datagram_stays_below_512_bytes_and_is_admitted(envelope, beat, told) -> None:
    datagram = seal(PAIR_A, envelope, beat, told)
    assert len(datagram) <= DATAGRAM_MAX
    heard = gate().admit(datagram, path=envelope.path, source="10.0.0.1", now=5.0)
    assert isinstance(heard, Heard)
    assert heard.envelope.sequence == envelope.sequence


@pytest.mark.req("R3")
@given(st.binary(max_size=2000))
@example(b"")
@example(b"HB\x01" + bytes(16))
@example(b"HB\x01" + bytes(17))
def test_no_bytes_of_a_stranger_are_admitted(datagram: bytes) -> None:
    answer = gate().admit(datagram, path=LAN, source="10.0.0.9", now=1.0)
    assert isinstance(answer, Rejected)
    assert answer.kind in {Rejection.TOO_LONG, Rejection.MALFORMED, Rejection.STRANGER}


@pytest.mark.req("R3")
@given(data=st.data())
def test_a_beat_with_any_bit_changed_is_a_strangers(data) -> None:
    datagram = bytearray(seal(PAIR_A, envelope(1), BEAT, Told()))
    at = data.draw(st.integers(0, len(datagram) - 1))
    datagram[at] ^= 1 << data.draw(st.integers(0, 7))
    answer = gate().admit(bytes(datagram), path=LAN, source="", now=1.0)
    assert isinstance(answer, Rejected)
    assert answer.kind in {Rejection.MALFORMED, Rejection.STRANGER}


@given(st.binary(max_size=600))
def test_any_payload_is_read_or_not_understood(payload: bytes) -> None:
    try:
        message = read(payload)
    except NotUnderstood:
        return
    assert len(write(message)) <= PAYLOAD_MAX


@given(data=st.data())
def test_a_beat_bent_within_the_protobuf_is_read_or_not_understood(data) -> None:
    """What an authentic peer with other firmware may send: right types, any values."""
    wire = pb.Beat.FromString(
        write(Message(cluster_id=CLUSTER.bytes, mac=MAC_A, envelope=envelope(1), beat=BEAT, told=Told()))
    )
    target = data.draw(st.sampled_from([wire, wire.role, wire.role.identity, wire.told, wire.role.offer]))
    field = data.draw(st.sampled_from(list(target.DESCRIPTOR.fields)))
    if field.is_repeated or field.message_type is not None:
        target.ClearField(field.name)
    else:
        kind = type(getattr(target, field.name))
        values = {
            int: st.integers(0, (1 << 31) - 1) | (st.integers(0, (1 << 64) - 1) if field.type == 4 else st.nothing()),
            bool: st.booleans(),
            str: st.text(max_size=60),
            bytes: st.binary(max_size=60),
        }
        setattr(target, field.name, data.draw(values[kind]))
    try:
        message = read(wire.SerializeToString())
    except NotUnderstood:
        return
    assert read(write(message)) == message


@pytest.mark.req("R3")
@given(st.lists(st.tuples(st.integers(8, 10), st.integers(1, 6), st.integers(0, 1)), max_size=40))
def test_whatever_the_order_only_newer_beats_of_a_path_are_admitted(arrivals) -> None:
    """Order, duplicates, replays of earlier boots: none of these echoes me, so nothing may go backwards."""
    receiver = gate()
    newest: dict[int, tuple[int, int]] = {}
    highest_boot = 0
    for boot, sequence, path in arrivals:
        datagram = seal(PAIR_A, envelope(sequence, boot=boot, path=PathId(path)), BEAT, Told())
        answer = receiver.admit(datagram, path=PathId(path), source="", now=1.0)
        newer = boot >= highest_boot and (boot, sequence) > newest.get(path, (0, 0))
        assert isinstance(answer, Heard) == newer
        if newer:
            newest[path] = (boot, sequence)
            highest_boot = boot
