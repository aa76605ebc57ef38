"""Whatever another program does to a tree, a strict Standby that applies the frames has the same tree."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest

from tests.support.tree_capture_model import Pair, settings_of

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "4"))
HERE = Path(__file__).parents[2]


async def write(root: Path, seed: int, count: int) -> None:
    """In a process of its own."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.tree_capture_writer", str(root), str(seed), str(count), cwd=HERE
    )  # fmt: skip
    assert await process.wait() == 0


def prepared(tmp_path: Path, **changes: object) -> Pair:
    (tmp_path / "tree").mkdir()
    settings = settings_of(tmp_path / "tree", mass_delete_percent=100, **changes)
    return Pair(settings, tmp_path / "state" / "c.db")


@pytest.mark.req("R20", "R22")
@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("growing", [False, True])
async def test_the_standby_has_the_tree_in_bytes_modes_and_times(tmp_path, seed, growing):
    async with prepared(tmp_path, growing=growing) as pair:
        for part in range(3):
            await write(tmp_path / "tree", seed * 10 + part, 80)
            await pair.caught_up()
            pair.assert_equal()


@pytest.mark.req("R22")
@pytest.mark.parametrize("seed", range(ROUNDS))
async def test_broken_connections_and_restarts_lose_nothing(tmp_path, seed):
    pair = prepared(tmp_path)
    print("seed", seed)
    chance = random.Random(seed)
    await pair.start()
    for part in range(6):
        writing = asyncio.create_task(write(tmp_path / "tree", 1000 + seed * 10 + part, 60))
        pair.acknowledging = chance.random() < 0.7
        await asyncio.sleep(chance.random() * 0.3)
        await pair.disconnect()
        if chance.random() < 0.5:
            await pair.source.close()
            pair = Pair(pair.settings, pair.catalogue, model=pair.model)
            await pair.start()
        else:
            await pair.connect()
        await writing
    pair.acknowledging = True
    pair.session.acknowledge(pair.model.applied)
    await pair.caught_up()
    pair.assert_equal()
    await pair.stop()
