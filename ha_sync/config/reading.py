"""Reads one table of a TOML file key by key: takes what is right, writes down everything that is wrong.

Every fault is one line: field, value, and what it must be. A reader never raises; whoever called it looks at the
``Faults`` at the end. Booleans are no numbers here, though Python thinks so.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from enum import Enum
from typing import TypeVar

Value = object
_E = TypeVar("_E", bound=Enum)

FAULTS_MAX = 200
"""More are counted, not listed: a file that wrong is not a settings file."""

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
        if not self._dropped:
            return tuple(self._lines)
        return (*self._lines, f"and {self._dropped} more")

    def __bool__(self) -> bool:
        return bool(self._lines)


class Table:
    """One table of the file. ``where`` names it in faults, e.g. ``node`` or ``dataset[cdr]``."""

    def __init__(self, where: str, values: Mapping[str, Value], faults: Faults) -> None:
        self.where = where
        self._values = values
        self._faults = faults
        self._known: list[str] = []

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

    def text(
        self, key: str, default: str, check: Callable[[str], str] | None = None, *, many_lines: bool = False
    ) -> str:
        """A string; ``check`` returns what is wrong with it, or an empty string."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, str):
            self.fault(key, "must be a string in quotes")
            return default
        unfit = _text_problem(value, allowed="\n\t" if many_lines else "")
        if problem := unfit or (check(value) if check else ""):
            self.fault(key, problem)
            return default
        return value

    def required_text(
        self, key: str, why: str, check: Callable[[str], str] | None = None, *, many_lines: bool = False
    ) -> str:
        """A string that must be there; an empty one is returned where it is missing or wrong."""
        if not self.has(key):
            self.fault(key, f"is missing: {why}")
        return self.text(key, "", check, many_lines=many_lines)

    def flag(self, key: str, *, default: bool) -> bool:
        """``true`` or ``false``."""
        value = self.raw(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.fault(key, "must be true or false, without quotes")
            return default
        return value

    def integer(self, key: str, default: int, *, low: int, high: int, unit: str) -> int:
        """A whole number from ``low`` to ``high``."""
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.fault(key, f"must be a whole number from {low} to {high} ({unit})")
            return default
        return value

    def number(self, key: str, default: float, *, low: float, high: float, unit: str) -> float:
        """A number from ``low`` to ``high``."""
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.fault(key, f"must be a number from {low:g} to {high:g} ({unit})")
            return default
        return float(value)

    def choice(self, key: str, default: _E, kinds: type[_E], names: Mapping[str, _E] | None = None) -> _E:
        """One of an enum's members, by its value (or by ``names``)."""
        value = self.raw(key)
        if value is None:
            return default
        options = names or {str(member.value): member for member in kinds}
        if isinstance(value, str) and value in options:
            return options[value]
        self.fault(key, "must be one of " + ", ".join(f'"{name}"' for name in options) + _meant(value, options))
        return default

    def texts(self, key: str, check: Callable[[str], str], *, most: int) -> tuple[str, ...]:
        """A list of different strings."""
        value = self.raw(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fault(key, 'must be a list of strings, e.g. ["one", "two"]')
            return ()
        if len(value) > most:
            self.fault(key, f"must have at most {most} entries, has {len(value)}")
            return ()
        good: list[str] = []
        for item in value:
            problem = _text_problem(item) or check(item) or ("stands there twice" if item in good else "")
            if problem:
                self._faults.add(f"{self.where}.{key}: {shown(item)}: {problem}")
            else:
                good.append(item)
        return tuple(good)

    def one_or_more(
        self, key: str, default: tuple[str, ...], check: Callable[[str], str], *, most: int
    ) -> tuple[str, ...]:
        """A string, or a list of different strings."""
        if isinstance(self._values.get(key), list):
            return self.texts(key, check, most=most) or default
        text = self.text(key, "", check)
        return (text,) if text else default

    def tables(self, key: str, example: str, *, most: int) -> tuple[Mapping[str, Value], ...]:
        """A list of tables; ``example`` shows how one is written."""
        value = self.raw(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.fault(key, f"must be written as {example}")
            return ()
        if len(value) > most:
            self.fault(key, f"must have at most {most} entries, has {len(value)}")
            return ()
        return tuple(value)

    def table(self, key: str, example: str) -> Mapping[str, Value] | None:
        """A table, None where it is not there."""
        value = self.raw(key)
        if value is not None and not isinstance(value, dict):
            self.fault(key, f"must be written as {example}")
            return None
        return value

    def entry(self, key: str, values: Mapping[str, Value]) -> Table:
        """A table inside this one."""
        return Table(f"{self.where}.{key}", values, self._faults)

    def finish(self, elsewhere: Mapping[str, str] | None = None) -> None:
        """Every key that nobody asked for is a fault. ``elsewhere`` tells of known keys that do not fit here."""
        for key in self._values:
            if key in self._known:
                continue
            if elsewhere and key in elsewhere:
                self.fault(key, elsewhere[key])
            else:
                self.fault(key, "unknown key" + _meant(key, self._known))


def _text_problem(text: str, *, allowed: str = "") -> str:
    unfit = any((ord(char) < 32 or ord(char) == 127) and char not in allowed for char in text)
    return "must not contain control characters" if unfit else ""


def _meant(value: Value, names: Mapping[str, object] | list[str]) -> str:
    close = difflib.get_close_matches(str(value), list(names), n=1, cutoff=0.6)
    return f'; did you mean "{close[0]}"?' if close else ""
