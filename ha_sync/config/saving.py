"""Replaces ``sync.toml`` whole and keeps the one before. Blocking.

Invariants: nothing is written before the new text was judged as a starting engine would; the file that stood there is
kept beside it as ``sync.toml.previous``; a power cut leaves the old file or the new one, never a part; mode and owner
stay.
"""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import dataclass

from ha_sync.config import shared
from ha_sync.config.parse import read_text, settings_of
from ha_sync.config.settings import Settings
from ha_sync.errors import OperatorNeeded, Refused

PREVIOUS = ".previous"
DRAFT = ".new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A new text of the file, judged."""

    before: str
    after: str
    changed: tuple[str, ...]  # as ``shared.differences`` names it; nothing: the file stays as it is
    settings: Settings


def draft(path: str, told: str) -> Draft:
    """What the file would be with the definitions that another node told. Raises ConfigFault, ProtocolFault."""
    before = read_text(path)
    return draft_of(before, shared.merged(before, told), source=f"{path}, with the definitions of the Active")


def draft_of(before: str, after: str, *, source: str) -> Draft:
    """The same of a whole new text; ``source`` names it in faults. Raises ConfigFault."""
    values = tomllib.loads(after)
    settings = settings_of(values, source=source)
    return Draft(
        before=before, after=after, changed=shared.differences(tomllib.loads(before), values), settings=settings
    )


def save(path: str, made: Draft) -> None:
    """Raises Refused where the file was changed since, OperatorNeeded where it cannot be written."""
    real = os.path.realpath(path)
    if read_text(real) != made.before:
        raise Refused("cannot save", subject=path, reason="the file was changed meanwhile", hint="look, and try again")
    try:
        _replace(real + PREVIOUS, made.before, like=real)
        _replace(real, made.after, like=real)
    except OSError as failed:
        reason = failed.strerror or str(failed)
        raise OperatorNeeded("cannot save", subject=path, reason=reason, hint="the old file stands") from failed


def _replace(path: str, text: str, *, like: str) -> None:
    unfinished = path + DRAFT
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        seen = os.stat(like)
        os.fchmod(descriptor, stat.S_IMODE(seen.st_mode))
        if (seen.st_uid, seen.st_gid) != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, seen.st_uid, seen.st_gid)
        file.write(text.encode())
        file.flush()
        os.fsync(descriptor)
    os.rename(unfinished, path)
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
