"""Keys of rows outside of SQLite, exactly as they are inside: type and value, texts by their bytes. Pure.

A text need not be valid in its encoding, so it never becomes a ``str``: its bytes, in the encoding of the database, are
read by a cast and bound by one. Bound values have no affinity, so that they compare as stored ones do.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple


class Value(NamedTuple):
    """One value; two of different types are never equal."""

    type: str  # as typeof() says
    raw: int | float | bytes | None


Key = tuple[Value, ...]


def selected(columns: Iterable[str]) -> str:
    """What to select for a key of ``columns`` (SQL expressions): two results each, for ``taken``."""
    return ", ".join(f"typeof({c}), iif(typeof({c}) = 'text', CAST({c} AS BLOB), {c})" for c in columns)


def taken(row: Sequence[object]) -> Key:
    """The key that a row selected by ``selected`` holds."""
    values = []
    for kind, raw in zip(row[::2], row[1::2], strict=True):
        assert isinstance(kind, str)
        assert raw is None or isinstance(raw, (int, float, bytes))
        values.append(Value(kind, raw))
    return tuple(values)


def bound(key: Key) -> tuple[str, tuple[int | float | bytes | None, ...]]:
    """Placeholders, joined by commas, and what to bind to them."""
    # The plus takes the affinity away that a cast has.
    places = ", ".join("+CAST(? AS TEXT)" if v.type == "text" else "?" for v in key)
    return places, tuple(v.raw for v in key)


def readable(key: Key) -> str:
    """For people."""
    return ", ".join(map(_readable, key))


def _readable(value: Value) -> str:
    raw = value.raw
    if isinstance(raw, bytes) and value.type == "text":
        return repr(raw.decode("utf-8", "backslashreplace"))
    return f"x'{raw.hex()}'" if isinstance(raw, bytes) else "NULL" if raw is None else str(raw)
