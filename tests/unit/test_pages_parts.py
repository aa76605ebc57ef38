"""The small parts of capture by pages: pace, journal, frames, soundness, durable files."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_proto.sync.v1 import replication_pb2 as wire
from ha_sync.capture.pages.content import Known, frames_of, known_of_inventory
from ha_sync.capture.pages.journal import Journal
from ha_sync.capture.pages.pace import (
    HINT_FRESH_S,
    NOT_FREE_MAX_S,
    PATIENCE_S,
    REJECTED_MAX,
    REST_MAX_S,
    SHARE,
    Pace,
)
from ha_sync.core.frame import FRAME_PAYLOAD_MAX
from ha_sync.core.position import Epoch, Position, Sequence, new_incarnation
from ha_sync.database.durable import write_durably
from ha_sync.database.soundness import damage_of_file, damage_of_image
from ha_sync.errors import ProtocolFault
from ha_sync.files.blocks import block_hash, whole_hash

HERE = Position(epoch=Epoch(2), incarnation=new_incarnation(), sequence=Sequence(7))


def known(data: bytes, block_size: int = 4096) -> Known:
    pieces = [data[at : at + block_size] for at in range(0, len(data), block_size)]
    return Known(size=len(data), block_size=block_size, hashes=b"".join(map(block_hash, pieces)))


@given(st.floats(0.0001, 10), st.floats(0, 1000))
def test_looking_never_takes_more_than_its_share_of_a_core(cost: float, now: float) -> None:
    pace = Pace()
    pace.looked(cost, processor_s=cost, now=now)
    assert pace.rest_s(now=now) == pytest.approx(min(REST_MAX_S, cost / SHARE), abs=1e-6)


def test_a_long_look_begins_right_after_a_commit_and_a_short_one_at_once() -> None:
    pace = Pace()
    pace.looked(0.0003, processor_s=0.0003, now=0)
    assert pace.hint_wait_s(now=5) == 0
    pace.looked(0.1, processor_s=0.1, now=5)
    assert pace.hint_wait_s(now=10) > 0
    pace.commit_ended = 10
    assert pace.hint_wait_s(now=10 + HINT_FRESH_S / 2) == 0


def test_an_open_transaction_is_waited_for_only_for_a_moment() -> None:
    pace = Pace()
    pace.refused(now=1, read_in_vain=False)
    assert pace.patient(now=1 + PATIENCE_S / 2)
    assert not pace.patient(now=1 + PATIENCE_S * 2)
    pace.accepted()
    assert pace.patient(now=100)


def test_twenty_rejections_or_half_a_minute_without_a_gap_are_hopeless() -> None:
    pace = Pace()
    for _ in range(REJECTED_MAX - 1):
        pace.refused(now=1, read_in_vain=True)
    assert not pace.hopeless(now=1)
    pace.refused(now=1, read_in_vain=True)
    assert pace.hopeless(now=1)
    pace.accepted()
    pace.refused(now=1, read_in_vain=False)
    assert not pace.hopeless(now=NOT_FREE_MAX_S)
    assert pace.hopeless(now=1 + NOT_FREE_MAX_S)


@pytest.mark.req("R22")
def test_no_sequence_is_used_twice_over_a_crash(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    used: set[int] = set()
    for _ in range(3):
        journal = Journal.open(path, Epoch(2))
        for _ in range(5):
            sequence, reserve = journal.next_sequence()
            assert sequence not in used
            used.add(sequence)
            if reserve:
                journal.store()


@pytest.mark.req("R22")
def test_an_orderly_end_goes_on_with_the_next_sequence_and_a_new_epoch_begins_anew(tmp_path: Path) -> None:
    path = str(tmp_path / "journal")
    journal = Journal.open(path, Epoch(2))
    journal.next_sequence()
    journal.acknowledged, journal.standby = Sequence(1), known(b"x" * 5000)
    journal.close()
    again = Journal.open(path, Epoch(2))
    assert (again.incarnation, again.sequence, again.standby) == (journal.incarnation, 1, journal.standby)
    newer = Journal.open(path, Epoch(4))
    assert newer.incarnation != journal.incarnation
    assert (newer.sequence, newer.standby) == (0, None)


@pytest.mark.parametrize("damage", [b"", b"{", b"{}", b'{"version": 1, "epoch": "x"}', bytes(100)])
def test_a_damaged_journal_is_a_new_incarnation(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(damage)
    assert Journal.open(str(path), Epoch(2)).sequence == 0


def test_frames_of_a_group_are_small_in_order_and_end_once() -> None:
    data = b"".join(bytes([n % 251 + 1]) * 4096 for n in range(700)) + bytes(4096) + b"tail"
    content = known(data)
    blocks = {n: data[n * 4096 : (n + 1) * 4096] for n in range(702)}
    frames = list(frames_of(content, mtime_ns=1, blocks=blocks, position=HERE))
    assert len(frames) > 2
    assert [frame.group_end for frame in frames] == [False] * (len(frames) - 1) + [True]
    assert all(len(frame.payload) <= FRAME_PAYLOAD_MAX for frame in frames)
    changes = [wire.TreeChanges.FromString(frame.body).changes[0] for frame in frames]
    assert [c.more for c in changes] == [True] * (len(frames) - 1) + [False]
    assert [n for c in changes for n in c.blocks] == [n for n in range(702) if n != 700]
    assert list(changes[0].zero_blocks) == [700]
    assert b"".join(bytes(frame.payload) for frame in frames) == data[: 700 * 4096] + b"tail"
    assert changes[0].hash == whole_hash(content.hashes, len(data))


def test_an_inventory_that_does_not_add_up_counts_as_none() -> None:
    content = known(b"x" * 9000)
    entry = wire.TreeChange(
        type=wire.TreeChange.TYPE_DATABASE, size=9000, block_size=4096, hash=content.whole, mode=0o600
    )
    good = wire.TreeInventory(entries=[entry], block_hashes=[content.hashes])
    found = known_of_inventory(good.SerializeToString())
    assert found is not None
    assert found.hashes == content.hashes
    short = wire.TreeInventory(entries=[entry], block_hashes=[content.hashes[:-16]])
    assert known_of_inventory(short.SerializeToString()) is None
    wrong = wire.TreeInventory(entries=[entry], block_hashes=[bytes(48)])
    assert known_of_inventory(wrong.SerializeToString()) is None
    assert known_of_inventory(b"") is None
    with pytest.raises(ProtocolFault):
        known_of_inventory(b"\xff\xff\xff")


def test_damage_is_of_the_structure_not_of_the_applications_rules(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE t(a CHECK(a > 0), b TEXT NOT NULL)")
        db.execute("PRAGMA ignore_check_constraints=ON")
        db.executemany("INSERT INTO t VALUES(-1, ?)", (("x" * 100,) for _ in range(500)))
    assert damage_of_file(str(path)) == ""
    data = bytearray(path.read_bytes())
    assert damage_of_image(data) == ""
    data[4096:8192] = data[8192:12288]
    path.write_bytes(data)
    assert damage_of_file(str(path)) != ""
    assert damage_of_image(data) != ""
    assert damage_of_image(b"") == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.db"]


def test_a_durable_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_durably(str(path), b"one, and longer")
    write_durably(str(path), b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    assert path.stat().st_mode & 0o777 == 0o600
