"""A sender that lies changes nothing outside the root, and nothing inside before it is found out."""

from __future__ import annotations

# ruff: noqa: ASYNC221, ASYNC240 - the tests look at small files while nothing else runs
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.apply.tree.changes import decode
from ha_sync.core.frame import FRAME_PAYLOAD_MAX, Body, Frame
from ha_sync.core.position import Answer
from ha_sync.errors import ProtocolFault, Retryable
from tests.support.tree_apply_feed import (
    Part,
    at,
    copy,
    delete,
    directory,
    frame,
    grow,
    link,
    meta,
    put,
    put_blocks,
    standby,
    tree_of,
)
from tests.support.tree_apply_feed import settings as tree_settings


def changed(part: Part, **fields: object) -> Part:
    for name, value in fields.items():
        if name in {"blocks", "zero_blocks"}:
            getattr(part[0], name)[:] = value
        else:
            setattr(part[0], name, value)
    return part


def moved(*moves: tuple[int, int, int], **fields: object) -> Part:
    """A file of 300,000 bytes of which nothing comes but where it stands."""
    change, payload = put_blocks(b"a", bytes(300_000), (), **fields)
    change.moves.extend(pb.TreeMove(offset=offset, source=source, length=length) for offset, source, length in moves)
    return change, payload


BAD: list[Callable[[], Part]] = [
    lambda: moved((0, 0, 300_001)),
    lambda: moved((0, 0, 0)),
    lambda: moved((100, 0, 100), (150, 0, 100)),
    lambda: moved((0, 2**63, 100)),
    lambda: moved((0, 0, 100), copy_from=b"b"),
    lambda: moved((0, 0, 100), more=True),
    lambda: moved(*((number, 0, 1) for number in range(5000))),
    *(
        (lambda path=path: put(path, b"x"))  # type: ignore[misc]
        for path in (
            b"/etc/passwd", b"../x", b"a/../../x", b"a//b", b"./a", b"a/.", b"a\0b", b"x" * 256, b"a/" * 2100 + b"a",
            b".ha-stage/x", b".ha-dataset", b"d/.ha-partial", b"",
        )
    ),
    lambda: delete(b""),
    lambda: delete(b"../x"),
    lambda: copy(b"a", b"../../etc/passwd", b"x"),
    lambda: link(b"a", b""),
    lambda: link(b"a", b"x\0y"),
    lambda: link(b"a", b"x" * 5000),
    lambda: changed(put(b"a", b"x"), action=0),
    lambda: changed(put(b"a", b"x"), action=77),
    lambda: changed(put(b"a", b"x"), type=0),
    lambda: changed(put(b"a", b"x"), type=9),
    lambda: changed(put(b"a", b"x"), mode=0o10000),
    lambda: changed(put(b"a", b"x"), uid=2**32 - 1),
    lambda: changed(put(b"a", b"x"), mtime_ns=-(2**63)),
    lambda: changed(put(b"a", b"x"), hash=b"short"),
    lambda: changed(put(b"a", b"x"), size=1 << 62),
    lambda: changed(put(b"a", b"x"), size=1 << 45),
    lambda: changed(put(b"a", b"x"), block_size=0),
    lambda: changed(put(b"a", b"x"), block_size=3 * 128 * 1024),
    lambda: changed(put(b"a", b"x"), block_size=1 << 30),
    lambda: changed(put(b"a", b"x"), blocks=[1]),
    lambda: changed(put(b"a", b"x"), blocks=[]),
    lambda: changed(put(b"a", b"x"), blocks=[0, 0]),
    lambda: changed(put(b"a", b"x"), zero_blocks=[5]),
    lambda: changed(put(b"a", b"x"), offset=1),
    lambda: changed(put(b"a", b"x"), size=2),
    lambda: changed(put(b"a", b""), zero_blocks=[0]),
    lambda: (put(b"a", b"xyz")[0], b"xy"),
    lambda: (put(b"a", b"xyz")[0], b"xyz!"),
    lambda: (changed(directory(b"a"), payload_bytes=1)[0], b"x"),
    lambda: (changed(meta(b"a", mode=0o600), payload_bytes=1)[0], b"x"),
    lambda: (changed(delete(b"a"), payload_bytes=1)[0], b"x"),
    lambda: changed(grow(b"a", 0, b"x"), offset=1 << 62),
    lambda: changed(grow(b"a", 0, b"x"), type=2),
]  # fmt: skip


@pytest.mark.parametrize("number", range(len(BAD)))
def test_what_no_correct_peer_sends_is_refused_before_anything_is_done(number: int) -> None:
    with pytest.raises(ProtocolFault):
        decode(frame([put(b"before", b"1"), BAD[number]()], at(1)))


def test_too_large_and_foreign_frames_are_refused() -> None:
    large = Frame(position=at(1), kind=Body.TREE, body=b"", payload=bytes(FRAME_PAYLOAD_MAX + 1), group_end=True)
    rows = Frame(position=at(1), kind=Body.ROWS, body=b"", payload=b"", group_end=True)
    noise = Frame(position=at(1), kind=Body.TREE, body=b"\xff" * 9, payload=b"", group_end=True)
    for bad in (large, rows, noise):
        with pytest.raises(ProtocolFault):
            decode(bad)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200), payload=st.binary(max_size=20))
def test_no_bytes_whatever_raise_anything_else(body: bytes, payload: bytes) -> None:
    try:
        decode(Frame(position=at(1), kind=Body.TREE, body=body, payload=payload, group_end=True))
    except ProtocolFault:
        return
    pb.TreeChanges.FromString(body)


async def test_a_symlink_in_the_way_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "x").write_text("untouched")
    root = str(tmp_path / "root")
    node = await standby(tree_settings(root), str(tmp_path / "catalogue.db"))
    await node.group(link(b"d", os.fsencode(outside)))
    await node.group(put(b"d/x", b"evil"))
    assert tree_of(root)["d/x"] == ("file", 0o644, b"evil")
    await node.group(link(b"e", os.fsencode(outside)), meta(b"e", mode=0o777, kind=3), delete(b"e"))
    await node.group(link(b"f", os.fsencode(outside)))
    await node.group(delete(b"f/x"))
    assert (outside / "x").read_text() == "untouched"
    assert os.listdir(outside) == ["x"]
    await node.sink.close()


async def test_a_local_symlink_instead_of_our_own_directories_is_not_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    root = tmp_path / "root"
    root.mkdir()
    for name in (".ha-stage", ".ha-partial", ".ha-trash"):
        (root / name).symlink_to(outside)
    node = await standby(tree_settings(str(root)), str(tmp_path / "catalogue.db"))
    await node.group(put(b"x", b"1"), grow(b"y", 0, b"2"))
    await node.group(put(b"x", b"2"))
    assert os.listdir(outside) == []
    await node.sink.close()


async def test_pieces_that_do_not_fit_together_are_refused_and_nothing_is_published(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    node = await standby(tree_settings(root), str(tmp_path / "catalogue.db"))
    content = os.urandom(300_000)
    first = changed(put_blocks(b"f", content, [0]), more=True)
    for second in (
        put_blocks(b"f", content + b"!", [1, 2]),  # of other content
        changed(put_blocks(b"g", b"x" * 300_000, [0]), more=True),  # f is never finished
    ):
        node.failures.clear()
        await node.begin()
        await node.send(first, end=False)
        await node.send(second)
        await node.until(lambda: bool(node.failures))
        assert isinstance(node.failures[0], ProtocolFault)
        node.sequence = 0
    await node.begin()
    assert tree_of(root) == {}
    await node.sink.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[str]:
    place = tmp_path / "small"
    place.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if made.returncode:
        pytest.skip(f"cannot mount a small filesystem: {made.stderr.decode().strip()}")
    yield str(place)
    subprocess.run(["umount", str(place)], check=True)


async def test_a_full_disk_publishes_nothing_of_the_group_and_goes_on_when_there_is_room(
    small_disk: str, tmp_path: Path
) -> None:
    root = os.path.join(small_disk, "root")
    node = await standby(tree_settings(root), str(tmp_path / "catalogue.db"))
    await node.group(put(b"a", b"1"))
    Path(small_disk, "ballast").write_bytes(bytes(600_000))
    await node.group(put(b"a", b"2"), put(b"big", os.urandom(800_000)))
    assert isinstance(node.failures[0], Retryable)
    assert "disk full" in node.sink.report().reason
    assert node.sink.report().state.value == "waiting"
    assert tree_of(root) == {"a": ("file", 0o644, b"1")}
    os.unlink(os.path.join(small_disk, "ballast"))
    node.failures.clear()
    node.sequence = 1
    await node.begin()
    await node.group(put(b"a", b"2"), put(b"big", bytes(400_000)))
    assert not node.failures
    assert tree_of(root)["a"] == ("file", 0o644, b"2")
    await node.sink.close()


async def test_what_only_we_need_of_a_full_disk_goes_before_anybody_is_waited_for(
    small_disk: str, tmp_path: Path
) -> None:
    root = os.path.join(small_disk, "root")
    node = await standby(tree_settings(root), str(tmp_path / "catalogue.db"))
    await node.group(put(b"a", os.urandom(250_000)))
    await node.group(put(b"a", b"2"))  # what it was lies in the trash
    assert os.listdir(os.path.join(root, ".ha-trash"))
    group = (put(b"b", os.urandom(300_000)), put(b"c", os.urandom(300_000)), put(b"d", os.urandom(250_000)))
    await node.group(*group)
    assert "disk full" in node.sink.report().reason
    assert not os.listdir(os.path.join(root, ".ha-stage")) + os.listdir(os.path.join(root, ".ha-trash"))
    node.failures.clear()
    node.sequence = 2
    await node.begin()
    await node.group(*group)
    assert not node.failures
    assert set(tree_of(root)) == {"a", "b", "c", "d"}
    await node.sink.close()


async def test_below_a_mount_point_files_are_published_too(small_disk: str, tmp_path: Path) -> None:
    """A temporary file and its final name are on two filesystems: it is copied, synced and renamed."""
    root = tmp_path / "root"
    root.mkdir()
    node = await standby(tree_settings(str(root)), str(tmp_path / "catalogue.db"))
    (root / "m").mkdir()
    subprocess.run(["mount", "--bind", small_disk, str(root / "m")], check=True)
    try:
        await node.group(directory(b"m"), put(b"m/x", b"1" * 1000, mode=0o640), link(b"m/l", b"x"), directory(b"m/d"))
        await node.group(put(b"m/x", b"2"), put(b"m/d/y", b"3"))
        assert tree_of(str(root / "m")) == {
            "x": ("file", 0o644, b"2"),
            "l": ("link", "x"),
            "d": ("directory", 0o755),
            "d/y": ("file", 0o644, b"3"),
        }
        await node.group(delete(b"m/d"), delete(b"m/l"))
        assert set(tree_of(str(root / "m"))) == {"x"}
        assert not node.failures
        await node.begin(Answer.COMPARE)
        assert b"m/x" in await node.inventory()
    finally:
        await node.sink.close()
        subprocess.run(["umount", str(root / "m")], check=True)


async def test_a_read_only_disk_is_a_reason_and_recovers(small_disk: str, tmp_path: Path) -> None:
    root = os.path.join(small_disk, "root")
    node = await standby(tree_settings(root), str(tmp_path / "catalogue.db"))
    await node.group(put(b"a", b"1"))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    await node.group(put(b"a", b"2"))
    assert node.sink.report().state.value == "failed"
    assert "Read-only" in node.sink.report().reason
    subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    node.failures.clear()
    node.sequence = 1
    await node.begin()
    await node.group(put(b"a", b"2"))
    assert tree_of(root)["a"] == ("file", 0o644, b"2")
    await node.sink.close()


@pytest.mark.req("R22")
async def test_a_symlink_where_the_active_has_a_directory_gives_way_without_a_delete(tmp_path: Path) -> None:
    # After a crash the Active sends everything it cannot be sure of, and does not know what stands here.
    (tmp_path / "elsewhere").mkdir()
    node = await standby(tree_settings(str(tmp_path / "root")), str(tmp_path / "catalogue.db"))
    try:
        await node.group(link(b"d", bytes(tmp_path / "elsewhere")))
        await node.group(directory(b"d"), directory(b"d/sub"), put(b"d/sub/file", b"x" * 10), link(b"d/link", b"x"))
        assert not node.failures
        assert (tmp_path / "root/d/sub/file").read_bytes() == b"x" * 10
        assert not (tmp_path / "root/d").is_symlink()
        assert os.listdir(tmp_path / "elsewhere") == []
    finally:
        await node.sink.close()
