"""The applier is killed at every numbered step: every group is then there whole or not at all, and nothing is left."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ha_sync.apply.tree.changes import decode
from ha_sync.apply.tree.survey import Survey
from tests.support.tree_apply_child import open_applier, pieces
from tests.support.tree_apply_feed import at, delete, directory, frame, put, tree_of
from tests.support.tree_apply_model import Producer

GROUPS = 12
SEEDS = range(1, 1 + int(os.environ.get("HA_SYNC_ROUNDS", "2")))
STEP = 3 if "HA_SYNC_ROUNDS" not in os.environ else 1
"""In CI every third step of each seed, each seed beginning with another one."""


def states(seed: int) -> list[dict[str, object]]:
    producer = Producer(seed)
    known: list[dict[str, object]] = [{}]
    for _ in range(GROUPS):
        producer.group()
        known.append(dict(producer.told()))
    return known


def kill_at(base: Path, seed: int, points: list[int]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.tree_apply_child", str(base), str(seed), str(GROUPS), *map(str, points)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["proto", "."])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def check(base: Path, seed: int, expected: list[dict[str, object]]) -> None:
    applier = open_applier(str(base))
    applier.begin(comparing=False, now=time.monotonic())
    root = str(base / "root")
    reached = applier.applied.sequence
    assert tree_of(root) == expected[reached], (base, reached)
    assert os.listdir(f"{root}/.ha-stage") == []
    rest = iter(pieces(seed, GROUPS)[reached:])
    progress = applier.work(lambda: next(rest, None), clock=time.monotonic)
    assert progress.failure is None, (base, reached, progress)
    assert tree_of(root) == expected[-1]
    assert applier.tree is not None
    survey = Survey(applier.tree.root, scope=applier.scope, catalogue=applier.catalogue, report=applier.report)
    list(survey.chunks())
    assert survey.hashed == 0, "the catalogue knows everything that was published"
    applier.close()


@pytest.mark.req("R22")
@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_any_step_every_group_is_whole(tmp_path: Path, seed: int) -> None:
    expected = states(seed)
    first = 1 + seed % STEP
    for begin in range(first, 2000, 40 * STEP):
        points = list(range(begin, begin + 40 * STEP, STEP))
        kill_at(tmp_path, seed, points)
        for point in points:
            check(tmp_path / str(point), seed, expected)
        if (tmp_path / str(points[-1]) / "finished").exists():
            return
    raise AssertionError("the end was never reached")


class Killed(BaseException):
    """Like a SIGKILL: nothing of ours handles it."""


@pytest.mark.req("R22")
def test_a_file_that_took_the_place_of_a_directory_in_one_commit_stays_when_the_commit_is_repeated(
    tmp_path: Path,
) -> None:
    def killed(point: str) -> None:
        if point == "PERFORMED":
            raise Killed

    groups = [
        [directory(b"d"), put(b"d/x", b"below")],
        [delete(b"d"), put(b"d", b"instead of it")],
    ]
    waiting = iter([decode(frame(group, at(number))) for number, group in enumerate(groups, 1)])
    applier = open_applier(str(tmp_path), fail_point=killed)
    applier.begin(comparing=False, now=1.0)
    with pytest.raises(Killed):
        applier.work(lambda: next(waiting, None), clock=time.monotonic)
    applier.catalogue.close()
    after = open_applier(str(tmp_path))
    after.begin(comparing=False, now=1.0)
    assert after.applied.sequence == 2
    assert tree_of(str(tmp_path / "root")) == {"d": ("file", 0o644, b"instead of it")}
    after.close()
