"""A tree on the Active, followed by a strict Standby in memory."""

from __future__ import annotations

import os

import pytest

from tests.support.tree_capture_model import Pair, settings_of


@pytest.fixture
def root(tmp_path):
    (tmp_path / "tree").mkdir()
    return tmp_path / "tree"


@pytest.fixture
def catalogue(tmp_path):
    return tmp_path / "state" / "catalogue.db"


@pytest.mark.req("R20")
async def test_what_is_there_and_what_is_written_later_reaches_the_standby(root, catalogue):
    (root / "sub").mkdir()
    (root / "sub" / "old.wav").write_bytes(os.urandom(300_000))
    async with Pair(settings_of(root), catalogue) as pair:
        await pair.caught_up()
        pair.assert_equal()
        assert pair.model.consistent
        (root / "new.wav").write_bytes(b"new")
        await pair.until(lambda: b"new.wav" in pair.model.things)
        os.unlink(root / "sub" / "old.wav")
        (root / "sub" / "other").write_bytes(b"x" * 200_000)
        await pair.caught_up()
        pair.assert_equal()
