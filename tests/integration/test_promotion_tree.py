"""A promotion finishes what the dead node left half done in a tree (DESIGN 7a)."""

from __future__ import annotations

# ruff: noqa: ASYNC240 - the tests look at small files while nothing else runs
import io
import os
import wave
from pathlib import Path

import pytest

from ha_sync.config import Hold
from tests.support.tree_apply_feed import Standby, directory, grow, put, settings, standby, tree_of
from tests.unit.test_wav_header import pcm

pytestmark = pytest.mark.req("R26")


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


@pytest.fixture
def catalogue(tmp_path: Path) -> str:
    return str(tmp_path / "catalogue.db")


async def promoted(node: Standby) -> list[tuple[str, str]]:
    finished = await node.sink.promote()
    await node.sink.close()
    return sorted((item.what, item.subject) for item in finished)


async def test_a_recording_that_grew_is_published_and_plays(root: str, catalogue: str) -> None:
    node = await standby(settings(root, growing=True), catalogue)
    sound = os.urandom(2 * 32768)
    await node.group(directory(b"2026"), grow(b"2026/r.wav", 0, pcm(sound[:32768], data=0, riff=0), mode=0o640))
    await node.group(grow(b"2026/r.wav", 44 + 32768, sound[32768:], mode=0o640))
    assert await promoted(node) == [
        ("interrupted recording published", "2026/r.wav"),
        ("recording header repaired", "2026/r.wav"),
    ]
    kind, mode, content = tree_of(root)["2026/r.wav"]  # type: ignore[misc]
    assert (kind, mode) == ("file", 0o640)
    with wave.open(io.BytesIO(content)) as played:
        assert played.readframes(played.getnframes()) == sound
    assert not {".ha-stage", ".ha-partial", ".ha-held"} & set(os.listdir(root))


async def test_a_recording_that_came_whole_with_an_open_header_plays(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    broken, whole = pcm(b"ab" * 500, data=0, riff=0), pcm(b"cd" * 500)
    old = put(b"old.wav", broken, mtime_ns=1_600_000_000_000_000_000)
    await node.group(put(b"new.wav", broken), put(b"whole.wav", whole), old)
    finished = await node.sink.promote()
    await node.sink.close()
    assert [(item.what, item.subject) for item in finished] == [("recording header repaired", "new.wav")]
    assert broken[:44].hex() in finished[0].detail
    found = tree_of(root)
    assert found["new.wav"] == ("file", 0o644, pcm(b"ab" * 500))
    assert found["whole.wav"] == ("file", 0o644, whole)
    assert found["old.wav"] == ("file", 0o644, broken)


async def test_voicemail_locks_and_leftovers_are_gone_and_messages_stay(root: str, catalogue: str) -> None:
    node = await standby(settings(root, mailboxes=True), catalogue)
    box = b"default/100/INBOX"
    await node.group(
        *(directory(path) for path in (b"default", b"default/100", box)),
        put(box + b"/msg0000.wav", b"sound", unit=1),
        put(box + b"/msg0000.txt", b"text", unit=1),
        put(box + b"/msg0001.wav", b"without text"),
        put(b"default/100/unavail.wav", b"greeting"),
    )
    Path(root, "default/100/INBOX/.lock-1234").write_text("")
    os.link(f"{root}/default/100/INBOX/.lock-1234", f"{root}/default/100/INBOX/.lock")
    Path(root, "default/100/tmp").mkdir()
    Path(root, "default/100/tmp/abcdef.wav").write_text("left over")
    assert await promoted(node) == [
        ("stale voicemail lock removed", "default/100/INBOX/.lock"),
        ("stale voicemail lock removed", "default/100/INBOX/.lock-1234"),
        ("unfinished voicemail removed", "default/100/tmp/abcdef.wav"),
        ("voicemail without its text removed", "default/100/INBOX/msg0001.wav"),
    ]
    assert {path for path, value in tree_of(root).items() if value[0] == "file"} == {  # type: ignore[index]
        "default/100/INBOX/msg0000.wav",
        "default/100/INBOX/msg0000.txt",
        "default/100/unavail.wav",
    }


@pytest.mark.parametrize("hold", [Hold.RELEASE, Hold.KEEP])
async def test_call_files_are_released_or_kept_as_configured(root: str, catalogue: str, hold: Hold) -> None:
    node = await standby(settings(root, hold=("out/*",), hold_at_promotion=hold), catalogue)
    await node.group(directory(b"out"), put(b"out/1.call", b"dial"))
    assert not Path(root, "out/1.call").exists()
    finished = await promoted(node)
    assert finished == [(f"call file {'released' if hold is Hold.RELEASE else 'kept aside'}", "out/1.call")]
    assert Path(root, "out/1.call").exists() == (hold is Hold.RELEASE)
    assert Path(root, ".ha-held/out/1.call").exists() == (hold is Hold.KEEP)


async def test_call_files_of_a_former_active_are_set_aside(root: str, catalogue: str) -> None:
    os.makedirs(f"{root}/out")
    Path(root, "out/old.call").write_text("dial")
    node = await standby(settings(root, hold=("out/*",)), catalogue)
    assert b"out/old.call" in await node.inventory()
    assert not Path(root, "out/old.call").exists()
    assert await promoted(node) == [("call file kept aside", "out/old.call")]


async def test_a_group_that_was_received_in_part_is_not_published(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    await node.group(put(b"x", b"1"))
    await node.send(put(b"x", b"2"), end=False)
    assert await promoted(node) == []
    assert tree_of(root) == {"x": ("file", 0o644, b"1")}


async def test_a_second_promotion_finds_nothing_to_do(root: str, catalogue: str) -> None:
    node = await standby(settings(root, growing=True), catalogue)
    await node.group(grow(b"r.wav", 0, pcm(b"ab" * 50, data=0, riff=0)))
    assert await promoted(node)
    before = tree_of(root)
    node = await standby(settings(root, growing=True), catalogue, begin=False)
    assert await promoted(node) == []
    assert tree_of(root) == before


async def test_detaching_leaves_the_tree_and_nothing_of_ours(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    await node.group(put(b"x", b"1"))
    await node.group(put(b"x", b"2"))
    removed = await node.sink.detach()
    await node.sink.close()
    assert {os.path.basename(path) for path in removed} == {".ha-stage", ".ha-partial", ".ha-trash", ".ha-dataset"}
    assert os.listdir(root) == ["x"]
