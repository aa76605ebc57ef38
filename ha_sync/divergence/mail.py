"""Voicemail messages as app_voicemail keeps them: what makes two the same, and which number a new one gets. Pure.

A message is a group of files ``msgNNNN.<extension>`` in a folder of a mailbox; ``.txt`` is its commit mark. Numbers of
a folder begin at 0 and have no gaps: what stands behind one is never seen. A number is no identity, and ``msg_id``
alone is none either (it survives a forward): a message is what its .txt says of its origin and the content of its
sound.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ha_sync.files.confine import split

TEXT = b"txt"
TEXT_MAX = 64 * 1024
"""Bytes of a ``.txt`` that are read."""

NUMBER_MAX = 9999
"""The PBX takes no message beyond it."""

_NAME = re.compile(rb"msg([0-9]{4})\.([A-Za-z0-9]{1,16})")
_FIELD = re.compile(rb"(msg_id|origtime|callerid|origmailbox|duration)\s*=\s*(.*?)\s*")


Origin = tuple[tuple[bytes, bytes], ...]
"""Fields of a ``.txt`` that no session changes, sorted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Equal for the same message on both nodes, in whatever folder and under whatever number it stands."""

    origin: Origin
    sounds: tuple[tuple[bytes, bytes], ...]  # (extension, content hash)


def parsed(name: bytes) -> tuple[int, bytes] | None:
    """Number and extension of a message's file; None for any other name."""
    found = _NAME.fullmatch(name)
    return None if found is None else (int(found[1]), found[2])


def name_of(number: int, extension: bytes) -> bytes:
    """The name of a message's file."""
    return b"msg%04d.%s" % (number, extension)


def origin_of(text: bytes) -> Origin:
    """The fields of a ``.txt`` that tell where a message came from, sorted."""
    lines = (_FIELD.fullmatch(line) for line in text.splitlines())
    return tuple(sorted({found[1]: found[2] for found in lines if found is not None}.items()))


def identity_of(text: bytes, sounds: Mapping[bytes, bytes]) -> Identity:
    """From the content of the ``.txt`` and the hashes of the sounds by extension."""
    return Identity(origin=origin_of(text), sounds=tuple(sorted(sounds.items())))


def by_message(paths: Iterable[bytes]) -> dict[tuple[bytes, int], dict[bytes, bytes]]:
    """``(folder, number)`` -> extension -> path, of the paths that belong to messages."""
    found: dict[tuple[bytes, int], dict[bytes, bytes]] = {}
    for path in paths:
        folder, name = split(path)
        message = parsed(name)
        if message is not None:
            found.setdefault((folder, message[0]), {})[message[1]] = path
    return found


def next_number(names: Collection[bytes]) -> int | None:
    """The number that a new message of a folder with these names gets, as the PBX would give it; None: none can be had.

    It is the first without a ``.txt``. Where sound stands there already, a message was left half done: its place is
    not taken, and beyond it nothing would be seen.
    """
    messages = [message for message in map(parsed, names) if message is not None]
    complete = {number for number, extension in messages if extension == TEXT}
    number = 0
    while number in complete:
        number += 1
    taken = any(each == number for each, _ in messages)
    return None if taken or number > NUMBER_MAX else number


def order_of(extensions: Iterable[bytes]) -> list[bytes]:
    """The order in which a message's files take their names: the commit mark last."""
    return sorted(extensions, key=lambda extension: (extension == TEXT, extension))


def lacking(theirs: Iterable[Identity], mine: Mapping[Identity, int]) -> list[int]:
    """Places in ``theirs`` of the messages that must be added so that there are as many of each as there.

    ``mine`` counts what is there already. As for records: a multiset, and nothing is taken away.
    """
    left = dict(mine)
    wanted = []
    for place, identity in enumerate(theirs):
        if left.get(identity, 0):
            left[identity] -= 1
        else:
            wanted.append(place)
    return wanted
