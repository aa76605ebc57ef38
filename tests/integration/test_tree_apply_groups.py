"""Groups of changes on a real directory: whole or not at all, verified, durable, in order."""

# ruff: noqa: ASYNC230, ASYNC240 - the tests look at small files while nothing else runs

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ha_sync.core.frame import Body, Frame
from ha_sync.core.position import Answer
from ha_sync.errors import Fenced, OperatorNeeded, ProtocolFault, RepairNeeded
from tests.support.tree_apply_feed import (
    T0,
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
    settings,
    standby,
    tree_of,
)

MIB = 1024 * 1024


@pytest.fixture
def root(tmp_path: Path) -> str:
    return str(tmp_path / "root")


@pytest.fixture
def catalogue(tmp_path: Path) -> str:
    return str(tmp_path / "state" / "catalogue.db")


def staged(root: str) -> list[str]:
    return os.listdir(os.path.join(root, ".ha-stage"))


@pytest.mark.req("R22")
async def test_a_tree_arrives_with_content_modes_and_times(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    await node.group(
        directory(b"", mode=0o751, mtime_ns=T0 + 7),
        directory(b"a", mode=0o750, mtime_ns=T0 + 5),
        put(b"a/x", b"hello", mode=0o640, mtime_ns=T0 + 3),
        put(b"a/empty", b""),
        link(b"a/l", b"../elsewhere"),
        put(b"big", os.urandom(MIB)),
    )
    assert tree_of(root) | {"big": 0} == {
        "a": ("directory", 0o750),
        "a/x": ("file", 0o640, b"hello"),
        "a/empty": ("file", 0o644, b""),
        "a/l": ("link", "../elsewhere"),
        "big": 0,
    }
    assert os.stat(f"{root}/a/x").st_mtime_ns == T0 + 3
    assert os.stat(f"{root}/a").st_mtime_ns == T0 + 5
    assert os.stat(root).st_mtime_ns == T0 + 7
    assert stat.S_IMODE(os.stat(root).st_mode) == 0o751
    await node.sink.close()


@pytest.mark.req("R22")
async def test_the_position_survives_a_restart(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    await node.group(put(b"x", b"1"))
    await node.group(put(b"x", b"2"), consistent=False)
    await node.sink.close()
    node = await standby(settings(root), catalogue)
    assert node.sink.applied == at(2)
    assert not node.sink.report().consistent
    await node.sink.close()


async def test_an_unfinished_group_is_not_seen(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    await node.group(put(b"x", b"1"))
    await node.send(put(b"x", b"2"), put(b"y", b"2"), end=False)
    await node.begin()
    assert tree_of(root) == {"x": ("file", 0o644, b"1")}
    assert staged(root) == [] or node.sink.applied == at(1)
    await node.sink.close()
    assert staged(root) == []


async def test_only_changed_blocks_travel(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    before = os.urandom(5 * 128 * 1024 + 77)
    await node.group(put(b"f", before))
    after = before[: 128 * 1024] + b"!" * (128 * 1024) + before[2 * 128 * 1024 :]
    await node.group(put_blocks(b"f", after, [1]))
    grown = after + b"more" * 100_000
    await node.group(put_blocks(b"f", grown, range(5, 9)))
    await node.group(put_blocks(b"f", grown[:300_000], [2]))
    assert not node.failures
    assert tree_of(root)["f"] == ("file", 0o644, grown[:300_000])
    await node.sink.close()


async def test_holes_stay_holes(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    content = b"a" * (128 * 1024) + bytes(16 * MIB) + b"z" * (128 * 1024)
    part = put_blocks(b"f", content, [0, 129])
    part[0].zero_blocks.extend(range(1, 129))
    await node.group(part)
    status = os.stat(f"{root}/f")
    assert status.st_size == len(content)
    assert status.st_blocks * 512 < MIB
    changed = b"b" + content[1:]
    await node.group(put_blocks(b"f", changed, [0]))
    with open(f"{root}/f", "rb") as file:
        assert file.read() == changed
    assert os.stat(f"{root}/f").st_blocks * 512 < MIB
    await node.sink.close()


async def test_pieces_of_a_large_file_and_of_a_large_block(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    step = 4 * MIB
    content = os.urandom(2 * step + 1000)
    whole = put_blocks(b"f", content, range(3), step=step)[0]
    pieces = [(0, 0, MIB), (0, MIB, 4 * MIB), (1, 0, 2 * MIB), (1, 2 * MIB, 4 * MIB), (2, 0, 1000)]
    for number, start, end in pieces:
        change, _ = put_blocks(b"f", content, [], step=step)
        change.blocks.append(number)
        change.offset, change.payload_bytes = start, end - start
        change.more = number < 2
        payload = content[number * step + start : number * step + end]
        for cut in range(0, len(payload), 2 * MIB):
            part = type(change)()
            part.CopyFrom(change)
            part.offset, part.payload_bytes = start + cut, len(payload[cut : cut + 2 * MIB])
            await node.send((part, payload[cut : cut + 2 * MIB]), end=number == 2)
    await node.until(lambda: bool(node.failures) or node.sink.applied == at(1))
    assert not node.failures, node.failures
    assert whole.size == os.stat(f"{root}/f").st_size
    with open(f"{root}/f", "rb") as file:
        assert file.read() == content
    await node.sink.close()


async def test_content_known_under_another_name_is_copied(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    content = os.urandom(200_000)
    await node.group(put(b"a", content))
    await node.group(copy(b"b", b"a", content), delete(b"a"))
    assert tree_of(root) == {"b": ("file", 0o644, content)}
    await node.sink.close()


@pytest.mark.req("R22")
async def test_messages_renamed_over_one_another_keep_their_content(root: str, catalogue: str) -> None:
    node = await standby(settings(root, mailboxes=True), catalogue)
    sound = [bytes([n]) * 5000 for n in range(4)]
    texts = [b"text%d" % n for n in range(4)]
    made = [put(b"INBOX/msg%04d.wav" % n, sound[n], unit=1) for n in range(4)]
    made += [put(b"INBOX/msg%04d.txt" % n, texts[n], unit=1) for n in range(4)]
    await node.group(directory(b"INBOX"), *made)
    moved = [copy(b"INBOX/msg%04d.wav" % n, b"INBOX/msg%04d.wav" % (n + 1), sound[n + 1], unit=2) for n in (1, 2)]
    moved += [put(b"INBOX/msg%04d.txt" % n, texts[n + 1], unit=2) for n in (1, 2)]
    await node.group(*moved, delete(b"INBOX/msg0003.wav", unit=2), delete(b"INBOX/msg0003.txt", unit=2))
    assert not node.failures
    found = tree_of(root)
    assert [found[f"INBOX/msg{n:04}.wav"][2] for n in range(3)] == [sound[0], sound[2], sound[3]]  # type: ignore[index]
    assert [found[f"INBOX/msg{n:04}.txt"][2] for n in range(3)] == [texts[0], texts[2], texts[3]]  # type: ignore[index]
    assert "INBOX/msg0003.wav" not in found
    await node.sink.close()


async def test_types_may_change(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    await node.group(put(b"f", b"1"), directory(b"d"), put(b"d/x", b"2"), directory(b"e"), put(b"e/y", b"3"))
    await node.group(delete(b"f"), directory(b"f"), put(b"f/x", b"4"), put(b"d", b"5"), link(b"e", b"f"))
    assert tree_of(root) == {
        "f": ("directory", 0o755),
        "f/x": ("file", 0o644, b"4"),
        "d": ("file", 0o644, b"5"),
        "e": ("link", "f"),
    }
    assert set(await node.inventory()) == {b"", b"f", b"f/x", b"d", b"e"}
    await node.sink.close()


async def test_a_directory_goes_with_all_below_but_not_the_nodes_own(root: str, catalogue: str) -> None:
    node = await standby(settings(root, node_local=("d/own",)), catalogue)
    await node.group(directory(b"d"), directory(b"d/e"), put(b"d/e/x", b"1"))
    Path(root, "d/own").write_text("mine")
    Path(root, "d/stranger").write_text("?")
    await node.group(delete(b"d"))
    assert tree_of(root) == {"d": ("directory", 0o755), "d/own": ("file", 0o644, b"mine")}
    trash = [name.partition("-")[2] for name in os.listdir(f"{root}/.ha-trash")]
    assert {"e", "stranger"} <= set(trash)
    await node.sink.close()


async def test_metadata_alone(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    await node.group(put(b"f", b"1"), link(b"l", b"f"), directory(b"d"))
    inode = os.stat(f"{root}/f").st_ino
    await node.group(
        meta(b"f", mode=0o600, mtime_ns=T0 + 9), meta(b"d", mode=0o700, kind=2), meta(b"l", mode=0o777, kind=3)
    )
    assert os.stat(f"{root}/f").st_ino == inode
    assert os.stat(f"{root}/f").st_mtime_ns == T0 + 9
    assert tree_of(root)["f"] == ("file", 0o600, b"1")
    assert tree_of(root)["d"] == ("directory", 0o700)
    await node.group(meta(b"missing", mode=0o600))
    assert node.needs == [b"missing"]
    assert isinstance(node.failures[0], RepairNeeded)
    assert node.sink.applied == at(2)
    await node.sink.close()


@pytest.mark.req("R22")
async def test_content_that_is_not_what_was_announced_is_never_published(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    await node.group(put(b"good", b"1"))
    bad = put(b"bad", b"2" * 5000)
    await node.group((bad[0], b"3" * 5000))
    assert node.needs == [b"bad"]
    assert isinstance(node.failures[0], RepairNeeded)
    await node.sink.receive(frame([put(b"later", b"4")], at(9)))  # not taken: the stream must begin again
    await node.begin()
    assert tree_of(root) == {"good": ("file", 0o644, b"1")}
    assert node.sink.applied == at(1)
    node.failures.clear()
    node.sequence = 1
    await node.group(bad)
    assert tree_of(root)["bad"] == ("file", 0o644, b"2" * 5000)
    await node.sink.close()


@pytest.mark.req("R22")
async def test_a_base_that_was_damaged_is_found_out(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    before = os.urandom(300_000)
    await node.group(put(b"f", before))
    await node.sink.close()
    with open(f"{root}/f", "r+b") as file:
        file.write(b"damage")
    node = await standby(settings(root), catalogue)
    await node.group(put_blocks(b"f", before[:-5] + b"after", [2]))
    assert b"f" in node.needs
    assert node.sink.applied == at(1)
    await node.sink.close()


@pytest.mark.req("R21")
async def test_a_recording_grows_hidden_and_is_published_patched(root: str, catalogue: str) -> None:
    node = await standby(settings(root, growing=True), catalogue)
    body = os.urandom(400_000)
    await node.group(grow(b"r.wav", 0, body[:100_000]))
    await node.group(grow(b"r.wav", 100_000, body[100_000:250_000]))
    assert tree_of(root) == {}
    assert len(os.listdir(f"{root}/.ha-partial")) == 1
    final = b"HEAD" + body[4:]
    await node.send(grow(b"r.wav", 250_000, body[250_000:]))
    await node.group(put_blocks(b"r.wav", final, [0]))
    assert not node.failures
    assert tree_of(root)["r.wav"] == ("file", 0o644, final)
    assert os.listdir(f"{root}/.ha-partial") == []
    await node.sink.close()


@pytest.mark.req("R21")
async def test_growth_survives_a_restart_and_a_gap_is_asked_for(root: str, catalogue: str) -> None:
    node = await standby(settings(root, growing=True), catalogue)
    await node.group(grow(b"r", 0, b"a" * 1000))
    await node.sink.close()
    node = await standby(settings(root, growing=True), catalogue)
    await node.group(grow(b"r", 1000, b"b" * 1000))
    assert not node.failures
    await node.group(grow(b"r", 5000, b"c"))
    assert node.needs == [b"r"]
    await node.begin()
    node.failures.clear()
    node.sequence = node.sink.applied.sequence
    await node.group(grow(b"r", 0, b"n" * 10))
    await node.group(put_blocks(b"r", b"n" * 10, []))
    assert tree_of(root) == {"r": ("file", 0o644, b"n" * 10)}
    await node.sink.close()


@pytest.mark.req("R22")
async def test_a_dropped_group_gives_its_recording_back(root: str, catalogue: str) -> None:
    node = await standby(settings(root, growing=True), catalogue)
    await node.group(grow(b"r", 0, b"a" * 1000))
    await node.send(put_blocks(b"r", b"a" * 1000, []), end=False)
    await node.begin()
    await node.group(grow(b"r", 1000, b"b"))
    await node.group(put_blocks(b"r", b"a" * 1000 + b"b", []))
    assert not node.failures
    assert tree_of(root)["r"] == ("file", 0o644, b"a" * 1000 + b"b")
    await node.sink.close()


async def test_after_a_full_sync_partials_nobody_knows_are_gone(root: str, catalogue: str) -> None:
    node = await standby(settings(root, growing=True), catalogue)
    await node.group(grow(b"old", 0, b"a"), grow(b"still", 0, b"b"))
    await node.begin(Answer.COMPARE)
    await node.group(grow(b"still", 1, b"c"), consistent=False)
    assert len(os.listdir(f"{root}/.ha-partial")) == 2
    await node.group(put(b"x", b"1"))
    assert len(os.listdir(f"{root}/.ha-partial")) == 1
    await node.sink.close()


async def test_a_database_is_published_without_its_journal(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    await node.group(put(b"a.db", b"1"))
    for suffix in ("-journal", "-wal", "-shm"):
        Path(root, "a.db" + suffix).write_bytes(b"hot")
    await node.group(put(b"a.db", b"2", type=4))
    assert tree_of(root) == {"a.db": ("file", 0o644, b"2")}
    await node.sink.close()


async def test_call_files_are_held(root: str, catalogue: str) -> None:
    node = await standby(settings(root, hold=("out/*",)), catalogue)
    await node.group(directory(b"out"), put(b"out/1.call", b"dial"))
    assert tree_of(root) == {"out": ("directory", 0o755)}
    assert Path(root, ".ha-held/out/1.call").read_bytes() == b"dial"
    assert set(await node.inventory()) == {b"", b"out", b"out/1.call"}
    await node.group(put(b"out/1.call", b"dial again"))
    await node.group(delete(b"out/1.call"))
    assert os.listdir(f"{root}/.ha-held/out") == []
    await node.sink.close()


async def test_nothing_moves_only_the_position(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    await node.sink.receive(Frame(position=at(5), kind=Body.NOTHING, body=b"", payload=b"", group_end=True))
    await node.until(lambda: node.sink.applied == at(5))
    await node.sink.close()


async def test_a_lower_epoch_and_another_method_are_refused(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    with pytest.raises(Fenced):
        await node.sink.receive(frame([put(b"x", b"1")], at(1, epoch=1)))
    with pytest.raises(ProtocolFault):
        await node.sink.begin(Answer.RESUME, "rows")
    await node.sink.close()


async def test_a_missing_parent_is_a_reason_and_mends_itself(tmp_path: Path, catalogue: str) -> None:
    root = str(tmp_path / "not" / "there")
    node = await standby(settings(root), catalogue, begin=False)
    with pytest.raises(OperatorNeeded, match="parent directory does not exist"):
        await node.begin()
    assert node.sink.report().state.value == "failed"
    os.mkdir(tmp_path / "not")
    await node.begin()
    await node.group(put(b"x", b"1"))
    assert tree_of(root) == {"x": ("file", 0o644, b"1")}
    await node.sink.close()


async def test_another_directory_without_the_marker_is_not_written_to(
    tmp_path: Path, root: str, catalogue: str
) -> None:
    node = await standby(settings(root), catalogue)
    await node.group(put(b"x", b"1"))
    await node.sink.close()
    os.rename(root, tmp_path / "moved")
    os.mkdir(root)
    node = await standby(settings(root), catalogue, begin=False)
    with pytest.raises(OperatorNeeded, match="no marker"):
        await node.begin()
    assert os.listdir(root) == []
    await node.sink.resume(accept_deletes=True)
    await node.begin(Answer.COMPARE)
    assert node.sink.applied.sequence == 0
    await node.sink.close()


async def test_many_groups_share_a_commit(root: str, catalogue: str) -> None:
    node = await standby(settings(root), catalogue)
    for n in range(300):
        await node.send(put(b"f%d" % n, b"%d" % n))
    await node.until(lambda: node.sink.applied == at(300))
    counts = dict(node.sink.report().counts)
    assert len(tree_of(root)) == 300
    assert counts["groups"] == 300
    assert counts["commits"] < 300
    await node.sink.close()


async def test_what_is_already_here_is_told_and_not_needed_again(root: str, catalogue: str) -> None:
    os.makedirs(f"{root}/a.b")
    os.makedirs(f"{root}/a")
    content = os.urandom(400_000)
    Path(root, "a/x").write_bytes(content)
    Path(root, "a.b/y").write_bytes(b"1")
    node = await standby(settings(root, exclude=("a.b",)), catalogue, begin=False)
    await node.begin(Answer.COMPARE)
    told = await node.inventory()
    assert list(told) == [b"", b"a", b"a/x"]
    entry, hashes = told[b"a/x"]
    sent = put(b"a/x", content)[0]
    assert (entry.hash, entry.size, len(hashes)) == (sent.hash, 400_000, 64)
    await node.group(put_blocks(b"a/x", content + b"!", [3]))
    assert not node.failures
    again = await node.inventory()
    assert again[b"a/x"][0].size == 400_001
    await node.sink.close()
