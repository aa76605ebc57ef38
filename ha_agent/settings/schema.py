"""What a key of ``ha.toml`` is: the words in which the one schema is written. Pure.

From the schema follow what is read and refused (``parse``), what `ha-sync settings` shows and takes, what the gRPC API
says of it, and the tables of docs/ha-toml.md, which a test compares. The keys themselves: ``fields``, ``entry_fields``.

Invariant: a shared key is the same on both nodes and is changed on the Active; every other one belongs to its node and
can be changed on a Standby too.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Kind(enum.Enum):
    """What stands behind the equals sign."""

    FLAG = "flag"
    INTEGER = "integer"
    NUMBER = "number"
    CHOICE = "choice"
    TEXT = "text"
    TEXTS = "texts"
    INTEGERS = "integers"
    COMMAND = "command"  # a list: a program by its absolute path, and its arguments


Plain = bool | int | float | str | tuple[str, ...] | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One key. ``what`` may use Markdown: it stands in the documents as it is."""

    key: str
    kind: Kind
    what: str
    default: Plain | None = None  # None: there is none, or it depends (``default_told``)
    default_told: str = ""
    low: float = 0.0
    high: float = 0.0
    most: int = 64  # of a list
    unit: str = ""
    options: tuple[str, ...] = ()
    range_told: str = ""
    example: str = ""
    needed: str = ""  # said where it is missing and must not be
    shared: bool = False

    @property
    def range(self) -> str:
        """What it may be, for a person, in Markdown."""
        if self.range_told:
            return self.range_told
        match self.kind:
            case Kind.FLAG:
                return "`true`, `false`"
            case Kind.CHOICE:
                return ", ".join(f"`{option}`" for option in self.options)
            case Kind.INTEGER | Kind.NUMBER:
                return f"{self.low:g}-{self.high:.10g}"
            case Kind.COMMAND:
                return "program and arguments"
            case _:
                raise AssertionError(f"{self.key}: range_told is missing")

    @property
    def default_shown(self) -> str:
        """What holds where it is not stated, for a person, in Markdown."""
        if self.default_told:
            return self.default_told
        match self.default:
            case None:
                return "required" if self.needed else "none"
            case bool():
                return f"`{str(self.default).lower()}`"
            case int() | float():
                return f"{self.default:.10g}"
            case str():
                return f"`{self.default}`" if self.default else "empty"
            case _:
                return "`[" + ", ".join(f'"{item}"' for item in self.default) + "]`" if self.default else "none"


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A table of the file, or one that stands there several times (``most`` > 0)."""

    name: str
    fields: tuple[Field, ...]
    most: int = 0

    def field(self, key: str) -> Field | None:
        """By its key."""
        return next((field for field in self.fields if field.key == key), None)

    @property
    def shared(self) -> bool:
        """Whether the section as a whole is shared: an entry of a list is never shared in part."""
        return bool(self.fields) and all(field.shared for field in self.fields)


def flag(key: str, what: str, *, default: bool = False, shared: bool = False) -> Field:
    """``true`` or ``false``."""
    return Field(key=key, kind=Kind.FLAG, what=what, default=default, shared=shared)


def choice(
    key: str, options: type[enum.Enum], what: str, *, default: str | None, needed: str = "", shared: bool = False
) -> Field:
    """One of an enum's values."""
    values = tuple(str(option.value) for option in options)
    return Field(key=key, kind=Kind.CHOICE, what=what, default=default, options=values, needed=needed, shared=shared)
