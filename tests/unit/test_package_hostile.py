"""Packages that no correct program writes, and damaged ones: refused, with nothing written and nothing allocated."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ha_sync.backup.package import format as form
from ha_sync.backup.package.format import (
    PIECE_BYTES,
    TRAILER_BYTES,
    Described,
    Entry,
    EntryType,
    Head,
    Trailer,
    blake2b,
    entry_line,
)
from ha_sync.backup.package.reader import Package
from ha_sync.backup.package.writer import PackageWriter
from ha_sync.errors import Refused
from ha_sync.files.metadata import encode_xattrs
from tests.support.package_site import HEAD, Site, nothing

TREE = Described(name="files", kind="tree", position="")
DATABASE = Described(name="config", kind="sqlite", position="")


def digest(content: bytes) -> bytes:
    found = blake2b()
    found.update(content)
    return bytes(found.digest())


def entry(path: bytes, kind: EntryType = EntryType.FILE, content: bytes = b"", **changes: object) -> Entry:
    plain = Entry(
        dataset="files", path=path, type=kind, offset=0, size=len(content), digest=digest(content), mode=0o644,
        uid=0, gid=0, mtime_ns=0,
    )  # fmt: skip
    return replace(plain, **changes)  # type: ignore[arg-type]


ROOT = entry(b"", EntryType.DIRECTORY)


def link(path: bytes, target: bytes) -> Entry:
    return entry(path, EntryType.SYMLINK, target=target, digest=digest(target))


class Forger(PackageWriter):
    """Writes a manifest that says something else than what is there."""

    def forge(self, real: Entry, content: bytes, told: Callable[[Entry], bytes]) -> None:
        at = self._lines.tell()
        self.add(real, [content])
        self._lines.seek(at)
        written = form.parse_entry(self._lines.read().rstrip(b"\n"))
        assert isinstance(written, Entry)
        self._lines.seek(at)
        self._lines.truncate()
        self._lines.write(told(written))


def forged(
    *parts: Entry | tuple[Entry, bytes, Callable[[Entry], bytes]],
    datasets: tuple[Described, ...] = (TREE,),
    head: Head = HEAD,
    tmp: str = ".",
) -> bytes:
    out = io.BytesIO()
    with Forger(out, head, spool_dir=tmp) as writer:
        for part in parts:
            if isinstance(part, Entry):
                writer.add(part, [b""] if not part.size else [bytes(part.size)])
            else:
                writer.forge(part[0], part[1], part[2])
        writer.finish(head, datasets)
    return out.getvalue()


def told_as(**changes: object) -> Callable[[Entry], bytes]:
    return lambda real: entry_line(replace(real, **changes))  # type: ignore[arg-type]


def refused(folder: Path, content: bytes) -> str:
    path = folder / "package"
    path.write_bytes(content)
    with pytest.raises(Refused) as caught, Package(str(path)) as package:
        package.verify(nothing)
    return str(caught.value)


FILE = entry(b"f", content=b"12345")
BODY = b"12345"
HOSTILE: dict[str, tuple[object, ...]] = {
    "leads outside": (ROOT, entry(b"../passwd")),
    "leads outside, within": (ROOT, entry(b"a", EntryType.DIRECTORY), entry(b"a/../../passwd")),
    "absolute": (ROOT, entry(b"/etc/passwd")),
    "an empty name": (ROOT, entry(b"a", EntryType.DIRECTORY), entry(b"a//b")),
    "a dot": (ROOT, entry(b"./a")),
    "a name that is too long": (ROOT, entry(b"a" * 256)),
    "one of our hidden places": (ROOT, entry(b".ha-restore", EntryType.DIRECTORY)),
    "twice": (ROOT, entry(b"a"), entry(b"a")),
    "out of order": (ROOT, entry(b"b"), entry(b"a")),
    "below a symlink": (ROOT, link(b"a", b"/etc"), entry(b"a/passwd")),
    "below a file": (ROOT, entry(b"a"), entry(b"a/b")),
    "below nothing": (ROOT, entry(b"a/b")),
    "no root": (entry(b"a"),),
    "a second root": (ROOT, ROOT),
    "a symlink as the root": (link(b"", b"/etc"),),
    "a database within a tree": (ROOT, entry(b"a", EntryType.DATABASE)),
    "of no dataset": (ROOT, entry(b"a", dataset="other")),
    "a mode that cannot be": (ROOT, entry(b"a", mode=0o10000)),
    "an owner that cannot be": (ROOT, entry(b"a", uid=2**32)),
    "an attribute of the node": (ROOT, entry(b"a", xattrs=encode_xattrs([("security.selinux", b"x")]))),
    "attributes that are none": (ROOT, entry(b"a", xattrs=b"\xff")),
    "a symlink to nothing": (ROOT, entry(b"a", EntryType.SYMLINK)),
    "a target with a zero": (ROOT, link(b"a", b"x\0y")),
    "a target of a file": (ROOT, entry(b"a", target=b"x")),
    "another hash": (ROOT, (FILE, BODY, told_as(digest=digest(b"x")))),
    "a hash that is too short": (ROOT, (FILE, BODY, told_as(digest=b"x"))),
    "more than it says": (ROOT, (FILE, BODY, told_as(size=4, digest=digest(b"1234")))),
    "less than it says": (ROOT, (FILE, BODY, told_as(size=2**40))),
    "somewhere else": (ROOT, (FILE, BODY, told_as(offset=0))),
    "beyond the end": (ROOT, (FILE, BODY, told_as(offset=2**62))),
    "content of a folder": (ROOT, (entry(b"d", EntryType.DIRECTORY), b"", told_as(size=5))),
    "a device": (ROOT, (FILE, BODY, lambda real: entry_line(real).replace(b'"file"', b'"device"'))),
    "a number that is none": (ROOT, (FILE, BODY, lambda real: entry_line(real).replace(b'"size":5', b'"size":"5"'))),
    "a number that is true": (ROOT, (FILE, BODY, lambda real: entry_line(real).replace(b'"uid":0', b'"uid":true'))),
    "no line": (ROOT, (FILE, BODY, lambda _: b"[" * 100_000 + b"\n")),
    "a line that is too long": (ROOT, (FILE, BODY, lambda _: b'{"x":"' + b"a" * 600_000 + b'"}\n')),
    "no manifest's line": (ROOT, (FILE, BODY, lambda _: b"")),
    "an end too early": (ROOT, (FILE, BODY, lambda _: form.end_line(1))),
}


@pytest.mark.req("R24")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_package_is_refused(name: str, tmp_path: Path) -> None:
    content = forged(*HOSTILE[name], tmp=str(tmp_path))  # type: ignore[arg-type]
    assert "refused the package" in refused(tmp_path, content)


@pytest.mark.req("R24")
def test_what_is_not_hostile_is_not_refused(tmp_path: Path) -> None:
    """So that the tests above do not pass for another reason."""
    path = tmp_path / "package"
    folder, empty, target = entry(b"a", EntryType.DIRECTORY), entry(b"a/b"), link(b"l", b"/etc")
    path.write_bytes(forged(ROOT, folder, empty, (FILE, BODY, entry_line), target, tmp=str(tmp_path)))
    with Package(str(path)) as package:
        assert package.verify(nothing).entries == 5


@pytest.mark.req("R24")
@pytest.mark.parametrize(
    ("datasets", "reason"),
    [
        ((TREE, DATABASE), "missing or not announced"),
        ((replace(TREE, present=False),), "missing or not announced"),
        ((TREE, TREE), "twice"),
        ((replace(TREE, kind="table"),), "kind 'table'"),
        ((replace(TREE, kind="sqlite"),), "a database is one file"),
    ],
)
def test_a_head_that_does_not_fit_its_entries_is_refused(
    datasets: tuple[Described, ...], reason: str, tmp_path: Path
) -> None:
    assert reason in refused(tmp_path, forged(ROOT, datasets=datasets, tmp=str(tmp_path)))


@pytest.mark.req("R24")
@pytest.mark.parametrize("version", [0, 2, 2**31])
def test_an_unknown_format_is_refused(version: int, tmp_path: Path) -> None:
    newer = forged(ROOT, head=replace(HEAD, format=version), tmp=str(tmp_path))
    assert f"format {version}" in refused(tmp_path, newer)
    assert f"format {version}" in refused(tmp_path, resealed(forged(ROOT, tmp=str(tmp_path)), version=version))


def resealed(content: bytes, **changes: object) -> bytes:
    """With another trailer, whose hash is right."""
    body = content[:-TRAILER_BYTES]
    trailer = replace(form.read_trailer(content[-TRAILER_BYTES:]), **changes)  # type: ignore[arg-type]
    sealed = body + trailer.unsealed()
    return sealed + digest(sealed)


@pytest.mark.req("R24")
@pytest.mark.parametrize(
    "changes",
    [
        {"whole": 5},
        {"manifest_at": 0},
        {"manifest_at": 2**40},
        {"manifest_at": 7},
        {"manifest_size": 2**50, "manifest_decoded": 2**51},
        {"manifest_size": 10},
        {"manifest_offset": 2**40},
        {"manifest_decoded": 10},
        {"content_decoded": 10},
        {"content_decoded": 2**50},
    ],
)
def test_a_trailer_that_lies_is_refused(changes: dict[str, object], tmp_path: Path) -> None:
    content = forged(ROOT, entry(b"a"), tmp=str(tmp_path))
    assert "refused" in refused(tmp_path, resealed(content, **changes))


def bomb(size: int) -> bytes:
    """Zeros, hardly anything once compressed."""
    compressor = zstandard.ZstdCompressor(level=3).compressobj()
    pieces = [compressor.compress(bytes(PIECE_BYTES)) for _ in range(size // PIECE_BYTES)]
    return b"".join([*pieces, compressor.flush()])


@pytest.mark.req("R24")
def test_no_more_is_decoded_than_was_announced(tmp_path: Path) -> None:
    content = forged(ROOT, entry(b"a"), tmp=str(tmp_path))
    trailer = form.read_trailer(content[-TRAILER_BYTES:])
    first, second = content[: trailer.manifest_at], content[trailer.manifest_at : -TRAILER_BYTES]
    large = bomb(1 << 30)
    assert len(large) < 1 << 20

    def put_together(one: bytes, two: bytes, **changes: object) -> bytes:
        whole = len(one) + len(two) + TRAILER_BYTES
        told = replace(trailer, manifest_at=len(one), whole=whole, **changes)  # type: ignore[arg-type]
        sealed = one + two + told.unsealed()
        return sealed + digest(sealed)

    read = Counted()
    for case in (put_together(large, second), put_together(first, large), put_together(large, large)):
        path = tmp_path / "package"
        path.write_bytes(case)
        with pytest.raises(Refused), Package(str(path)) as package:
            package.verify(read)
        read.content -= len(case)
    assert read.content < 1 << 20, "nothing of the gigabytes was taken as content"
    as_announced = put_together(large, second, content_decoded=1 << 30)
    assert "content that its manifest does not name" in refused(tmp_path, as_announced)


class Counted:
    content = 0

    def __call__(self, count: int) -> None:
        self.content += count


@pytest.mark.req("R24")
@given(data=st.data())
def test_a_package_with_any_byte_changed_or_missing_is_refused(data: st.DataObject, tmp_path_factory: object) -> None:
    path, whole = example(tmp_path_factory)
    if data.draw(st.booleans(), label="cut"):
        content = whole[: data.draw(st.integers(0, len(whole) - 1), label="length")]
    else:
        at = data.draw(st.integers(0, len(whole) - 1), label="at")
        content = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255), label="with")]) + whole[at + 1 :]
    path.write_bytes(content)
    with pytest.raises(Refused), Package(str(path)) as package:
        package.verify(nothing)


@pytest.mark.req("R24")
@given(data=st.data())
def test_a_package_whose_hash_is_right_and_whose_content_is_not_never_does_harm(
    data: st.DataObject, tmp_path_factory: object
) -> None:
    """Whoever can compute a hash can forge one: what is decoded is judged all the same."""
    path, whole = example(tmp_path_factory)
    at = data.draw(st.integers(0, len(whole) - TRAILER_BYTES - 1), label="at")
    changed = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255), label="with")]) + whole[at + 1 :]
    path.write_bytes(resealed(changed))
    try:
        with Package(str(path)) as package:
            package.verify(nothing)
    except Refused:
        pass


_EXAMPLE: dict[str, tuple[Path, bytes]] = {}


def example(factory: object) -> tuple[Path, bytes]:
    if "it" not in _EXAMPLE:
        folder = factory.mktemp("package")  # type: ignore[attr-defined]
        site = Site(str(folder / "node"))
        site.furnish(5)
        site.export()
        _EXAMPLE["it"] = (Path(folder, "changed"), Path(site.package).read_bytes())
    return _EXAMPLE["it"]


def test_the_trailer_has_the_size_that_is_read() -> None:
    plain = Trailer(manifest_at=1, content_decoded=2, manifest_decoded=3, manifest_offset=4, manifest_size=5, whole=6)
    data = plain.unsealed() + bytes(32)
    assert len(data) == TRAILER_BYTES
    assert replace(form.read_trailer(data), digest=b"") == plain
