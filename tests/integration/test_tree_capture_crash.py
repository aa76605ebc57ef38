"""What the Standby was sent before a crash and no catalogue tells of is made good after it."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from ha_sync.capture.settle import Due
from ha_sync.capture.tree.terms import RACY_NS
from ha_sync.core.position import Answer
from tests.support.tree_capture_model import Pair, settings_of


async def old_enough(path: str) -> None:
    """Until the file's ctime proves that it is unchanged."""
    while time.clock_gettime_ns(time.CLOCK_REALTIME) - os.stat(path).st_ctime_ns <= RACY_NS:
        await asyncio.sleep(0.005)


async def sent_and_not_acknowledged(root, catalogue):
    """The Standby, which has the file ``f``; the Active's catalogue does not tell of it."""
    pair = await Pair(settings_of(root), catalogue).start()
    await pair.caught_up()
    pair.acknowledging = False
    (root / "f").write_text("x")
    await pair.until(lambda: b"f" in pair.model.things)
    await pair.stop()
    return pair.model


@pytest.mark.req("R22")
async def test_what_was_sent_before_a_crash_is_distrusted_even_if_it_changes_again(root, catalogue):
    model = await sent_and_not_acknowledged(root, catalogue)
    again = await Pair(settings_of(root), catalogue, model=model).start()
    assert again.answer is Answer.RESUME
    # Noticed before the first group is read, so the path has a newer sequence than it left with.
    (root / "f").unlink()
    await again.source.run(lambda: again.source.worker.mark(Due(ready={b"f": 1.0})))
    await again.caught_up()
    again.assert_equal()
    await again.until(lambda: not again.source.worker._distrusts)
    await again.stop()


@pytest.mark.req("R22")
async def test_the_roots_time_goes_along_while_what_was_sent_before_a_crash_is_distrusted(root, catalogue):
    model = await sent_and_not_acknowledged(root, catalogue)
    again = Pair(settings_of(root), catalogue, model=model)
    again.acknowledging = False
    await again.start()
    await again.until(lambda: bool(again.unsent))
    (root / "g").write_text("x")
    await again.until(lambda: b"g" in again.model.things)
    again.session.acknowledge(again.unsent[0])
    # A stream that breaks now has the root's own change behind it, and not all that is distrusted.
    await again.disconnect()
    await again.connect()
    assert again.source.worker._distrusts
    (root / "h").write_text("x")
    await again.until(lambda: b"h" in again.model.things)
    again.assert_equal()
    await again.stop()


@pytest.mark.req("R22")
async def test_a_directory_that_comes_back_after_a_crash_is_sent_with_all_it_holds(root, catalogue, tmp_path):
    (root / "d").mkdir()
    (root / "d" / "x").write_text("x")
    await old_enough(f"{root}/d/x")
    pair = await Pair(settings_of(root), catalogue).start()
    await pair.caught_up()
    await pair.until(lambda: not pair.source.worker.journal.in_flight)
    pair.acknowledging = False
    os.rename(root / "d", tmp_path / "away")
    await pair.until(lambda: b"d" not in pair.model.things)
    await pair.stop()
    # To its inode nothing happened: only what was sent before tells that the Standby lacks the file.
    os.rename(tmp_path / "away", root / "d")
    again = await Pair(settings_of(root), catalogue, model=pair.model).start()
    assert again.answer is Answer.RESUME
    await again.caught_up()
    again.assert_equal()
    await again.stop()
