"""How results are shown: aligned tables for people, JSON with snake_case names for programs.

The JSON form of a message is a stable contract: every field of the .proto file is there, also when it is empty; whole
numbers are JSON numbers, bytes are hexadecimal, a message or an optional number that is absent is null.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import cast

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

GAP = "  "


def print_json(value: object) -> None:
    """One JSON document on one line, flushed, so that a reader of a pipe sees it at once."""
    click.echo(json.dumps(value, ensure_ascii=False))


def message_to_dict(message: Message) -> dict[str, object]:
    """All fields of a message, by their names in the .proto file."""
    return {field.name: _field(message, cast("FieldDescriptor", field)) for field in message.DESCRIPTOR.fields}


def _field(message: Message, field: FieldDescriptor) -> object:
    value = getattr(message, field.name)
    nested = field.message_type
    if nested is not None and nested.GetOptions().map_entry:
        return {str(key): _plain(value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_plain(item) for item in value]
    if field.has_presence and not message.HasField(field.name):
        return None
    return _plain(value)


def _plain(value: object) -> object:
    if isinstance(value, Message):
        return message_to_dict(value)
    return value.hex() if isinstance(value, bytes) else value


def plain(text: str) -> str:
    """Text of other machines and files: it cannot forge a line or drive the terminal."""
    return text if text.isprintable() else ascii(text)


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Lines of an aligned table; columns in ``right`` are numbers. No trailing spaces."""
    cells = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(headings))]
    return [
        GAP.join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def duration(seconds: float) -> str:
    """Short, for people: ``45s``, ``3m 20s``, ``5h 12m``, ``3d 4h``."""
    whole = int(seconds)
    for unit, size, lower, lower_size in (("d", 86_400, "h", 3600), ("h", 3600, "m", 60), ("m", 60, "s", 1)):
        if whole >= size:
            return f"{whole // size}{unit} {whole % size // lower_size}{lower}"
    return f"{whole}s"
