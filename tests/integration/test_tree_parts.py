"""A large file goes in parts: others are not held up by it, and little of it goes twice when the stream breaks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil

import pytest

from ha_sync.capture.tree import TreeSource
from ha_sync.capture.tree.parts import PART_BYTES
from ha_sync.core.position import Answer, Epoch
from tests.support.tree_apply_pair import TreePair
from tests.support.tree_capture_model import Pair, settings_of

MIB = 1024 * 1024
LARGE = 5 * PART_BYTES + 12_345
CHANGES = ("appended", "overwritten", "replaced", "shortened", "deleted", "moved", "a directory")


def large(path, size: int = LARGE, seed: int = 1) -> None:
    path.write_bytes(random.Random(seed).randbytes(size))


async def until_part(pair: Pair, number: int, name: bytes = b"large") -> None:
    """So many parts have come."""
    await pair.until(lambda: len(pair.model.partials.get(name, b"")) >= number * PART_BYTES)


@contextlib.asynccontextmanager
async def broken_after(pair: Pair, parts: int):
    """The stream breaks when so many parts have come, and begins again after the block."""
    await pair.connect_by_hand()
    async with contextlib.aclosing(pair.session.frames()) as frames:
        while len(pair.model.partials.get(b"large", b"")) < parts * PART_BYTES:
            if pair.model.take(await anext(frames)):
                pair.session.acknowledge(pair.model.applied)
    await pair.disconnect()
    yield
    await pair.connect()


@pytest.mark.req("R9", "R20")
async def test_a_large_file_is_sent_once_and_what_changes_meanwhile_goes_in_between(root, catalogue):
    large(root / "large")
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.disconnect()
        async with broken_after(pair, 2):
            (root / "small").write_text("first")
        await pair.until(lambda: b"small" in pair.model.things)
        assert b"large" not in pair.model.things
        await pair.caught_up()
        pair.assert_equal()
        assert pair.model.payload_bytes < LARGE + 100
        assert pair.model.partials == {}


@pytest.mark.req("R9", "R31")
@pytest.mark.parametrize("parts", [1, 3, 5])
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_stream_that_breaks_goes_on_where_the_standby_is(root, catalogue, parts, restarted):
    large(root / "large")
    pair = await Pair(settings_of(root), catalogue).start()
    await pair.disconnect()
    async with broken_after(pair, parts):
        assert pair.model.payload_bytes <= (parts + 1) * PART_BYTES
        if restarted:
            await pair.source.close()
            pair.source = TreeSource(settings_of(root), catalogue_path=str(catalogue), report=pair._report)
            await pair.source.open(Epoch(2))
    await pair.caught_up()
    pair.assert_equal()
    assert pair.model.payload_bytes < LARGE + 100
    await pair.stop()


@pytest.mark.req("R9", "R31")
async def test_what_the_standby_does_not_have_any_more_is_sent_again(root, catalogue):
    large(root / "large")
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.disconnect()
        async with broken_after(pair, 3):
            del pair.model.partials[b"large"][PART_BYTES + 1 :]  # as after a loss of power
        await pair.caught_up()
        pair.assert_equal()
        assert pair.model.payload_bytes < LARGE + 2 * PART_BYTES + MIB
        large(root / "other", seed=2)
        await pair.disconnect()
        pair.model.partials.clear()
        await pair.connect()
        await pair.caught_up()
        pair.assert_equal()


@pytest.mark.req("R9", "R21")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("listening", [True, False])
async def test_a_file_that_changes_between_its_parts_arrives_as_it_is(root, catalogue, change, listening):
    large(root / "large")
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.disconnect()
        async with broken_after(pair, 2):
            if not listening:
                _change(root, change)
        if listening:
            await until_part(pair, 3)
            _change(root, change)
        await pair.caught_up()
        pair.assert_equal()
        assert b"large" not in pair.model.partials


def _change(root, change: str) -> None:
    path = root / "large"
    if change in {"deleted", "a directory"}:
        path.unlink()
    if change == "a directory":
        path.mkdir()
    elif change == "moved":
        os.rename(path, root / "elsewhere")
    elif change == "replaced":
        large(root / "new", seed=7)
        os.rename(root / "new", path)
    elif change == "shortened":
        os.truncate(path, 2 * PART_BYTES)
    elif change != "deleted":
        with path.open("r+b") as file:
            file.seek(0, os.SEEK_END if change == "appended" else os.SEEK_SET)
            file.write(os.urandom(3 * MIB))


@pytest.mark.req("R9")
async def test_content_that_the_standby_has_under_another_name_costs_nothing(root, catalogue):
    large(root / "large")
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        sent = pair.model.payload_bytes
        shutil.copyfile(root / "large", root / "copy")
        os.rename(root / "large", root / "moved")
        await pair.caught_up()
        pair.assert_equal()
        assert pair.model.payload_bytes == sent


@pytest.mark.req("R9")
async def test_holes_and_older_forms_are_no_parts(root, catalogue):
    with (root / "sparse").open("wb") as file:
        file.truncate(64 * MIB)
        file.write(b"x" * MIB)
    large(root / "large")
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        with (root / "large").open("r+b") as file:
            file.write(b"changed")
        sent = pair.model.payload_bytes
        assert sent < LARGE + 2 * MIB
        await pair.caught_up()
        pair.assert_equal()
        assert pair.model.payload_bytes - sent <= MIB
        assert not [
            change for group in pair.model.groups for change in group if change.path == b"sparse" and change.version
        ]


@pytest.mark.req("R9", "R31")
@pytest.mark.parametrize("seed", range(3))
async def test_however_often_either_side_breaks_nothing_goes_twice_beyond_a_part(tmp_path, seed):
    """A real Standby, which is closed as it is and opened again; and the Active, which goes on in its catalogue."""
    rng = random.Random(seed)
    size = 12 * PART_BYTES + rng.randrange(PART_BYTES)
    async with TreePair(str(tmp_path), {}) as pair:
        await pair.caught_up()
        (tmp_path / "active" / "large").write_bytes(rng.randbytes(size))
        breaks = 0
        for at in sorted(rng.randrange(size) for _ in range(4)):
            await pair.until(lambda at=at: pair.payload_bytes >= at or (tmp_path / "standby" / "large").exists())
            await pair.close_sink()
            if rng.random() < 0.5:
                await pair.source.close()
                await pair.open_source()
            await pair.open_sink()
            breaks += 1
        await pair.caught_up()
        pair.assert_equal()
        # What was under way when it broke: a part that is read ahead, and what waits in the Standby's queue.
        assert pair.payload_bytes <= size + breaks * 2 * PART_BYTES, pair.payload_bytes - size


@pytest.mark.req("R9", "R31")
async def test_an_acknowledgement_that_a_crash_swallowed_costs_no_second_transfer(root, catalogue):
    large(root / "large")
    await asyncio.sleep(0.1)  # so old that its times prove that it is unchanged
    pair = Pair(settings_of(root), catalogue)
    pair.acknowledging = False
    await pair.start()
    await pair.until(lambda: b"large" in pair.model.things)
    shutil.copytree(catalogue.parent, catalogue.parent.with_name("crashed"))
    await pair.stop()
    shutil.rmtree(catalogue.parent)
    os.rename(catalogue.parent.with_name("crashed"), catalogue.parent)
    sent = pair.model.payload_bytes
    again = await Pair(settings_of(root), catalogue, model=pair.model).start()
    await again.caught_up()
    again.assert_equal()
    assert again.answer is Answer.RESUME
    assert again.model.payload_bytes - sent < MIB
    await again.stop()


@pytest.mark.req("R9", "R14")
async def test_a_promotion_publishes_no_part_of_a_file(tmp_path):
    async with TreePair(str(tmp_path), {}) as pair:
        (tmp_path / "active" / "small").write_text("x")
        await pair.caught_up()
        (tmp_path / "active" / "large").write_bytes(os.urandom(40 * PART_BYTES))
        await pair.until(lambda: pair.payload_bytes > 3 * PART_BYTES)
        pair._pump.cancel()
        await pair.sink.promote()
        assert sorted(os.listdir(tmp_path / "standby")) == [".ha-dataset", ".ha-trash", "small"]
        catalogue = (tmp_path / "s" / "catalogue.db").read_bytes()
        assert b"partial:" not in catalogue or b"large".hex().encode() not in catalogue


@pytest.mark.req("R9", "R31")
async def test_a_part_of_another_version_is_asked_for_anew(tmp_path):
    async with TreePair(str(tmp_path), {}) as pair:
        await pair.caught_up()
        (tmp_path / "active" / "large").write_bytes(os.urandom(10 * PART_BYTES))
        await pair.until(lambda: pair.payload_bytes > 2 * PART_BYTES)
        # The Standby's note of it says another name than the Active's: as if it were of an older form of the file.
        for partial in pair.sink._applier.tree.partials.in_parts():
            partial.version = b"another"
        await pair.caught_up()
        pair.assert_equal()
        assert pair.sink.report().state.value == "streaming"
