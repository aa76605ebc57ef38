# ruff: noqa: ASYNC240 - the tests are the other program, and it blocks
"""Large files, small parts: whatever a program does and wherever the stream breaks, the Standby ends up equal.

HA_SYNC_ROUNDS: so many seeds, from HA_SYNC_SEED on.
"""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest

from ha_sync.capture.tree import parts
from tests.support.tree_apply_pair import TreePair

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "6"))
SEED = int(os.environ.get("HA_SYNC_SEED", "1"))
PART = 150_000
NAMES = ("a", "b", "c", "d")


class Program:
    """Does something to the files of a tree."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root = root
        self.rng = rng
        self.contents = [rng.randbytes(1_500_000) for _ in range(3)]

    def act(self) -> None:
        path, other = (self.root / self.rng.choice(NAMES) for _ in range(2))
        does = self.rng.choice(("write", "write", "append", "overwrite", "replace", "cut", "rename", "copy", "remove"))
        content = self.rng.choice(self.contents)[: self.rng.randrange(1, 1_500_000)]
        if does in {"write", "replace"} or not path.exists():
            made = path if does == "write" else self.root / "made"
            made.write_bytes(content)
            os.rename(made, path)
        elif does == "append":
            with path.open("ab") as file:
                file.write(content[:400_000])
        elif does == "overwrite":
            with path.open("r+b") as file:
                file.seek(self.rng.randrange(path.stat().st_size + 1))
                file.write(content[:200_000])
        elif does == "cut":
            os.truncate(path, self.rng.randrange(path.stat().st_size + 1))
        elif does == "rename":
            os.rename(path, other)
        elif does == "copy" and path != other:
            other.write_bytes(path.read_bytes())
        elif does == "remove":
            path.unlink()


@pytest.mark.req("R9", "R20", "R31")
@pytest.mark.timeout(60 + 30 * ROUNDS)
@pytest.mark.parametrize("growing", [False, True])
async def test_the_standby_is_equal_whatever_happens_between_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, growing: bool
) -> None:
    monkeypatch.setattr(parts, "PART_BYTES", PART)
    for seed in range(SEED, SEED + ROUNDS):
        try:
            await one_run(tmp_path / str(seed), random.Random(seed), growing=growing)
        except BaseException:
            print(f"seed {seed}")
            raise


async def one_run(base: Path, rng: random.Random, *, growing: bool) -> None:
    base.mkdir()
    async with TreePair(str(base), {"growing": growing, "mass_delete_percent": 100}) as pair:
        program = Program(base / "active", rng)
        for _ in range(4):
            for _ in range(rng.randrange(1, 8)):
                await asyncio.to_thread(program.act)
                await asyncio.sleep(rng.choice((0.0, 0.01, 0.05)))
                if rng.random() < 0.3:
                    await pair.close_sink()
                    if rng.random() < 0.5:
                        await pair.source.close()
                        await pair.open_source()
                    await pair.open_sink()
            await pair.caught_up()
            pair.assert_equal()
