"""What a package is made of. Values, and their bytes; no I/O.

A package is a tar file compressed with zstd (``tar --zstd -tf FILE`` reads it), in three parts:

1. a zstd frame of tar members: the head as ``ha-sync-package.json``, then the content of every dataset, below
   ``data/<dataset>/``, each directory before what is in it, names in the order of their bytes;
2. a zstd frame with one member, the manifest ``manifest.jsonl``: a line for the head, one for each entry (where its
   content begins in part 1, size, mode, owner, times, attributes, BLAKE2b), and one for the end;
3. a frame that zstd skips, the trailer, of fixed size: where the manifest is, how large everything is once it is
   decoded, and a BLAKE2b over the whole file.

A reader begins with the trailer, reads the manifest, and then the content beside it: it believes the manifest and never
a header of the tar, and it decodes no more than the manifest says. Sizes in bytes, times in nanoseconds since 1970,
paths as relative bytes.
"""

from __future__ import annotations

import enum
import hashlib
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from ha_sync.errors import Refused

FORMAT: Final = 1
"""Grows when an older program could not read a package rightly; it refuses what is larger than its own."""

HEAD_NAME: Final = "ha-sync-package.json"
MANIFEST_NAME: Final = "manifest.jsonl"
DATA_PREFIX: Final = "data/"

BLOCK: Final = 512  # of a tar
PIECE_BYTES: Final = 1 << 20
WINDOW_BYTES_MAX: Final = 1 << 27
LINE_MAX: Final = 512 * 1024
GAP_MAX: Final = 256 * 1024
"""Between two contents lie a tar header, its extension with a long name, and padding."""

DIGEST_BYTES: Final = 32
NUMBER_MAX: Final = 2**63 - 1
DATASETS_MAX: Final = 4096

_SKIPPABLE: Final = 0x184D2A5A
_MAGIC: Final = b"HA-SYNC\x00PACKAGE\x00"
_FIELDS: Final = struct.Struct("<I6Q")
_FRAME: Final = struct.Struct("<II")
_BODY_BYTES: Final = len(_MAGIC) + _FIELDS.size + DIGEST_BYTES
TRAILER_BYTES: Final = _FRAME.size + _BODY_BYTES


class EntryType(enum.Enum):
    """What an entry is. There is nothing else: no device, no FIFO, no hard link."""

    DIRECTORY = "directory"
    FILE = "file"
    SYMLINK = "symlink"
    DATABASE = "database"  # one whole SQLite file; its path is empty


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One object of a dataset."""

    dataset: str
    path: bytes  # below the dataset's root; empty: the root itself, or the database
    type: EntryType
    offset: int  # of the content in the decoded first part
    size: int
    digest: bytes  # BLAKE2b of the content; of a symlink: of its target
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: bytes = b""  # canonical (files/metadata.py)
    target: bytes = b""  # of a symlink
    moving: bool = False  # it did not hold still while it was read: this is what was got


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """The version of a database, as its program numbers it."""

    user_version: int
    application_id: int
    digest: str  # of the SQL of all its objects


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """One dataset in the head."""

    name: str
    kind: str
    position: str  # where its stream stood, for people
    present: bool = True  # False: the node had nothing of it
    schema: Schema | None = None  # in the manifest's head only: known once it was copied
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a package says of itself."""

    made_by: str  # the version of this program
    cluster_id: str
    node_id: str
    node: str
    role: str
    epoch: int
    model: str
    firmware: str
    created: str  # ISO 8601, UTC; for people
    datasets: tuple[Described, ...]
    format: int = FORMAT
    entries: int = 0  # of the manifest's head: all of them
    content_bytes: int = 0
    moving: int = 0

    def dataset(self, name: str) -> Described | None:
        """The one of this name."""
        return next((one for one in self.datasets if one.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trailer:
    """The end of a package."""

    manifest_at: int  # where part 2 begins in the file
    content_decoded: int  # part 1
    manifest_decoded: int  # part 2
    manifest_offset: int  # of its lines, within part 2
    manifest_size: int
    whole: int  # of the file
    digest: bytes = field(default=b"", repr=False)  # over the file but its last DIGEST_BYTES
    version: int = FORMAT

    def unsealed(self) -> bytes:
        """Its bytes without the digest."""
        numbers = (self.manifest_at, self.content_decoded, self.manifest_decoded, self.manifest_offset)
        fields = _FIELDS.pack(self.version, *numbers, self.manifest_size, self.whole)
        return _FRAME.pack(_SKIPPABLE, _BODY_BYTES) + _MAGIC + fields


def blake2b() -> Any:
    """The hash of everything here."""
    return hashlib.blake2b(digest_size=DIGEST_BYTES)


def read_trailer(data: bytes) -> Trailer:
    """From the last TRAILER_BYTES of a file. Raises Refused."""
    frame = _FRAME.pack(_SKIPPABLE, _BODY_BYTES) + _MAGIC
    if len(data) != TRAILER_BYTES or not data.startswith(frame):
        raise damaged("it has no end: it was cut off, or is no package of this program")
    version, *numbers = _FIELDS.unpack_from(data, len(frame))
    require_format(version)
    if any(number > NUMBER_MAX for number in numbers):
        raise damaged("a size is out of range")
    return Trailer(
        manifest_at=numbers[0],
        content_decoded=numbers[1],
        manifest_decoded=numbers[2],
        manifest_offset=numbers[3],
        manifest_size=numbers[4],
        whole=numbers[5],
        digest=data[-DIGEST_BYTES:],
        version=version,
    )


def require_format(version: int) -> None:
    """Raises Refused for a format that is none or is newer than this program."""
    if not 1 <= version <= FORMAT:
        raise Refused(
            "refused the package",
            reason=f"format {version}, this program reads up to {FORMAT}",
            hint="restore it with the version that made it, or a newer one",
        )


def damaged(reason: str) -> Refused:
    """The package is not what was once written."""
    return Refused("refused the package", reason=reason, hint="nothing was touched; take another copy of it")


# ---- lines of the manifest


def head_line(head: Head) -> bytes:
    """The first line."""
    return _line(
        {
            "format": head.format,
            "made_by": head.made_by,
            "cluster_id": head.cluster_id,
            "node_id": head.node_id,
            "node": head.node,
            "role": head.role,
            "epoch": head.epoch,
            "model": head.model,
            "firmware": head.firmware,
            "created": head.created,
            "entries": head.entries,
            "content_bytes": head.content_bytes,
            "moving": head.moving,
            "datasets": [_described_out(one) for one in head.datasets],
        }
    )


def entry_line(entry: Entry) -> bytes:
    """A line for an entry; what is empty is left out."""
    values: dict[str, object] = {
        "dataset": entry.dataset,
        "path": text_of(entry.path),
        "type": entry.type.value,
        "offset": entry.offset,
        "size": entry.size,
        "blake2b": entry.digest.hex(),
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime_ns": entry.mtime_ns,
    }
    if entry.xattrs:
        values["xattrs"] = entry.xattrs.hex()
    if entry.target:
        values["target"] = text_of(entry.target)
    if entry.moving:
        values["moving"] = True
    return _line(values)


def end_line(entries: int) -> bytes:
    """The last line."""
    return _line({"end": entries})


def parse_head(line: bytes) -> Head:
    """Raises Refused."""
    values = _parsed(line)
    try:
        require_format(_number(values["format"]))
        datasets = values["datasets"]
        if not isinstance(datasets, list) or len(datasets) > DATASETS_MAX:
            raise damaged("its list of datasets is none")
        head = Head(
            format=_number(values["format"]),
            made_by=_text(values["made_by"]),
            cluster_id=_text(values["cluster_id"]),
            node_id=_text(values["node_id"]),
            node=_text(values["node"]),
            role=_text(values["role"]),
            epoch=_number(values["epoch"]),
            model=_text(values["model"]),
            firmware=_text(values["firmware"]),
            created=_text(values["created"]),
            entries=_number(values["entries"]),
            content_bytes=_number(values["content_bytes"]),
            moving=_number(values["moving"]),
            datasets=tuple(_described_in(one) for one in datasets),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(f"its head cannot be read: {error!r}") from error
    if len({one.name for one in head.datasets}) != len(head.datasets):
        raise damaged("a dataset stands twice in its head")
    return head


def parse_entry(line: bytes) -> Entry | int:
    """An entry, or of the last line the number of entries. Raises Refused."""
    values = _parsed(line)
    try:
        if "end" in values:
            return _number(values["end"])
        return Entry(
            dataset=_text(values["dataset"]),
            path=bytes_of(_text(values["path"])),
            type=EntryType(values["type"]),
            offset=_number(values["offset"]),
            size=_number(values["size"]),
            digest=bytes.fromhex(_text(values["blake2b"])),
            mode=_number(values["mode"]),
            uid=_number(values["uid"]),
            gid=_number(values["gid"]),
            mtime_ns=_whole(values["mtime_ns"]),
            xattrs=bytes.fromhex(_text(values.get("xattrs", ""))),
            target=bytes_of(_text(values.get("target", ""))),
            moving=values.get("moving", False) is True,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise damaged(f"a line of its manifest cannot be read: {error!r}") from error


def text_of(data: bytes) -> str:
    """Bytes of a path as text that gives the same bytes back, whatever they are."""
    return data.decode("utf-8", "surrogateescape")


def bytes_of(text: str) -> bytes:
    """The reverse."""
    return text.encode("utf-8", "surrogateescape")


def split_lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Lines of a stream of pieces; none is longer than LINE_MAX. Raises Refused."""
    rest = b""
    for piece in pieces:
        rest += piece
        *lines, rest = rest.split(b"\n")
        yield from lines
        if len(rest) > LINE_MAX:
            raise damaged("a line of its manifest is too long")
    if rest:
        raise damaged("its manifest ends within a line")


def _line(values: dict[str, object]) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode("ascii") + b"\n"


def _parsed(line: bytes) -> dict[str, Any]:
    if len(line) > LINE_MAX:
        raise damaged("a line of its manifest is too long")
    try:
        values = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise damaged("a line of its manifest cannot be read") from error
    if not isinstance(values, dict):
        raise damaged("a line of its manifest is none")
    return values


def _described_out(one: Described) -> dict[str, object]:
    values: dict[str, object] = {
        "name": one.name,
        "kind": one.kind,
        "position": one.position,
        "present": one.present,
        "notes": list(one.notes),
    }
    if one.schema is not None:
        schema = one.schema
        values["schema"] = {
            "user_version": schema.user_version,
            "application_id": schema.application_id,
            "digest": schema.digest,
        }
    return values


def _described_in(values: dict[str, Any]) -> Described:
    schema = values.get("schema")
    return Described(
        name=_text(values["name"]),
        kind=_text(values["kind"]),
        position=_text(values["position"]),
        present=values["present"] is True,
        notes=tuple(_text(note) for note in values["notes"]),
        schema=None
        if schema is None
        else Schema(
            user_version=_whole(schema["user_version"]),
            application_id=_whole(schema["application_id"]),
            digest=_text(schema["digest"]),
        ),
    )


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _whole(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -NUMBER_MAX <= value <= NUMBER_MAX:
        raise TypeError(f"{value!r} is no number that can be")
    return value


def _number(value: object) -> int:
    number = _whole(value)
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number
