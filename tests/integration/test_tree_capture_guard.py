"""A tree that was emptied, or is another one, halts; what users delete in a day's work does not."""

from __future__ import annotations

import contextlib
import os
import shutil

import pytest

from ha_sync.apply.tree.rooting import open_root
from ha_sync.capture.settle import Due
from ha_sync.capture.tree import reading
from ha_sync.catalogue.tree import TreeCatalogue
from ha_sync.core.dataset import DatasetState
from ha_sync.core.position import Epoch
from ha_sync.errors import OperatorNeeded
from tests.support.tree_capture_model import Pair, settings_of


async def test_a_tree_that_was_emptied_halts_and_nothing_is_deleted_until_an_operator_says_so(root, catalogue):
    (root / "d").mkdir()
    for number in range(60):
        (root / "d" / f"f{number}").write_text(str(number))
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        shutil.rmtree(root / "d")
        await pair.until(lambda: pair.source.report().state is DatasetState.HALTED)
        assert len(pair.model.things) == 62
        assert [e for e in pair.events if e[0] == "error"]
        await pair.source.resume(accept_deletes=True)
        await pair.caught_up()
        pair.assert_equal()


async def test_a_barrier_says_that_a_guard_holds_the_changes_back(root, catalogue):
    for number in range(60):
        (root / f"f{number}").write_text(str(number))
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        for number in range(60):
            (root / f"f{number}").unlink()
        with pytest.raises(OperatorNeeded, match="60 of 60 files are gone at once"):
            await pair.source.settled()


async def _filled(root, where, catalogue, **changes):
    """A pair that has 60 files in a directory, and 60 beside it."""
    for name in (where, "other"):
        (root / name).mkdir()
        for number in range(60):
            (root / name / f"f{number}").write_text(f"{name} {number}")
    pair = await Pair(settings_of(root, **changes), catalogue).start()
    await pair.caught_up()
    return pair


async def test_files_that_vanish_after_they_were_marked_are_judged_before_they_are_deleted(root, catalogue):
    pair = await _filled(root, "d", catalogue)
    there = set(pair.model.things)
    worker = pair.source.worker

    def touched_then_emptied() -> None:
        # In the dataset's thread, so nothing is read in between: due while they stood there, gone when they are read.
        paths = [f"{name}/f{number}" for name in ("d", "other") for number in range(60)]
        worker.mark(Due(ready={os.fsencode(path): 1.0 for path in paths}))
        for path in paths:
            os.unlink(root / path)

    await pair.source.run(touched_then_emptied)
    pair.session.rouse()
    await pair.until(lambda: pair.source.report().state is DatasetState.HALTED)
    assert pair.model.things.keys() == there
    with pytest.raises(OperatorNeeded):
        await pair.caught_up()
    assert pair.model.things.keys() == there
    await pair.source.resume(accept_deletes=True)
    await pair.caught_up()
    pair.assert_equal()
    await pair.stop()


async def test_files_that_vanish_while_they_are_read_are_judged_before_they_are_deleted(root, catalogue, monkeypatch):
    pair = await _filled(root, "d", catalogue)
    there = set(pair.model.things)
    plain = reading.Group._plain

    def emptied(group, item):
        monkeypatch.setattr(reading.Group, "_plain", plain)
        for name in ("d", "other"):
            for number in range(60):
                os.unlink(root / name / f"f{number}")
        plain(group, item)

    def all_changed() -> None:
        # In the dataset's thread, so that it is one group.
        monkeypatch.setattr(reading.Group, "_plain", emptied)
        paths = [f"{name}/f{number}" for name in ("d", "other") for number in range(60)]
        pair.source.worker.mark(Due(ready={os.fsencode(path): 1.0 for path in paths}))

    await pair.source.run(all_changed)
    pair.session.rouse()
    await pair.until(lambda: pair.source.report().state is DatasetState.HALTED)
    assert pair.model.things.keys() == there
    await pair.stop()


async def test_a_directory_that_a_symlink_took_the_place_of_is_a_loss_of_all_it_held(root, catalogue, tmp_path):
    pair = await _filled(root, "d", catalogue, mass_delete_percent=40)
    os.rename(root / "d", tmp_path / "away")
    os.symlink(tmp_path / "away", root / "d")
    await pair.until(lambda: pair.source.report().state is DatasetState.HALTED)
    assert "60 of 120 files" in pair.source.report().reason
    assert b"d/f0" in pair.model.things
    await pair.source.resume(accept_deletes=True)
    await pair.caught_up()
    pair.assert_equal()
    await pair.stop()


@pytest.mark.parametrize("acknowledging", [True, False])
async def test_a_loss_that_is_noticed_twice_counts_once(root, catalogue, acknowledging):
    pair = await _filled(root, "d", catalogue, mass_delete_percent=60)
    pair.acknowledging = acknowledging
    # Each file has an event, then its directory has one, then a scan finds all of it again.
    shutil.rmtree(root / "d")
    await pair.until(lambda: b"d" not in pair.model.things)
    pair.source._scan(b"", noticed=0.0)
    await pair.until(lambda: not pair.source._scans)
    pair.acknowledging = True
    pair.session.acknowledge(pair.model.applied)
    await pair.caught_up()
    pair.assert_equal()
    await pair.stop()


async def test_deletes_that_come_one_by_one_are_one_mass_delete(root, catalogue):
    pair = await _filled(root, "d", catalogue)
    for name in ("d", "other"):
        for number in range(60):
            if pair.source.worker.halted:
                break
            (root / name / f"f{number}").unlink()
            with contextlib.suppress(OperatorNeeded):
                await pair.caught_up()
    assert "files are gone at once" in pair.source.worker.halted
    assert len([path for path in pair.model.things if b"/f" in path]) >= 60
    await pair.stop()


async def test_what_an_operator_accepted_is_accepted_once(root, catalogue):
    pair = await _filled(root, "d", catalogue, mass_delete_percent=40)
    shutil.rmtree(root / "d")
    await pair.until(lambda: pair.source.report().state is DatasetState.HALTED)
    await pair.source.resume(accept_deletes=True)
    await pair.caught_up()
    pair.assert_equal()
    shutil.rmtree(root / "other")
    with pytest.raises(OperatorNeeded, match="files are gone at once"):
        await pair.source.settled()
    assert b"other/f0" in pair.model.things
    await pair.stop()


@pytest.mark.parametrize("move", ["directory", "files"])
async def test_what_was_moved_to_other_names_is_not_taken_for_lost(root, catalogue, move):
    (root / "d").mkdir()
    for number in range(60):
        (root / "d" / f"f{number}").write_text(str(number))
    pair = await Pair(settings_of(root), catalogue).start()
    await pair.caught_up()
    _move_all(root, "d", "e", move)
    await pair.caught_up()
    pair.assert_equal()
    await pair.stop()
    _move_all(root, "e", "f", move)
    again = await Pair(settings_of(root), catalogue, model=pair.model).start()
    await again.caught_up()
    again.assert_equal()
    await again.stop()


def _move_all(root, source, target, move):
    if move == "directory":
        os.rename(root / source, root / target)
        return
    (root / target).mkdir()
    for name in os.listdir(root / source):
        os.rename(root / source / name, root / target / name)
    (root / source).rmdir()


async def test_a_root_that_vanished_or_was_replaced_halts(root, catalogue, tmp_path):
    (root / "f").write_text("x")
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        os.rename(root, tmp_path / "moved")
        root.mkdir()
        await pair.until(lambda: pair.source.report().state is DatasetState.HALTED)
        assert b"f" in pair.model.things
        shutil.rmtree(root)
        os.rename(tmp_path / "moved", root)
        await pair.source.resume(accept_deletes=False)
        (root / "g").write_text("x")
        await pair.caught_up()
        pair.assert_equal()


async def test_a_root_without_its_marker_after_a_restart_halts(root, catalogue):
    (root / "f").write_text("x")
    pair = await Pair(settings_of(root), catalogue).start()
    await pair.caught_up()
    await pair.stop()
    os.unlink(root / ".ha-dataset")
    os.unlink(root / "f")
    again = Pair(settings_of(root), catalogue, model=pair.model)
    await again.start()
    await again.until(lambda: again.source.report().state is DatasetState.HALTED)
    assert b"f" in again.model.things
    await again.stop()


@pytest.mark.req("R32")
async def test_a_tree_that_was_there_and_is_not_when_the_engine_starts_is_a_fault_until_it_is_back(
    root, catalogue, tmp_path
):
    first = Pair(settings_of(root), catalogue)
    root.rmdir()
    await first.start()
    # Nobody has ever seen it: it is waited for.
    assert first.source.report().state is DatasetState.WAITING
    await first.stop()
    root.mkdir()
    (root / "f").write_text("x")
    pair = await Pair(settings_of(root), catalogue).start()
    await pair.caught_up()
    await pair.stop()
    os.rename(root, tmp_path / "away")
    again = Pair(settings_of(root), catalogue, model=pair.model)
    await again.source.open(Epoch(2))
    # Nothing is said of it before it was looked for: each start would be an alarm.
    assert again.source.report().state is DatasetState.STARTING
    await again.connect()
    await again.until(lambda: again.source.report().state is DatasetState.FAILED)
    assert "is its filesystem mounted?" in again.source.report().reason
    assert b"f" in again.model.things
    os.rename(tmp_path / "away", root)
    (root / "g").write_text("x")
    await again.caught_up()
    again.assert_equal()
    await again.stop()


@pytest.mark.req("R32")
async def test_a_former_standby_takes_no_empty_mount_point_for_its_tree(root, catalogue, tmp_path):
    os.makedirs(catalogue.parent)
    standby = TreeCatalogue(str(catalogue))
    open_root(str(root), standby, report=lambda *_: None).close()
    standby.close()
    os.rename(root, tmp_path / "unmounted")
    root.mkdir()
    pair = await Pair(settings_of(root), catalogue).start()
    assert pair.source.report().state is DatasetState.HALTED
    assert "is the right filesystem mounted?" in pair.source.report().reason
    root.rmdir()
    os.rename(tmp_path / "unmounted", root)
    await pair.source.resume(accept_deletes=False)
    await pair.caught_up()
    await pair.stop()
