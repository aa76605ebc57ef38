"""Spans of keys as messages: what the full backup's two ends and a source of rows tell one another."""

from __future__ import annotations

from collections.abc import Iterable

import xxhash
from google.protobuf.message import DecodeError

from ha_proto.sync.v1 import examine_pb2 as pb
from ha_sync.database.keys import Key, Value
from ha_sync.database.rowhash import Span
from ha_sync.database.schema import Table
from ha_sync.errors import ProtocolFault


def key_message(key: Key) -> pb.RowsKey:
    """Of a key."""
    message = pb.RowsKey()
    for value in key:
        _fill(message.values.add(), value)
    return message


def _fill(message: pb.RowsValue, value: Value) -> None:
    raw = value.raw
    if isinstance(raw, bytes):
        if value.type == "text":
            message.text = raw
        else:
            message.blob = raw
    elif isinstance(raw, float):
        message.real = raw
    elif raw is not None:
        message.integer = raw


def key_of(message: pb.RowsKey) -> Key:
    """From a message."""
    return tuple(map(_value, message.values))


def _value(message: pb.RowsValue) -> Value:
    match message.WhichOneof("value"):
        case "integer":
            return Value("integer", message.integer)
        case "real":
            return Value("real", message.real)
        case "text":
            return Value("text", message.text)
        case "blob":
            return Value("blob", message.blob)
    return Value("null", None)


def span_message(span: Span) -> pb.RowsSpan:
    """Of a span."""
    return pb.RowsSpan(
        after=None if span.after is None else key_message(span.after),
        upto=None if span.upto is None else key_message(span.upto),
        only=span.only,
    )


def span_of(message: pb.RowsSpan, table: Table) -> Span:
    """From a message. Raises ``ProtocolFault`` where its keys are none of the table."""
    after = key_of(message.after) if message.HasField("after") else None
    upto = key_of(message.upto) if message.HasField("upto") else None
    if any(key is not None and len(key) != len(table.key) for key in (after, upto)) or (message.only and upto is None):
        raise ProtocolFault("refused a span of keys", subject=table.name, reason="its keys are of another table")
    return Span(after=after, upto=upto, only=message.only)


def sql_hash(table: Table) -> bytes:
    """Names a table's SQL: a key means the same on both nodes where it is the same."""
    return xxhash.xxh3_64_digest(table.sql.encode("utf-8", "surrogatepass"))


def cursor_at(table: str, after: Key | None) -> bytes:
    """Where an interrupted full backup goes on: in ``table``, after a key."""
    return pb.RowsRange(table=table, span=span_message(Span(after=after))).SerializeToString()


def cursor_of(data: bytes) -> tuple[str, Key | None]:
    """Table and key of a cursor; the beginning for what is none."""
    try:
        message = pb.RowsRange.FromString(data)
    except DecodeError:
        return "", None
    return message.table, key_of(message.span.after) if message.span.HasField("after") else None


def resent(table: str, spans: Iterable[Span] = ()) -> bytes:
    """What a source of rows is asked to send again: spans of a table, the table as a whole, or (unnamed) the schema."""
    return pb.RowsObjects(table=table, spans=map(span_message, spans)).SerializeToString()


def objects_of(data: bytes) -> pb.RowsObjects:
    """What shall be sent again. Raises ``ProtocolFault``."""
    try:
        return pb.RowsObjects.FromString(data)
    except DecodeError as error:
        raise ProtocolFault("cannot read what shall be sent again", reason=str(error)) from None
