"""Frames on the wire: they come back as they went, and rubbish is refused before it costs anything."""

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.core.frame import FRAME_PAYLOAD_MAX, Body, Frame
from ha_sync.core.position import Answer, Epoch, Incarnation, Position, Sequence
from ha_sync.errors import ProtocolFault
from ha_sync.stream.wire import AnswerMessage, EncodedFrame, decode, encode_answer, encode_frame

positions = st.builds(
    Position,
    epoch=st.integers(0, 2**63).map(Epoch),
    incarnation=st.binary(min_size=16, max_size=16).map(Incarnation),
    sequence=st.integers(0, 2**63).map(Sequence),
)
payloads = st.one_of(st.binary(max_size=2000), st.integers(0, 100_000).map(lambda size: b"ab" * size))
frames = st.builds(
    Frame,
    position=positions,
    kind=st.sampled_from([Body.TREE, Body.ROWS]),
    body=st.binary(max_size=500),
    payload=payloads,
    group_end=st.booleans(),
    consistent=st.booleans(),
)


def received(data: bytes) -> EncodedFrame:
    message = decode(data)
    assert isinstance(message, EncodedFrame)
    return message


@given(frames, st.booleans())
def test_a_frame_comes_back_as_it_went(frame, compress):
    back = received(encode_frame(frame, compress=compress)).frame()
    assert (back.position, back.kind, back.body, back.group_end, back.consistent) == (
        frame.position, frame.kind, frame.body, frame.group_end, frame.consistent)  # fmt: skip
    assert bytes(back.payload) == bytes(frame.payload)


@given(frames)
def test_the_bytes_are_what_protobuf_itself_reads(frame):
    message = pb.Frame.FromString(encode_frame(frame, compress=False))
    assert message.payload == bytes(frame.payload)
    assert message.header.raw_size == len(frame.payload)


@given(st.sampled_from(list(Answer)), st.integers(0, 2**63), st.sampled_from(["rows", "pages", "tree"]))
def test_an_answer_comes_back_as_it_went(answer, epoch, method):
    message = AnswerMessage(answer=answer, epoch=Epoch(epoch), method=method)
    assert decode(encode_answer(message)) == message


@given(st.binary(max_size=300))
def test_rubbish_is_refused_and_nothing_else_happens(data):
    try:
        message = decode(data)
    except ProtocolFault:
        return
    if isinstance(message, EncodedFrame):
        try:
            message.frame()
        except ProtocolFault:
            return


@given(frames, st.integers(0, 10_000))
def test_a_frame_that_was_cut_off_is_refused_or_holds_no_more_than_it_says(frame, cut):
    data = encode_frame(frame, compress=False)
    try:
        message = decode(data[: cut % len(data)])
    except ProtocolFault:
        return
    assert isinstance(message, EncodedFrame)
    assert len(message.payload) == message.raw_size == 0


def bomb(raw_size: int, claimed: int) -> bytes:
    header = pb.FrameHeader(tree=b"", codec=pb.CODEC_ZSTD, raw_size=claimed)
    return pb.Frame(header=header, payload=zstandard.compress(bytes(raw_size))).SerializeToString()


@pytest.mark.req("R22")
def test_a_frame_that_claims_more_than_the_limit_is_refused_before_anything_is_allocated():
    with pytest.raises(ProtocolFault, match="claims"):
        decode(bomb(10, FRAME_PAYLOAD_MAX + 1))


def test_a_zstd_bomb_stops_at_the_size_that_it_claims():
    message = received(bomb(1 << 30, 1000))
    with pytest.raises(ProtocolFault, match="1000 bytes it claims"):
        message.frame()
