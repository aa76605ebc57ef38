"""The part of ``sync.toml`` that is the pair's: what is replicated, how, and when. Texts in, texts out; no file.

``[[dataset]]``, ``[[storage]]``, ``[stream]``, ``[backup]`` and ``[divergence]`` are shared, everything else is the
node's own. So is the ``path`` of each dataset and storage that this node has already: two nodes may keep the same data
in different places. Told as JSON, in which an entry that the other node does not have yet brings its path with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from ha_sync.errors import ProtocolFault

ENTRIES = ("dataset", "storage")
SECTIONS = ("stream", "backup", "divergence")
OWN_KEY = "path"


def text_of(values: Mapping[str, object]) -> str:
    """What the other node is told of a file's ``values``; the same text for the same definitions."""
    return _text({name: values[name] for name in (*ENTRIES, *SECTIONS) if values.get(name)})


def digest_of(text: str) -> str:
    """Of ``text_of``, without what is each node's own and without the order of the entries."""
    told = _understood(text)
    for name in ENTRIES:
        if name in told:
            told[name] = sorted((_without_own(entry) for entry in told[name]), key=_text)
    return hashlib.blake2b(_text(told).encode(), digest_size=16).hexdigest()


def merged(text: str, told: str) -> str:
    """The file's ``text`` with the definitions of ``told`` in the place of its own; comments stay.

    Raises ProtocolFault where ``told`` has another shape.
    """
    import tomlkit  # only where something is changed: it takes 30 ms to load

    wanted = _understood(told)
    document = tomlkit.parse(text)
    for name in SECTIONS:
        _section(document, name, wanted.get(name, {}))
    for name in ENTRIES:
        _entries(document, name, wanted.get(name, []))
    return tomlkit.dumps(document)


def with_backup(text: str, changes: Mapping[str, object | None]) -> str:
    """The file's ``text`` with these keys of [backup]; None: out of the file. Comments stay."""
    import tomlkit

    document = tomlkit.parse(text)
    wanted = document["backup"].unwrap() if "backup" in document else {}
    wanted = {key: value for key, value in (wanted | dict(changes)).items() if value is not None}
    _section(document, "backup", wanted)
    return tomlkit.dumps(document)


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> tuple[str, ...]:
    """What of the shared part differs, as a person names it: ``dataset[cdr].exclude``, ``storage[usb0]``."""
    found: list[str] = []
    for name in SECTIONS:
        found += _differing(name, _table(before.get(name)), _table(after.get(name)))
    for name in ENTRIES:
        old, new = (_by_name(values.get(name)) for values in (before, after))
        for entry in dict.fromkeys((*old, *new)):
            where = f"{name}[{entry}]"
            if entry in old and entry in new:
                found += _differing(where, old[entry], new[entry])
            else:
                found.append(where)
    return tuple(found)


def _text(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)


def _understood(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as wrong:
        raise ProtocolFault("cannot use the definitions of the other node", reason=str(wrong)) from wrong
    fits = isinstance(told, dict) and all(_fits(name, told[name]) for name in told)
    if not fits:
        raise ProtocolFault("cannot use the definitions of the other node", reason="they have another shape")
    return dict(told)


def _fits(name: str, value: object) -> bool:
    if name in SECTIONS:
        return isinstance(value, dict)
    entries = value if name in ENTRIES and isinstance(value, list) else None
    if entries is None or not all(isinstance(one, dict) and isinstance(one.get("name"), str) for one in entries):
        return False
    return len({one["name"] for one in entries}) == len(entries)


def _without_own(entry: Mapping[str, object]) -> dict[str, object]:
    return {key: value for key, value in entry.items() if key != OWN_KEY}


def _table(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _by_name(entries: object) -> dict[str, Mapping[str, object]]:
    tables = entries if isinstance(entries, list) else []
    return {str(one["name"]): one for one in tables if isinstance(one, dict) and "name" in one}


def _differing(where: str, old: Mapping[str, object], new: Mapping[str, object]) -> Iterable[str]:
    keys = (key for key in dict.fromkeys((*old, *new)) if _text(old.get(key)) != _text(new.get(key)))
    return [f"{where}.{key}" for key in keys]


def _section(document: Any, name: str, wanted: Mapping[str, object]) -> None:
    import tomlkit

    if not wanted:
        document.pop(name, None)
        return
    if name not in document:
        document[name] = tomlkit.table()
    _change(document[name], wanted, own=())


def _entries(document: Any, name: str, wanted: list[dict[str, object]]) -> None:
    import tomlkit

    told = {str(one["name"]): one for one in wanted}
    here = document.get(name)
    if here is not None and not isinstance(
        here, tomlkit.items.AoT
    ):  # all in one line: to be changed it is written anew
        plain = document.pop(name).unwrap()
        document[name] = here = tomlkit.aot()
        for values in plain:
            here.append(tomlkit.item(values))
    for number in reversed(range(len(here) if here is not None else 0)):
        if here[number].get("name") not in told:
            del here[number]
    if here is not None and len(here) == 0:
        del document[name]
        here = None
    known = {str(entry["name"]): entry for entry in here or ()}
    for entry, values in told.items():
        if entry in known:
            # As another kind it is another thing: the place of the old one is not its place.
            same = known[entry].get("kind") == values.get("kind")
            _change(known[entry], values, own=(OWN_KEY,) if same else ())
            continue
        if name not in document:
            document[name] = tomlkit.aot()
        document[name].append(tomlkit.item(values))


def _change(table: Any, wanted: Mapping[str, object], *, own: tuple[str, ...]) -> None:
    import tomlkit

    before = table.unwrap()
    for key in before:
        if key not in wanted and key not in own:
            del table[key]
    for key, value in wanted.items():
        if key not in own and (key not in before or _text(before[key]) != _text(value)):
            table[key] = tomlkit.item(value)
