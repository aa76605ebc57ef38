"""Reads values out of parsed TOML and collects every fault: field, value, range or remedy, then goes on.

Ranges, units and defaults are those of the schema (``fields``); a caller states only what depends on another key.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TypeVar

from ha_agent.settings.fields import SECTIONS
from ha_agent.settings.schema import Field, Section

Value = object
_E = TypeVar("_E", bound=Enum)
_P = TypeVar("_P")

FAULTS_MAX = 200
"""More are counted, not listed: a file that wrong is not a settings file."""

TEXT_MAX = 4096
_SHOWN_MAX = 80


def shown(value: Value) -> str:
    """The value as a person wrote it, cut where it is long."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError):
        text = str(value)
    return text if len(text) <= _SHOWN_MAX else text[: _SHOWN_MAX - 3] + "..."


class Faults:
    """What was found wrong, in the order of the file."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._dropped = 0

    def add(self, line: str) -> None:
        """One fault: field, value, remedy."""
        if len(self._lines) < FAULTS_MAX:
            self._lines.append(line)
        else:
            self._dropped += 1

    def lines(self) -> tuple[str, ...]:
        """All faults."""
        return (*self._lines, f"and {self._dropped} more") if self._dropped else tuple(self._lines)

    def __bool__(self) -> bool:
        return bool(self._lines)


class Table:
    """One table of the file. ``where`` names it in faults, e.g. ``ha`` or ``service[asterisk]``.

    ``demanding``: False where HA is off; then what is missing is no fault, what is there is checked all the same.
    """

    def __init__(
        self,
        where: str,
        values: Mapping[str, Value],
        faults: Faults,
        *,
        section: Section | None = None,
        demanding: bool = True,
    ) -> None:
        self.where = where
        self.demanding = demanding
        self._section = section
        self._values = values
        self._faults = faults
        self._known: list[str] = []

    def field(self, key: str) -> Field:
        """What the schema says of a key."""
        found = self._section.field(key) if self._section is not None else None
        assert found is not None, f"{self.where}.{key} is not in the schema"
        return found

    def has(self, key: str) -> bool:
        """Whether the file states it."""
        return key in self._values

    def raw(self, key: str) -> Value:
        """The value as TOML gave it, or None."""
        self._known.append(key)
        return self._values.get(key)

    def fault(self, key: str, remedy: str) -> None:
        """Says what is wrong with a key's value."""
        value = f" = {shown(self._values[key])}" if key in self._values else ""
        name = key if key.isprintable() else shown(key)
        self._faults.add(f"{self.where}.{name}{value}: {remedy}")

    def need(self, key: str, why: str = "") -> None:
        """Says that a key is missing, where it is and must not be."""
        if not self.has(key) and self.demanding:
            self.fault(key, f"is missing: {why or self.field(key).needed}")

    def text(self, key: str, check: Callable[[str], str] | None = None) -> str:
        """A string; ``check`` returns what is wrong with it, or an empty string."""
        default = str(self.field(key).default or "")
        value = self.raw(key)
        if value is None:
            return default
        if problem := _text_problem(value) or (check(str(value)) if check else ""):
            self.fault(key, problem)
            return default
        return str(value)

    def parsed(self, key: str, parse: Callable[[str], _P]) -> _P | None:
        """A string turned into something by ``parse``, which raises ``ValueError`` with the remedy. None: unusable."""
        value = self.raw(key)
        if value is None:
            return None
        if problem := _text_problem(value):
            self.fault(key, problem)
            return None
        try:
            return parse(str(value))
        except ValueError as wrong:
            self.fault(key, str(wrong))
            return None

    def flag(self, key: str) -> bool:
        """``true`` or ``false``."""
        default = self.field(key).default
        value = self.raw(key)
        if isinstance(value, bool):
            return value
        if value is not None:
            self.fault(key, "must be true or false, without quotes")
        return default is True

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number of the schema's range; ``default`` where it depends."""
        field = self.field(key)
        absent = field.default if default is None else default
        assert type(absent) is int, key
        value = self.raw(key)
        if value is None:
            return absent
        if isinstance(value, bool) or not isinstance(value, int) or not field.low <= value <= field.high:
            self.fault(key, f"must be a whole number from {field.low:g} to {field.high:.10g} ({field.unit})")
            return absent
        return value

    def number(self, key: str, default: float | None = None, *, high: float | None = None, hint: str = "") -> float:
        """A number of the schema's range, whose ``high`` end may depend."""
        field = self.field(key)
        absent = field.default if default is None else default
        assert isinstance(absent, float), key
        most = field.high if high is None else high
        value = self.raw(key)
        if value is None:
            return absent
        # not (low <= value): also for a NaN
        if isinstance(value, bool) or not isinstance(value, int | float) or not field.low <= value <= most:
            self.fault(key, f"must be a number from {field.low:g} to {most:.10g} ({field.unit}{hint})")
            return absent
        return float(value)

    def choice(self, key: str, kinds: type[_E]) -> _E | None:
        """One of an enum's members, by its value. None: not there, or not one of them."""
        value = self.raw(key)
        if value is None:
            return None
        options = {str(member.value): member for member in kinds}
        if isinstance(value, str) and value in options:
            return options[value]
        self.fault(key, "must be one of " + ", ".join(f'"{name}"' for name in options) + _meant(value, list(options)))
        return None

    def texts(self, key: str, check: Callable[[str], str]) -> tuple[str, ...]:
        """A list of strings."""
        most, example = self.field(key).most, self.field(key).example
        value = self.raw(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not value or len(value) > most:
            self.fault(key, f"must be a list of 1 to {most} strings, e.g. {example}")
            return ()
        good: list[str] = []
        for item in value:
            if problem := _text_problem(item) or check(item):
                self._faults.add(f"{self.where}.{key}: {shown(item)}: {problem}")
            else:
                good.append(item)
        return tuple(good) if len(good) == len(value) else ()

    def integers(self, key: str) -> frozenset[int]:
        """A list of different whole numbers."""
        field = self.field(key)
        value = self.raw(key)
        if value is None:
            return frozenset()
        fits = isinstance(value, list) and len(value) <= field.most
        if not fits or not all(type(item) is int and field.low <= item <= field.high for item in _items(value)):
            low, high = f"{field.low:g}", f"{field.high:g}"
            self.fault(key, f"must be a list of at most {field.most} whole numbers from {low} to {high} ({field.unit})")
            return frozenset()
        if len(set(_items(value))) < len(_items(value)):
            self.fault(key, "names one number twice")
        return frozenset(int(str(item)) for item in _items(value))

    def tables(self, key: str) -> tuple[Mapping[str, Value], ...]:
        """A list of tables."""
        most = SECTIONS[key].most
        value = self.raw(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.fault(key, f"must be written as [[{key}]], with two brackets, once for each")
            return ()
        if len(value) > most:
            self.fault(key, f"must have at most {most} entries, has {len(value)}")
            return ()
        return tuple(value)

    def table(self, key: str) -> Table:
        """A table inside this one; empty where it is not there."""
        value = self.raw(key)
        if value is not None and not isinstance(value, dict):
            self.fault(key, f"must be written as [{key}]")
            value = None
        return Table(key, value or {}, self._faults, section=SECTIONS[key], demanding=self.demanding)

    def finish(self, elsewhere: Mapping[str, str] | None = None) -> None:
        """Every key that nobody asked for is a fault. ``elsewhere`` tells of known keys that do not fit here."""
        for key in self._values:
            if key not in self._known:
                self.fault(key, (elsewhere or {}).get(key) or "unknown key" + _meant(key, self._known))


def _items(value: Value) -> list[object]:
    return value if isinstance(value, list) else []


def _text_problem(value: Value) -> str:
    if not isinstance(value, str):
        return "must be a string in quotes"
    if len(value) > TEXT_MAX:
        return f"must be at most {TEXT_MAX} characters long"
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        return "must not contain control characters"
    return ""


def _meant(value: Value, names: list[str]) -> str:
    close = difflib.get_close_matches(str(value), names, n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""
