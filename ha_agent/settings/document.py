"""``ha.toml`` as an editable document: values by their paths, changes that keep comments and order. No file is touched.

A path is ``SECTION.KEY``, of a section that stands there several times ``SECTION[NAME].KEY``; without a section it is
of ``[ha]``. A text stands for itself, everything else is written as TOML. Raises ConfigFault for a path that is none.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ha_agent.errors import ConfigFault
from ha_agent.settings.fields import SECTIONS
from ha_agent.settings.schema import Field, Kind, Section

CHANGES_MAX = 1000
AS_IT_IS = frozenset({Kind.TEXT, Kind.CHOICE})

_PATH = re.compile(r"(?:(?P<section>[a-z]+)(?:\[(?P<name>[^\]]+)\])?(?:\.|\Z))?(?P<key>[a-z0-9_]*)\Z")


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a value stands. ``field`` None: the whole entry of a list."""

    section: Section
    name: str  # of an entry; empty for a section that stands there once
    field: Field | None

    @property
    def path(self) -> str:
        """As a person writes it."""
        where = f"{self.section.name}[{self.name}]" if self.name else self.section.name
        return where if self.field is None else f"{where}.{self.field.key}"

    @property
    def shared(self) -> bool:
        """Whether it is the pair's."""
        return self.section.shared if self.field is None else self.field.shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """``value`` None: out of the file."""

    place: Place
    value: str | None


def place_of(path: str) -> Place:
    """Raises ConfigFault."""
    text = path if "." in path or "[" in path else f"ha.{path}"
    found = _PATH.match(text)
    section = SECTIONS.get(found["section"] or "") if found is not None else None
    if found is None or section is None:
        raise _no_path(path, "known sections are " + ", ".join(SECTIONS))
    if bool(section.most) != bool(found["name"]):
        example = f"{section.name}[NAME].KEY" if section.most else f"{section.name}.KEY"
        raise _no_path(path, f"must be written {example}")
    if not found["key"] and section.most:
        return Place(section=section, name=found["name"], field=None)
    field = section.field(found["key"])
    if field is None:
        raise _no_path(path, f"[{section.name}] has " + ", ".join(one.key for one in section.fields))
    return Place(section=section, name=found["name"] or "", field=field)


def _no_path(path: str, remedy: str) -> ConfigFault:
    return ConfigFault("the call", (f"{path}: there is no such setting: {remedy}",))


def places_of(values: Mapping[str, object]) -> Iterator[tuple[Place, object]]:
    """Every place of the schema with its value, None where the file does not state it."""
    for section in SECTIONS.values():
        for name, table in _tables(section, values):
            for field in section.fields:
                yield Place(section=section, name=name, field=field), table.get(field.key)


def _tables(section: Section, values: Mapping[str, object]) -> Iterator[tuple[str, Mapping[str, object]]]:
    found = values.get(section.name)
    if not section.most:
        yield "", found if isinstance(found, dict) else {}
        return
    for table in found if isinstance(found, list) else ():
        if isinstance(table, dict) and isinstance(table.get("name"), str):
            yield table["name"], table


def text_of(field: Field, value: object) -> str:
    """A value as ``Change.value`` has it."""
    if field.kind in AS_IT_IS and isinstance(value, str):
        return value
    return _toml(value)


def _toml(value: object) -> str:
    """TOML and JSON agree about what occurs here, apart from numbers that JSON has not."""
    if isinstance(value, float):
        return f"{value:.10g}"
    return json.dumps(value, ensure_ascii=False, default=str)


def value_of(field: Field, text: str) -> object:
    """What ``text`` means; where it means nothing the text itself, which the validation then refuses by name."""
    if field.kind in AS_IT_IS:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except tomllib.TOMLDecodeError:
        return text


def changed_text(text: str, changes: tuple[Change, ...]) -> str:
    """The file's text with the changes; what is not changed keeps its form."""
    import tomlkit  # memory: only who changes settings needs it

    document = tomlkit.parse(text)
    for change in changes:
        _apply(document, change)
    return tomlkit.dumps(document)


def _apply(document: Any, change: Change) -> None:
    import tomlkit

    place = change.place
    if place.field is None:
        if change.value is not None:
            raise ConfigFault("the call", (f"{place.path}: names a whole entry: set its keys",))
        _remove_entry(document, place)
        return
    table = _table_of(document, place, make=change.value is not None)
    if change.value is None:
        if table is not None and place.field.key in table:
            del table[place.field.key]
        return
    assert table is not None, "made just now"
    table[place.field.key] = tomlkit.item(value_of(place.field, change.value))


def _table_of(document: Any, place: Place, *, make: bool) -> Any:
    import tomlkit

    name = place.section.name
    if not place.section.most:
        if name not in document and make:
            document[name] = tomlkit.table()
        return document.get(name)
    entries = document.get(name)
    for table in entries if entries is not None else ():
        if table.get("name") == place.name:
            return table
    if not make:
        return None
    table = tomlkit.table()
    table["name"] = place.name
    if entries is None:
        document[name] = tomlkit.aot()
    document[name].append(table)
    return table


def _remove_entry(document: Any, place: Place) -> None:
    entries = document.get(place.section.name)
    for number, table in enumerate(entries if entries is not None else ()):
        if table.get("name") == place.name:
            del entries[number]
            break
    if entries is not None and len(entries) == 0:
        del document[place.section.name]


def shared_of(values: Mapping[str, object]) -> dict[str, object]:
    """The part of the file that is the pair's, in the order of the schema."""
    found: dict[str, object] = {}
    for section in SECTIONS.values():
        stated = values.get(section.name)
        if section.shared and stated:
            found[section.name] = stated
        elif isinstance(stated, dict):
            table = {one.key: stated[one.key] for one in section.fields if one.shared and one.key in stated}
            if table:
                found[section.name] = table
    return found


def with_shared(text: str, shared: Mapping[str, object]) -> str:
    """The file's text with the pair's part replaced by ``shared``; raises ConfigFault where that has another shape."""
    import tomlkit

    document = tomlkit.parse(text)
    here = shared_of(document.unwrap())
    for section in SECTIONS.values():
        told, mine = shared.get(section.name), here.get(section.name)
        if told == mine:
            continue
        if section.shared:
            document.pop(section.name, None)
            if told is not None:
                document[section.name] = _item(section, told)
            continue
        if not isinstance(told, dict | None):
            raise ConfigFault("the other node", (f"{section.name}: is no table",))
        for field in section.fields:
            place = Place(section=section, name="", field=field)
            value = (told or {}).get(field.key)
            if field.shared and value != (mine or {}).get(field.key):  # type: ignore[attr-defined]
                _apply(document, Change(place=place, value=None if value is None else text_of(field, value)))
    return tomlkit.dumps(document)


def _item(section: Section, told: object) -> Any:
    import tomlkit

    if not section.most:
        return tomlkit.item(told)
    entries = tomlkit.aot()
    for table in told if isinstance(told, list) else ():
        entries.append(tomlkit.item(table))
    return entries
