"""Changes ``ha.toml``: validated as a whole, then replaced whole. Blocking.

Invariants: nothing is written before the new text was read and judged as a starting agent would; the file that stood
there is kept beside it as ``ha.toml.previous``; a power cut leaves the old file or the new one, never a part.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tomllib
from dataclasses import dataclass

from ha_agent.errors import ConfigFault, OperatorNeeded, Refused
from ha_agent.settings.document import Change, Place, changed_text, places_of, text_of
from ha_agent.settings.parse import FILE_BYTES_MAX, settings_of
from ha_agent.settings.values import Settings

PREVIOUS = ".previous"
DRAFT = ".new"


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """The file as it stands."""

    text: str
    values: dict[str, object]

    @property
    def digest(self) -> str:
        """Tells whether the file is still the one that was looked at."""
        return hashlib.blake2b(self.text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One value that a change would change. None: not stated."""

    place: Place
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A new text of the file, judged. ``settings`` None: it has faults."""

    before: Content
    after: Content
    differences: tuple[Difference, ...]
    faults: tuple[str, ...]
    settings: Settings | None


def read(path: str) -> Content:
    """A file that is not there is an empty one. Raises ConfigFault where it cannot be read or is no TOML."""
    try:
        with open(path, "rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        data = b""
    except OSError as error:
        raise ConfigFault(path, (f"cannot be read: {error.strerror}",)) from error
    if len(data) > FILE_BYTES_MAX:
        raise ConfigFault(path, (f"is larger than {FILE_BYTES_MAX} bytes: this is no settings file",))
    try:
        text = data.decode()
        return Content(text=text, values=tomllib.loads(text))
    except (ValueError, RecursionError) as error:
        raise ConfigFault(path, (f"is not TOML: {error}",)) from error


def draft(path: str, changes: tuple[Change, ...]) -> Draft:
    """What the file would be with the changes."""
    before = read(path)
    return draft_of(path, before, changed_text(before.text, changes))


def draft_of(path: str, before: Content, text: str) -> Draft:
    """The same of a whole new text."""
    after = Content(text=text, values=tomllib.loads(text))
    settings: Settings | None = None
    faults: tuple[str, ...] = ()
    try:
        settings = settings_of(after.values, source=path)
    except ConfigFault as wrong:
        faults = wrong.faults
    return Draft(before=before, after=after, differences=_differences(before, after), faults=faults, settings=settings)


def _differences(before: Content, after: Content) -> tuple[Difference, ...]:
    old, new = ({place.path: (place, value) for place, value in places_of(one.values)} for one in (before, after))
    found = []
    for path in dict.fromkeys((*old, *new)):
        place, was = old.get(path, (None, None))
        newer, will_be = new.get(path, (place, None))
        place = newer or place
        assert place is not None, path
        assert place.field is not None, path
        if (was, type(was)) != (will_be, type(will_be)):
            found.append(
                Difference(
                    place=place,
                    before=None if was is None else text_of(place.field, was),
                    after=None if will_be is None else text_of(place.field, will_be),
                )
            )
    return tuple(found)


def save(path: str, made: Draft) -> str:
    """Puts the new text in the place of the old one; returns where the old one is kept, "" where there was none.

    Raises Refused where the file was changed since, OperatorNeeded where it cannot be written.
    """
    assert not made.faults, "a file with faults is never written"
    real = os.path.realpath(path)
    if read(real).text != made.before.text:
        raise Refused("cannot save", subject=path, reason="the file was changed meanwhile", hint="look, and try again")
    try:
        previous = _keep(real, made.before.text)
        _replace(real, made.after.text, like=real)
    except OSError as failed:
        raise OperatorNeeded(
            "cannot save", subject=path, reason=failed.strerror or str(failed), hint="the old file stands"
        ) from failed
    return previous


def _keep(path: str, text: str) -> str:
    if not os.path.exists(path):
        return ""
    _replace(path + PREVIOUS, text, like=path)
    return path + PREVIOUS


def _replace(path: str, text: str, *, like: str) -> None:
    """With mode and owner of the file ``like``."""
    directory = os.path.dirname(path)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    descriptor = os.open(path + DRAFT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        with contextlib.suppress(FileNotFoundError):
            seen = os.stat(like)
            os.fchmod(descriptor, stat.S_IMODE(seen.st_mode))
            if (seen.st_uid, seen.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(descriptor, seen.st_uid, seen.st_gid)
        file.write(text.encode())
        file.flush()
        os.fsync(descriptor)
    os.rename(path + DRAFT, path)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
