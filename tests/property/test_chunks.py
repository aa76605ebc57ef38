"""What of a large file stands elsewhere in its old version: every move is true, whatever was inserted or cut out."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.apply.tree.content import Draft
from ha_sync.files.blocks import block_hash, whole_hash
from ha_sync.files.chunks import CHUNK_BYTES, covered, cuts, cuts_again, moves, size_of

pytestmark = pytest.mark.req("R9")

STEP = 128 * 1024
edits = st.lists(
    st.tuples(st.integers(0, 3_000_000), st.integers(0, 400_000), st.integers(0, 200_000)), min_size=1, max_size=3
)


def cuts_of(folder: Path, content: bytes) -> bytes:
    path = folder / "content"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDONLY)
    try:
        return cuts(fd)
    finally:
        os.close(fd)


def edited(content: bytes, changes: list[tuple[int, int, int]], seed: int) -> bytes:
    rng = random.Random(seed)
    for place, removed, inserted in changes:
        at = place % (len(content) + 1)
        content = content[:at] + rng.randbytes(inserted) + content[at + removed :]
    return content


@settings(max_examples=25, deadline=None)
@given(edits, st.integers(0, 2**32))
def test_a_standby_that_follows_the_moves_has_the_new_content(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int, int]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("chunks")
    old = random.Random(seed).randbytes(2_500_000)
    new = edited(old, changes, seed + 1)
    found = moves(cuts_of(folder, old), cuts_of(folder, new))
    for move in found:
        assert new[move.offset : move.offset + move.length] == old[move.source : move.source + move.length]
    numbers = list(covered(found, len(new), STEP))
    assert numbers == sorted(set(numbers))
    if not new:
        return
    blocks = [new[at : at + STEP] for at in range(0, len(new), STEP)]
    sent = [number for number in range(len(blocks)) if number not in set(numbers)]
    change = pb.TreeChange(
        size=len(new), hash=whole_hash(b"".join(map(block_hash, blocks)), len(new)), block_size=STEP, blocks=sent,
        moves=[pb.TreeMove(offset=move.offset, source=move.source, length=move.length) for move in found],
    )  # fmt: skip
    (folder / "old").write_bytes(old)
    with (folder / "old").open("rb") as base, (folder / "new").open("w+b") as target:
        draft = Draft(target.fileno(), change)
        draft.write(change, memoryview(b"".join(blocks[number] for number in sent)))
        assert draft.complete or draft.fill_by(change.moves, base.fileno())
        assert draft.verified()
        assert os.pread(target.fileno(), len(new) + 1, 0) == new


def test_what_is_inserted_at_the_front_costs_little_more_than_itself(tmp_path: Path) -> None:
    old = random.Random(1).randbytes(16 * 1024 * 1024)
    new = random.Random(2).randbytes(100_000) + old
    found = moves(cuts_of(tmp_path, old), cuts_of(tmp_path, new))
    assert len(new) - sum(move.length for move in found) < 100_000 + 8 * CHUNK_BYTES
    assert len(found) < 4


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2_400_000), st.integers(1, 90_000)), max_size=3), st.integers(0, 2**32))
def test_what_changed_in_its_place_is_cut_as_the_whole_would_be(
    tmp_path_factory: pytest.TempPathFactory, places: list[tuple[int, int]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("again")
    rng = random.Random(seed)
    first = rng.randbytes(2_500_000)
    second = bytearray(first)
    for at, length in places:
        second[at : at + length] = rng.randbytes(length)
    changed = [(at, at + STEP) for at in range(0, len(first), STEP) if first[at : at + STEP] != second[at : at + STEP]]
    old, whole = cuts_of(folder, first), cuts_of(folder, bytes(second[:2_500_000]))
    with (folder / "content").open("rb") as file:
        again = cuts_again(file.fileno(), old, changed)
    assert again == whole
    assert size_of(again) == len(first)


def test_a_base_that_is_shorter_than_the_moves_say_is_not_used(tmp_path: Path) -> None:
    change = pb.TreeChange(size=STEP, hash=b"x" * 16, block_size=STEP, moves=[pb.TreeMove(source=1, length=STEP)])
    (tmp_path / "old").write_bytes(bytes(STEP))
    with (tmp_path / "old").open("rb") as base, (tmp_path / "new").open("w+b") as target:
        assert not Draft(target.fileno(), change).fill_by(change.moves, base.fileno())
