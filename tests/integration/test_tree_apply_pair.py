"""Source and sink of a tree together: what is done to the Active's files is done to the Standby's."""

from __future__ import annotations

# ruff: noqa: ASYNC230, ASYNC240 - the tests look at small files while nothing else runs
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from ha_sync.capture.tree import journal, worker
from tests.support.tree_apply_pair import TreePair


@pytest.mark.req("R22")
async def test_a_tree_and_what_happens_to_it_later_is_equal_on_both(tmp_path: Path) -> None:
    active = tmp_path / "active"
    (active / "sub").mkdir(parents=True)
    for number in range(200):
        (active / "sub" / f"f{number}").write_bytes(os.urandom(number * 20))
    (active / "large").write_bytes(os.urandom(20_000_000))
    (active / "link").symlink_to("sub")
    async with TreePair(str(tmp_path), {}) as pair:
        await pair.caught_up()
        pair.assert_equal()
        with open(active / "large", "r+b") as file:
            file.seek(9_000_000)
            file.write(b"changed")
        os.rename(active / "sub", active / "renamed")
        (active / "link").unlink()
        (active / "link").mkdir()
        (active / "renamed" / "f7").chmod(0o600)
        await pair.caught_up()
        pair.assert_equal()
        assert pair.restarts == 0
        assert pair.sink.report().consistent


def make_a_hundred(active: Path) -> None:
    active.mkdir()
    for number in range(100):
        (active / f"f{number}").write_bytes(b"%d" % number)


@pytest.mark.req("R20", "R22")
async def test_a_sync_of_more_paths_than_sequences_are_reserved_at_once_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "RESERVE", 7)
    make_a_hundred(tmp_path / "active")
    async with TreePair(str(tmp_path), {}) as pair:
        await pair.caught_up()
        pair.assert_equal()
        stored = pair.source.worker.catalogue.position("captured")
        assert stored.sequence >= pair.source.worker.journal.captured.sequence


@pytest.mark.req("R22")
async def test_of_a_sync_only_so_many_paths_are_on_their_way_and_it_ends_when_all_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "FLYING_MAX", 10)
    monkeypatch.setattr(worker, "GROUP_CHANGES_MAX", 7)
    flying: list[int] = []
    flew = journal.Journal.flew

    def seen(self: journal.Journal, *group: Any) -> None:
        flew(self, *group)
        flying.append(self.in_flight)
        assert self.synced_at is None or self.bulk == 0

    monkeypatch.setattr(journal.Journal, "flew", seen)
    make_a_hundred(tmp_path / "active")
    async with TreePair(str(tmp_path), {}) as pair:
        await pair.caught_up()
        pair.assert_equal()
        assert pair.restarts == 0
    assert max(flying) <= 10 + 7 + 1, "a group more, and its directory"
    assert len(flying) > 10


@pytest.mark.req("R22")
async def test_a_restarted_standby_resumes(tmp_path: Path) -> None:
    active = tmp_path / "active"
    async with TreePair(str(tmp_path), {}) as pair:
        (active / "a").write_text("1")
        await pair.caught_up()
        await pair.close_sink()
        (active / "b").write_text("2")
        (active / "a").unlink()
        await pair.open_sink()
        await pair.caught_up()
        pair.assert_equal()
        assert pair.answers[-1].value == "resume"


@pytest.mark.req("R21")
async def test_a_recording_that_grows_is_patched_and_published(tmp_path: Path) -> None:
    active = tmp_path / "active"
    async with TreePair(str(tmp_path), {"growing": True}) as pair:
        with open(active / "r.wav", "wb") as file:
            file.write(bytes(44))
            for _ in range(6):
                file.write(os.urandom(32768))
                file.flush()
                await pair.caught_up()
            file.seek(4)
            file.write(b"lens")
        await pair.until(lambda: os.path.exists(f"{pair.standby}/r.wav"))
        await pair.caught_up()
        pair.assert_equal()
        assert os.listdir(f"{pair.standby}/.ha-partial") == []


@pytest.mark.req("R15")
async def test_tampering_is_undone_from_the_active(tmp_path: Path) -> None:
    active = tmp_path / "active"
    async with TreePair(str(tmp_path), {}) as pair:
        (active / "d").mkdir()
        for number in range(20):
            (active / "d" / f"f{number}").write_bytes(os.urandom(5000))
        await pair.caught_up()
        Path(pair.standby, "d/f3").write_text("tampered")
        Path(pair.standby, "d/stranger").write_text("local")
        os.unlink(f"{pair.standby}/d/f5")
        await pair.until(lambda: len(pair.events) >= 3 and dict(pair.sink.report().counts)["wanted"] == 0)
        pair.assert_equal()
        shutil.rmtree(f"{pair.standby}/d")
        await pair.until(lambda: os.path.isdir(f"{pair.standby}/d") and len(os.listdir(f"{pair.standby}/d")) == 20)
        await pair.until(lambda: dict(pair.sink.report().counts)["wanted"] == 0)
        pair.assert_equal()


@pytest.mark.req("R22")
@pytest.mark.parametrize("seed", range(2))
async def test_whatever_is_done_to_the_active_both_become_equal(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    active = tmp_path / "active"
    async with TreePair(str(tmp_path), {"mass_delete_percent": 100}) as pair:
        for _ in range(8):
            for _ in range(30):
                act(active, chance)
            await pair.caught_up()
            pair.assert_equal()


def act(active: Path, chance: random.Random) -> None:
    """One thing that a program does to its files."""
    folders = [active, *(path for path in active.rglob("*") if path.is_dir() and not path.is_symlink())]
    folders = [path for path in folders if ".ha-" not in str(path)]
    place = chance.choice(folders) / f"n{chance.randrange(6)}"
    kind = chance.randrange(6)
    if kind == 0 and not os.path.lexists(place):
        place.mkdir()
    elif kind == 1 and os.path.lexists(place):
        shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
    elif kind == 2 and os.path.lexists(place) and not place.is_dir():
        target = chance.choice(folders) / f"n{chance.randrange(6)}"
        if not target.is_dir():
            os.rename(place, target)
    elif kind == 3 and not os.path.lexists(place):
        place.symlink_to("n1")
    elif not place.is_dir() and not place.is_symlink():
        place.write_bytes(chance.randbytes(chance.choice([0, 10, 5000, 300_000])))
