"""Frames as bytes: the only place that knows how a core Frame looks on the wire.

A frame is the protobuf message ``Frame``, but its two fields are written and read by hand: a payload of half a
mebibyte would otherwise be copied twice through the parser (measured in DESIGN 6: half the throughput). The header is
an ordinary message. Every size is checked against its limit before anything is allocated for it. No I/O.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import zstandard

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.core.frame import FRAME_HEADER_MAX, FRAME_PAYLOAD_MAX, Body, Frame
from ha_sync.core.position import Answer, Epoch, Incarnation, Position, Sequence
from ha_sync.errors import ProtocolFault

PROTOCOL = 1
MESSAGE_MAX = FRAME_HEADER_MAX + FRAME_PAYLOAD_MAX + 64
COMPRESS_MIN = 256
"""A smaller payload is not worth a compressor."""
WORTH_IT = 0.9
"""Compressed to more than this share: sent as it is."""
_SAMPLE = 16 * 1024

_TAG_HEADER = b"\x0a"  # field 1, length-delimited
_TAG_PAYLOAD = b"\x12"  # field 2, length-delimited
_ANSWERS = {Answer.RESUME: pb.AnswerFrame.ANSWER_RESUME, Answer.COMPARE: pb.AnswerFrame.ANSWER_COMPARE}
_local = threading.local()


def position_to_wire(position: Position) -> pb.Position:
    """As a message."""
    return pb.Position(epoch=position.epoch, incarnation=position.incarnation, sequence=position.sequence)


def position_from_wire(message: pb.Position) -> Position:
    """From a message; raises ProtocolFault where it is none."""
    if len(message.incarnation) not in {0, 16}:
        raise ProtocolFault("refused a position", reason=f"incarnation of {len(message.incarnation)} bytes, not 16")
    return Position(
        epoch=Epoch(message.epoch),
        incarnation=Incarnation(message.incarnation),
        sequence=Sequence(message.sequence),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerMessage:
    """The first message of the Active."""

    answer: Answer
    epoch: Epoch
    method: str


def encode_answer(message: AnswerMessage) -> bytes:
    """As bytes for the transport."""
    header = pb.FrameHeader(
        answer=pb.AnswerFrame(answer=_ANSWERS[message.answer], epoch=message.epoch, method=message.method)
    )
    return _join(header.SerializeToString(), b"")


def encode_frame(frame: Frame, *, compress: bool) -> bytes:
    """As bytes for the transport. Blocking for large payloads: call from an executor when ``compress`` is set."""
    payload = _compressed(frame.payload) if compress else frame.payload
    header = pb.FrameHeader(
        position=position_to_wire(frame.position),
        group_end=frame.group_end,
        consistent=frame.consistent,
        codec=pb.CODEC_NONE if payload is frame.payload else pb.CODEC_ZSTD,
        raw_size=len(frame.payload),
    )
    match frame.kind:
        case Body.TREE:
            header.tree = frame.body
        case Body.ROWS:
            header.rows = frame.body
        case Body.NOTHING:
            header.nothing.SetInParent()
    return _join(header.SerializeToString(), payload)


def decode(data: bytes) -> AnswerMessage | EncodedFrame:
    """One message of the Active. Raises ProtocolFault where it is not one."""
    header_bytes, payload = _split(memoryview(data))
    header = pb.FrameHeader()
    try:
        header.MergeFromString(bytes(header_bytes))
    except Exception as error:  # protobuf's DecodeError has no stable public home
        raise ProtocolFault("refused a frame", reason=f"its header is no message: {error}") from error
    kind = header.WhichOneof("kind")
    if kind == "answer":
        return _answer(header.answer)
    bodies = {"tree": (Body.TREE, header.tree), "rows": (Body.ROWS, header.rows), "nothing": (Body.NOTHING, b"")}
    if kind not in bodies:
        raise ProtocolFault("refused a frame", reason=f"unknown kind {kind!r}", hint="are both nodes of one version?")
    if header.raw_size > FRAME_PAYLOAD_MAX:
        raise ProtocolFault("refused a frame", reason=f"claims {header.raw_size} bytes, limit {FRAME_PAYLOAD_MAX}")
    if header.codec == pb.CODEC_NONE and len(payload) != header.raw_size:
        raise ProtocolFault("refused a frame", reason=f"claims {header.raw_size} bytes and holds {len(payload)}")
    body, content = bodies[kind]
    return EncodedFrame(
        position=position_from_wire(header.position),
        kind=body,
        body=content,
        payload=payload,
        compressed=header.codec != pb.CODEC_NONE,
        raw_size=header.raw_size,
        group_end=header.group_end,
        consistent=header.consistent,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedFrame:
    """A frame as received: ``frame`` gives the core value, decompressing where needed."""

    position: Position
    kind: Body
    body: bytes
    payload: memoryview
    compressed: bool
    raw_size: int
    group_end: bool
    consistent: bool

    def frame(self) -> Frame:
        """Blocking for large compressed payloads. Raises ProtocolFault on a payload that is not what it claims."""
        return Frame(
            position=self.position,
            kind=self.kind,
            body=self.body,
            payload=self._decompressed() if self.compressed else self.payload,
            group_end=self.group_end,
            consistent=self.consistent,
        )

    def _decompressed(self) -> bytes:
        try:
            # The output is bounded by the announced size, which is bounded by FRAME_PAYLOAD_MAX: a bomb stops there.
            reader = zstandard.ZstdDecompressor().stream_reader(self.payload)
            data = reader.read(self.raw_size + 1)
        except zstandard.ZstdError as error:
            raise ProtocolFault("refused a frame", reason=f"its payload is not zstd: {error}") from error
        if len(data) != self.raw_size:
            raise ProtocolFault("refused a frame", reason=f"payload is not the {self.raw_size} bytes it claims")
        return data


def _answer(message: pb.AnswerFrame) -> AnswerMessage:
    for answer, value in _ANSWERS.items():
        if value == message.answer:
            return AnswerMessage(answer=answer, epoch=Epoch(message.epoch), method=message.method)
    raise ProtocolFault("refused an answer", reason=f"unknown value {message.answer}")


def _compressed(payload: bytes | memoryview) -> bytes | memoryview:
    """The very same object where compression does not pay."""
    if len(payload) < COMPRESS_MIN:
        return payload
    compressor = _compressor()
    if len(payload) > 2 * _SAMPLE and len(compressor.compress(payload[:_SAMPLE])) > WORTH_IT * _SAMPLE:
        return payload
    packed = compressor.compress(payload)
    return packed if len(packed) <= WORTH_IT * len(payload) else payload


def _compressor() -> zstandard.ZstdCompressor:
    compressor: zstandard.ZstdCompressor | None = getattr(_local, "compressor", None)
    if compressor is None:
        compressor = _local.compressor = zstandard.ZstdCompressor(level=1)
    return compressor


def _join(header: bytes, payload: bytes | memoryview) -> bytes:
    if len(header) > FRAME_HEADER_MAX or len(payload) > FRAME_PAYLOAD_MAX:
        raise AssertionError((len(header), len(payload)))
    return b"".join((_TAG_HEADER, _varint(len(header)), header, _TAG_PAYLOAD, _varint(len(payload)), payload))


def _split(data: memoryview) -> tuple[memoryview, memoryview]:
    header = payload = memoryview(b"")
    at = 0
    while at < len(data):
        tag = data[at]
        length, at = _read_varint(data, at + 1)
        if at + length > len(data):
            raise ProtocolFault("refused a frame", reason="it is cut off")
        if tag == _TAG_HEADER[0] and length <= FRAME_HEADER_MAX:
            header = data[at : at + length]
        elif tag == _TAG_PAYLOAD[0] and length <= FRAME_PAYLOAD_MAX:
            payload = data[at : at + length]
        else:
            raise ProtocolFault("refused a frame", reason=f"field tag {tag} of {length} bytes")
        at += length
    return header, payload


def _varint(value: int) -> bytes:
    parts = bytearray()
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 35:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ProtocolFault("refused a frame", reason="a length in it is no number")
