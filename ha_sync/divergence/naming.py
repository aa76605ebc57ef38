"""The name of a file that another content has taken already. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from ha_sync.files.confine import NAME_MAX_BYTES, split

DIGITS = (8, 16, 32)


def names_for(path: bytes, content_hash: bytes) -> Iterator[bytes]:
    """The path itself, then paths beside it that bear digits of the content's hash and keep the extension.

    The names follow from the content, so that a merge that is repeated finds what it did.
    """
    yield path
    folder, name = split(path)
    stem, dot, extension = name.rpartition(b".")
    if not stem:
        stem, dot, extension = name, b"", b""
    for digits in DIGITS:
        tail = b"-" + content_hash.hex()[:digits].encode() + dot + extension
        other = stem[: max(0, NAME_MAX_BYTES - len(tail))] + tail
        yield folder + b"/" + other if folder else other
