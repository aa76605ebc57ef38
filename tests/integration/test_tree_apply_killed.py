"""The applier is killed at every numbered step: every group is then there whole or not at all, and nothing is left."""

from __future__ import annotations

import errno
import itertools
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ha_sync.apply.tree import staging
from ha_sync.apply.tree.changes import Piece, decode
from ha_sync.apply.tree.survey import Survey
from tests.support.tree_apply_child import open_applier, pieces, small_batches
from tests.support.tree_apply_feed import Part, at, delete, directory, frame, grow, put, tree_of
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


def kill_at(base: Path, mode: str, seed: int, points: list[int]) -> None:
    child = [sys.executable, "-m", "tests.support.tree_apply_child", mode]
    done = subprocess.run(
        [*child, str(base), str(seed), str(GROUPS), *map(str, points)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(["proto", "."])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def check(base: Path, mode: str, seed: int, expected: list[dict[str, object]]) -> None:
    applier = open_applier(str(base))
    applier.begin(comparing=False, now=time.monotonic())
    root = str(base / "root")
    reached = applier.applied.sequence
    assert tree_of(root) == expected[reached], (base, reached)
    assert os.listdir(f"{root}/.ha-stage") == []
    rest = iter(pieces(seed, GROUPS, bulk=mode == "bulk")[reached:])
    progress = applier.work(lambda: next(rest, None), clock=time.monotonic)
    assert progress.failure is None, (base, reached, progress)
    assert tree_of(root) == expected[-1]
    assert applier.tree is not None
    survey = Survey(applier.tree.root, scope=applier.scope, catalogue=applier.catalogue, report=applier.report)
    list(survey.chunks())
    assert survey.hashed == 0, "the catalogue knows everything that was published"
    applier.close()


@pytest.mark.req("R22")
@pytest.mark.parametrize("mode", ["live", "bulk"])
@pytest.mark.parametrize("seed", SEEDS)
def test_killed_at_any_step_every_group_is_whole(tmp_path: Path, seed: int, mode: str) -> None:
    expected = states(seed)
    first = 1 + seed % STEP
    for begin in range(first, 2000, 40 * STEP):
        points = list(range(begin, begin + 40 * STEP, STEP))
        kill_at(tmp_path, mode, seed, points)
        for point in points:
            check(tmp_path / str(point), mode, seed, expected)
        if (tmp_path / str(points[-1]) / "finished").exists():
            return
    raise AssertionError("the end was never reached")


class Disk:
    """Its sync returns when it is told how."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self._answers: queue.Queue[OSError | None] = queue.Queue()
        monkeypatch.setattr("ha_sync.apply.tree.syncing.syncfs", self._sync)

    def _sync(self, _: int) -> None:
        self.begun += 1
        if (error := self._answers.get()) is not None:
            raise error

    def answer(self, error: OSError | None = None) -> None:
        self._answers.put(error)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    with small_batches():
        yield Disk(monkeypatch)


def bulk(*groups: list[Part]) -> Callable[[], Piece | None]:
    waiting = iter([decode(frame(group, at(number), consistent=False)) for number, group in enumerate(groups, 1)])
    return lambda: next(waiting, None)


def test_the_next_batch_is_staged_while_one_syncs_and_neither_is_told_before_it_is_durable(
    tmp_path: Path, disk: Disk
) -> None:
    woken = threading.Event()
    applier = open_applier(str(tmp_path), synced=woken.set)
    applier.begin(comparing=True, now=1.0)
    take = bulk([put(b"a", b"first")], [put(b"a", b"second"), put(b"b", b"of the second")])
    disk_waits = itertools.chain([take()], iter(lambda: None, 0))
    assert applier.work(lambda: next(disk_waits), clock=time.monotonic).failure is None
    assert (applier.applied.sequence, applier.idle, tree_of(str(tmp_path / "root"))) == (0, False, {})
    second = itertools.chain([decode(frame([put(b"b", b"more")], at(2), consistent=False))], iter(lambda: None, 0))
    staging.BATCH_STEPS_MAX = 9  # it waits for more
    assert applier.work(lambda: next(second), clock=time.monotonic).failure is None
    assert (applier.applied.sequence, disk.begun) == (0, 1)
    disk.answer()
    assert woken.wait(10)
    assert applier.work(lambda: None, clock=time.monotonic).failure is None
    assert applier.applied.sequence == 1
    assert tree_of(str(tmp_path / "root")) == {"a": ("file", 0o644, b"first")}
    disk.answer()  # of the second, which syncs by now
    last = iter([decode(frame([put(b"c", b"last")], at(3)))])
    assert applier.work(lambda: next(last, None), clock=time.monotonic).failure is None
    assert (applier.applied.sequence, applier.consistent, disk.begun) == (3, True, 2)
    assert sorted(tree_of(str(tmp_path / "root"))) == ["a", "b", "c"]
    applier.close()


def test_what_comes_after_a_batch_that_cannot_be_synced_is_not_committed(tmp_path: Path, disk: Disk) -> None:
    applier = open_applier(str(tmp_path))
    applier.begin(comparing=True, now=1.0)
    disk.answer(OSError(errno.EIO, "the disk is broken"))
    disk.answer()
    progress = applier.work(bulk([put(b"a", b"first")], [put(b"b", b"second")]), clock=time.monotonic)
    while progress.failure is None and not applier.idle:
        progress = applier.work(lambda: None, clock=time.monotonic)
    assert isinstance(progress.failure, OSError)
    assert applier.applied.sequence == 0
    assert tree_of(str(tmp_path / "root")) == {}
    applier.begin(comparing=True, now=1.0)
    disk.answer()
    disk.answer()
    last = iter([decode(frame([put(b"a", b"first")], at(1), consistent=False)), decode(frame([], at(2)))])
    assert applier.work(lambda: next(last, None), clock=time.monotonic).failure is None
    assert (applier.applied.sequence, sorted(tree_of(str(tmp_path / "root")))) == (2, ["a"])
    applier.close()


def test_a_recording_that_the_next_batch_takes_over_is_known_until_that_one_is_durable(
    tmp_path: Path, disk: Disk
) -> None:
    applier = open_applier(str(tmp_path))
    applier.begin(comparing=False, now=1.0)
    first = iter([decode(frame([grow(b"call.wav", 0, b"spoken so far")], at(1)))])
    assert applier.work(lambda: next(first, None), clock=time.monotonic).failure is None
    known = applier.catalogue.values_with_prefix("partial:")
    assert known
    points: list[tuple[str, bool]] = []
    applier._fail_point = lambda point: points.append((point, bool(applier.catalogue.values_with_prefix("partial:"))))
    disk.answer()
    disk.answer()
    rest = iter(
        [
            decode(frame([put(b"a", b"another")], at(2), consistent=False)),
            decode(frame([put(b"call.wav", b"spoken so far and further")], at(3), consistent=False)),
            decode(frame([], at(4))),
        ]
    )
    assert applier.work(lambda: next(rest, None), clock=time.monotonic).failure is None
    durable = [known for point, known in points if point == "DURABLE"]
    assert durable == [True, False, False]
    applier.close()


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
