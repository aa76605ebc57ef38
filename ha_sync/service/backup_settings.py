"""``[backup]`` of ``sync.toml`` as settings that are shown and changed by name: see ``SettingsService`` of the agent.

Everything else of the file is edited by hand, since it is lists of what a program has where. The running engine goes on
with what it was started with; the Standby's file follows the Active's (``definitions``). Blocking.
"""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import dataclass

from ha_proto.agent.v1 import settings_pb2 as pb
from ha_sync.config import BackupSettings, Settings, saving, shared
from ha_sync.config.parse import read_text
from ha_sync.errors import ConfigFault, OperatorNeeded, Refused

SECTION = "backup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One of them, for a person."""

    name: str
    kind: str
    range: str
    default: str
    unit: str
    what: str


PLAIN = BackupSettings()
KEYS = (
    Key(
        name="full",
        kind="text",
        range="a cron expression of five fields, or `off`",
        default=f"`{PLAIN.full}`",
        unit="local time of the node",
        what="when the Active begins the full backup by itself",
    ),
    Key(
        name="rate_mib_per_s",
        kind="integer",
        range="0-100000; 0: no bound",
        default=f"`{PLAIN.rate_mib_per_s}`",
        unit="MiB a second",
        what="of content that is read on each node during a full backup",
    ),
)


def shown(running: Settings, *, fixed: bool) -> pb.GetSettingsResponse:
    """What the file says now. ``fixed``: this node is the Standby. Raises ConfigFault."""
    text = _text(running.file)
    stated = _stated(text)
    return pb.GetSettingsResponse(
        settings=[
            pb.Setting(
                path=f"{SECTION}.{key.name}",
                value=_plain(stated[key.name]) if key.name in stated else "",
                stated=key.name in stated,
                kind=key.kind,
                range=key.range,
                default=key.default,
                unit=key.unit,
                what=key.what,
                shared=True,
                writable=not fixed,
            )
            for key in KEYS
        ],
        file=running.file,
        file_digest=_digest(text),
        restart_needed=shared.digest_of(shared.text_of(tomllib.loads(text))) != shared.digest_of(running.shared),
        read_only_shared=fixed,
    )


def change(running: Settings, request: pb.SetSettingsRequest) -> pb.SetSettingsResponse:
    """All or none. Raises ConfigFault (no such key), Refused, OperatorNeeded."""
    before = _text(running.file)
    if request.file_digest and request.file_digest != _digest(before):
        hint = "look, and try again"
        raise Refused("cannot save", subject=running.file, reason="the file was changed meanwhile", hint=hint)
    changes = {_key(one.path).name: None if one.unset else _value(_key(one.path), one.value) for one in request.changes}
    try:
        made = saving.draft_of(before, shared.with_backup(before, changes), source=running.file)
    except ConfigFault as wrong:
        return pb.SetSettingsResponse(faults=wrong.faults, file_digest=_digest(before))
    old, new = _stated(before), _stated(made.after)
    answer = pb.SetSettingsResponse(restart_needed=True, file_digest=_digest(before))
    for key in (key.name for key in KEYS if old.get(key.name) != new.get(key.name)):
        difference = answer.differences.add(path=f"{SECTION}.{key}", shared=True)
        if key in old:
            difference.before = _plain(old[key])
        if key in new:
            difference.after = _plain(new[key])
    if answer.differences and not request.dry_run:
        saving.save(running.file, made)
        answer.previous = running.file + saving.PREVIOUS
        answer.file_digest = _digest(made.after)
    answer.saved = not request.dry_run
    return answer


def _text(path: str) -> str:
    if not path:
        raise OperatorNeeded("cannot tell the settings", reason="this engine was started without a file")
    return read_text(path)


def _stated(text: str) -> dict[str, object]:
    found = tomllib.loads(text).get(SECTION)
    return found if isinstance(found, dict) else {}


def _key(path: str) -> Key:
    section, _, name = path.partition(".")
    found = next((key for key in KEYS if section == SECTION and key.name == name), None)
    if found is None:
        known = ", ".join(f"{SECTION}.{key.name}" for key in KEYS)
        raise ConfigFault("the call", (f"{path}: there is no such setting of the engine: {known}",))
    return found


def _value(key: Key, text: str) -> object:
    """What is no number is judged by name, as everything else."""
    return int(text) if key.kind == "integer" and text.isascii() and text.isdigit() and len(text) < 16 else text


def _plain(value: object) -> str:
    return "off" if value is False else str(value)


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
