"""The sections that stand in the file more than once: ``[[path]]``, ``[[service]]``, ``[[probe]]``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ha_agent.settings import form
from ha_agent.settings.fields import SECTIONS
from ha_agent.settings.reading import Faults, Table
from ha_agent.settings.values import (
    LAN_PATH,
    Command,
    OnStandby,
    PathSettings,
    ProbeKind,
    ProbeSettings,
    ServiceSettings,
    When,
)

DEADLINES: Mapping[ProbeKind, float] = {
    ProbeKind.PROCESS: 1.0,
    ProbeKind.AMI: 2.0,
    ProbeKind.SIP: 2.0,
    ProbeKind.COMMAND: 5.0,
    ProbeKind.LINK: 1.0,
    ProbeKind.STORAGE: 5.0,
}
FALLS: Mapping[ProbeKind, int] = {ProbeKind.PROCESS: 1, ProbeKind.LINK: 2}
"""A process that is gone is gone: nothing is gained by looking again. The rest: 3."""

INTERVALS: Mapping[ProbeKind, float] = {ProbeKind.COMMAND: 2.0, ProbeKind.STORAGE: 2.0}
"""Where one silent look may last longer than a second: a fault still shows after ``fall`` looks. The rest: 1."""

OWN_KEYS: Mapping[ProbeKind, tuple[str, ...]] = {
    ProbeKind.PROCESS: ("pid_file", "process"),
    ProbeKind.AMI: ("address", "username", "secret_file"),
    ProbeKind.SIP: ("address",),
    ProbeKind.COMMAND: ("command",),
    ProbeKind.LINK: ("interface",),
    ProbeKind.STORAGE: ("paths", "min_free_mib", "mounted"),
}
HARDWARE = frozenset({ProbeKind.LINK, ProbeKind.STORAGE})


def parse_paths(top: Table, faults: Faults, *, ipv6: bool) -> tuple[PathSettings, ...]:
    """Every ``[[path]]``; names and pairs of addresses differ."""
    found: list[PathSettings] = []
    for number, values in enumerate(top.tables("path"), start=1):
        table = entry("path", number, values, faults, [path.name for path in found])
        path = _path(table, ipv6=ipv6)
        table.finish()
        if path is None:
            continue
        if any((path.local, path.peer) == (other.local, other.peer) for other in found):
            table.fault("peer", "this pair of addresses is a path already")
        found.append(path)
    return tuple(found)


def _path(table: Table, *, ipv6: bool) -> PathSettings | None:
    local = table.parsed("local", form.address_of)
    peer = table.parsed("peer", form.address_of)
    table.need("local")
    table.need("peer")
    for key, found in (("local", local), ("peer", peer)):
        if found is not None and found.version == 6 and not ipv6:
            table.fault(key, "is IPv6: set ipv6 = true in [ha]")
    if local is None or peer is None:
        return None
    if local == peer:
        table.fault("peer", "is this node's own address on the path: name the other node's")
    if local.version != peer.version:
        table.fault("peer", "must be of the same kind as local: both IPv4 or both IPv6")
    return PathSettings(name=name_of(table) or LAN_PATH, local=local, peer=peer)


def parse_services(top: Table, faults: Faults) -> tuple[ServiceSettings, ...]:
    """Every ``[[service]]`` in the order of starting: by ``order``, then as written."""
    found: list[ServiceSettings] = []
    for number, values in enumerate(top.tables("service"), start=1):
        table = entry("service", number, values, faults, [service.name for service in found])
        found.append(_service(table, number))
        table.finish()
    return tuple(sorted(found, key=lambda service: service.order))


def _service(table: Table, number: int) -> ServiceSettings:
    start, stop, probe = (parse_command(table, key) for key in ("start", "stop", "probe"))
    table.need("start")
    table.need("stop")
    return ServiceSettings(
        name=name_of(table),
        start=start,
        stop=stop,
        probe=probe,
        start_deadline_s=table.number("start_deadline_s"),
        stop_deadline_s=table.number("stop_deadline_s"),
        probe_deadline_s=table.number("probe_deadline_s"),
        order=table.integer("order", number),
        standby=table.choice("standby", OnStandby) or OnStandby.STOPPED,
    )


def parse_probes(top: Table, faults: Faults) -> tuple[ProbeSettings, ...]:
    """Every ``[[probe]]``."""
    found: list[ProbeSettings] = []
    for number, values in enumerate(top.tables("probe"), start=1):
        table = entry("probe", number, values, faults, [probe.name for probe in found])
        kind = table.choice("kind", ProbeKind)
        table.need("kind")
        if kind is None:
            continue  # which keys fit is not known then
        found.append(_probe(table, kind))
        table.finish(_of_other_kinds(kind))
    return tuple(found)


def _of_other_kinds(kind: ProbeKind) -> dict[str, str]:
    others = {key for other, keys in OWN_KEYS.items() if other is not kind for key in keys}
    return dict.fromkeys(others, f'does not fit kind = "{kind.value}"')


def _probe(table: Table, kind: ProbeKind) -> ProbeSettings:
    when = When.ALWAYS if kind in HARDWARE else When.ACTIVE
    return ProbeSettings(
        name=name_of(table),
        kind=kind,
        fall=table.integer("fall", FALLS.get(kind, 3)),
        rise=table.integer("rise"),
        interval_s=table.number("interval_s", INTERVALS.get(kind, 1.0)),
        deadline_s=table.number("deadline_s", DEADLINES[kind]),
        when=table.choice("when", When) or when,
        switch=table.flag("switch"),
        **_subject(table, kind),
    )


def _subject(table: Table, kind: ProbeKind) -> dict[str, Any]:
    match kind:
        case ProbeKind.PROCESS:
            return _process(table)
        case ProbeKind.AMI:
            return _ami(table)
        case ProbeKind.SIP:
            return _address(table, 'where it listens on UDP, e.g. "127.0.0.1:5060"')
        case ProbeKind.COMMAND:
            table.need("command")
            return {"command": parse_command(table, "command")}
        case ProbeKind.LINK:
            table.need("interface")
            return {"interface": table.text("interface", form.interface)}
        case ProbeKind.STORAGE:
            return _storage(table)


def _process(table: Table) -> dict[str, Any]:
    if not table.has("pid_file") and not table.has("process"):
        table.fault("process", 'is missing: its name as in /proc/<pid>/comm, e.g. "asterisk", or a pid_file, or both')
    return {
        "pid_file": table.text("pid_file", form.absolute_path),
        "process": table.text("process", form.process),
    }


def _ami(table: Table) -> dict[str, Any]:
    found = _address(table, 'where the manager interface listens, e.g. "127.0.0.1:5038"')
    found["username"] = table.text("username", form.free_text)
    found["secret_file"] = table.text("secret_file", form.absolute_path)
    if bool(found["username"]) != bool(found["secret_file"]):
        table.fault("username", "username and secret_file belong together: state both, or none to ping without a login")
    return found


def _address(table: Table, why: str) -> dict[str, Any]:
    table.need("address", why)
    return {"address": table.parsed("address", form.endpoint_of) or ("", 0)}


def _storage(table: Table) -> dict[str, Any]:
    table.need("paths")
    paths = table.texts("paths", form.absolute_path)
    return {
        "paths": tuple(os.path.normpath(path) for path in paths),
        "min_free_mib": table.integer("min_free_mib"),
        "mounted": table.flag("mounted"),
    }


def parse_command(table: Table, key: str) -> Command:
    """A program by its absolute path, and its arguments. Absent: the default; wrong: empty."""
    if not table.has(key):
        table.raw(key)
        return tuple(str(word) for word in _words(table.field(key).default))
    words = table.texts(key, form.argument)
    if words and (problem := form.absolute_path(words[0])):
        table.fault(key, f"the program {problem}")
        return ()
    return words


def _words(default: object) -> tuple[object, ...]:
    return default if isinstance(default, tuple) else ()


def entry(kind: str, number: int, values: Mapping[str, object], faults: Faults, taken: list[str]) -> Table:
    """The table of one of several of a kind; its name differs from those that are ``taken``."""
    stated = values.get("name")
    usable = isinstance(stated, str) and not form.name(stated)
    table = Table(f"{kind}[{stated if usable else number}]", values, faults, section=SECTIONS[kind])
    table.need("name")
    if usable and stated in taken:
        table.fault("name", f"stands there twice: every {kind} needs a name of its own")
    table.text("name", form.name)
    return table


def name_of(table: Table) -> str:
    """What ``entry`` has checked; empty where it cannot be used."""
    name = table.raw("name")
    return name if isinstance(name, str) else ""
