"""Two trees compared by ranges: every difference and nothing else, wherever the ranges are cut."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_sync.backup.full.looking import TreeLook
from ha_sync.catalogue.tree import TYPE_DIRECTORY, TYPE_FILE, key_of, path_of
from ha_sync.config import TreeSettings
from ha_sync.core.compare import Seen, digest_of, fault_between, merged, record_of
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.core.examine import Fault
from ha_sync.files.blocks import content_of

pytestmark = pytest.mark.req("R23")

NAMES = st.sampled_from([b"a", b"a-b", b"a.b", b"b", b"\xff", b"\xc3\xa4", b" ", b"z" * 40])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(b"/".join)
SEEN = st.builds(
    Seen,
    key=PATHS.map(key_of),
    type=st.sampled_from([TYPE_FILE, TYPE_DIRECTORY]),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2),
    mtime_ns=st.integers(-(2**62), 2**62),
    size=st.integers(0, 2**40),
    hash=st.sampled_from([b"", bytes(16), b"h" * 16]),
    link_target=st.sampled_from([b"", b"x", b"xy"]),
    xattrs=st.sampled_from([b"", b"x", b"yx"]),
    unreadable=st.booleans(),
)


def in_order(entries: list[Seen]) -> list[Seen]:
    return sorted({entry.key: entry for entry in entries}.values())


@given(st.lists(SEEN, max_size=12), st.lists(SEEN, max_size=12))
def test_merging_names_exactly_what_differs(ours: list[Seen], theirs: list[Seen]) -> None:
    one, other = in_order(ours), in_order(theirs)
    here, there = {e.key: e for e in one}, {e.key: e for e in other}
    wanted = {key for key in here | there if here.get(key) != there.get(key)}
    found = list(merged(one, other))
    assert [(a or b).key for a, b in found if a or b] == sorted(wanted)
    for a, b in found:
        key = (a or b).key  # type: ignore[union-attr]
        assert (a, b) == (here.get(key), there.get(key))
        fault = fault_between(a, b)
        assert fault is not None
        assert (fault is Fault.MISSING) == (b is None)
        assert (fault is Fault.SURPLUS) == (a is None)


@given(st.lists(SEEN, max_size=8), st.lists(SEEN, max_size=8))
def test_digests_are_equal_where_the_ranges_are(ours: list[Seen], theirs: list[Seen]) -> None:
    assert (digest_of(ours) == digest_of(theirs)) == (ours == theirs)


@given(st.lists(SEEN, min_size=1, max_size=6))
def test_no_two_lists_of_entries_have_the_same_records(entries: list[Seen]) -> None:
    joined = b"".join(map(record_of, entries))
    for cut in range(len(entries)):
        assert b"".join(map(record_of, entries[:cut])) != joined


def made(root: str, paths: list[bytes]) -> None:
    for path in paths:
        full = os.path.join(os.fsencode(root), path)
        try:
            os.makedirs(os.path.dirname(full), exist_ok=True)
            if not os.path.isdir(full):
                Path(os.fsdecode(full)).write_bytes(path * 3)
        except (FileExistsError, NotADirectoryError):
            continue  # a file stands where this path wants a directory


def settings(root: str, **more: tuple[str, ...]) -> TreeSettings:
    return TreeSettings(name=DatasetName("t"), path=root, priority=Priority.CDR, **more)  # type: ignore[arg-type]


def keys_on_disk(root: str) -> list[bytes]:
    found = [b""]
    for folder, directories, files in os.walk(os.fsencode(root)):
        found += [
            key_of(os.path.relpath(os.path.join(folder, name), os.fsencode(root))) for name in directories + files
        ]
    return sorted(found)


@given(st.lists(PATHS, max_size=25), st.lists(PATHS, min_size=2, max_size=2))
def test_a_walk_from_anywhere_to_anywhere_gives_that_part_of_the_tree(paths: list[bytes], ends: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as root:
        made(root, paths)
        every = keys_on_disk(root)
        look = TreeLook(settings(root), standby=False)
        try:
            assert [key for key, _ in look.between(None, b"")] == every
            after, until = sorted(key_of(end) for end in ends)
            assert [key for key, _ in look.between(after, until)] == [key for key in every if after < key <= until]
            # Where the last walk was left it goes on, and nothing is lost or said twice.
            assert [key for key, _ in look.between(until, b"")] == [key for key in every if key > until]
        finally:
            look.close()


@given(st.lists(PATHS, min_size=1, max_size=20))
def test_what_is_seen_is_what_is_on_disk(paths: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as root:
        made(root, paths)
        look = TreeLook(settings(root), standby=False)
        try:
            seen = list(look.see(look.between(None, b""), content=True))
            named = list(look.see(look.at([path_of(entry.key) for entry in seen]), content=True))
            items = list(look.between(None, b""))
            for content in (True, False):
                assert look.digest(items, content=content) == digest_of(look.see(items, content=content))
        finally:
            look.close()
        assert named == seen
        for entry in seen:
            full = os.path.join(os.fsencode(root), path_of(entry.key))
            if entry.type == TYPE_FILE:
                content = Path(os.fsdecode(full)).read_bytes()
                assert (entry.size, entry.hash) == (len(content), content_of(content).hash)


def test_large_files_have_the_hash_that_the_catalogue_knows(tmp_path: Path) -> None:
    for size in (0, 1, 128 * 1024 - 1, 128 * 1024, 128 * 1024 + 1, 3 * 1024 * 1024 + 7):
        (tmp_path / f"f{size}").write_bytes(os.urandom(size))
    look = TreeLook(settings(str(tmp_path)), standby=False)
    seen = {entry.key: entry for entry in look.see(look.between(None, b""), content=True)}
    for path in tmp_path.iterdir():
        content = content_of(path.read_bytes())
        assert (seen[os.fsencode(path.name)].size, seen[os.fsencode(path.name)].hash) == (content.size, content.hash)
        _, other_blocks = look.content_in_blocks(os.fsencode(path.name), content.block_size * 2)
        assert (other_blocks == content.hash) == (content.size <= content.block_size)
    look.close()


def test_what_is_not_replicated_is_not_seen_and_held_files_have_their_own_paths(tmp_path: Path) -> None:
    for path in ("keep", "out/kept", "tmp/x", ".ha-trash/y", ".ha-held/calls/one", "calls/stray", "local/z"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
    rules = settings(str(tmp_path), exclude=("tmp",), node_local=("local",), hold=("calls/*",))
    standby = TreeLook(rules, standby=True)
    seen = {path_of(key) for key, _ in standby.between(None, b"")}
    assert seen == {b"", b"keep", b"out", b"out/kept", b"calls", b"calls/one"}
    assert [path_of(key) for key, _ in standby.at([b"tmp/x", b"local/z", b".ha-trash/y", b"calls/one"])] == [
        b"calls/one"
    ]
    standby.close()
    active = TreeLook(rules, standby=False)
    seen = {path_of(key) for key, _ in active.between(None, b"")}
    assert seen == {b"", b"keep", b"out", b"out/kept", b"calls", b"calls/stray"}
    active.close()


def test_a_look_leaves_the_time_of_access_alone_where_it_may(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 1000)
    os.utime(tmp_path / "f", ns=(1, 2))  # so old that a read would renew it
    look = TreeLook(settings(str(tmp_path)), standby=False)
    (_, seen) = look.see(look.between(None, b""), content=True)
    look.close()
    assert seen.hash == content_of(b"x" * 1000).hash
    assert os.stat(tmp_path / "f").st_atime_ns == 1


def test_a_look_leaves_no_descriptor_open(tmp_path: Path) -> None:
    made(str(tmp_path), [b"a/b/c/d", b"a/x", b"e"])
    before = len(os.listdir("/proc/self/fd"))
    look = TreeLook(settings(str(tmp_path)), standby=False)
    next(look.between(None, b""))
    look.cut(b"a\0b")
    list(look.see(look.at([b"a/b/c/d", b"e"]), content=True))
    look.close()
    assert len(os.listdir("/proc/self/fd")) == before
