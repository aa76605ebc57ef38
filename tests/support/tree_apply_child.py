"""Applies a producer's groups in processes that kill themselves at a given fail point.

    python -m tests.support.tree_apply_child MODE BASE SEED GROUPS POINT...

MODE is ``live``, or ``bulk``: the groups are of a full sync, and a batch syncs while the next one is staged. Each point
gets BASE/<point>/ with a root and a catalogue, and a process of its own. A point that was not reached leaves a file
``finished``.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterator

from ha_sync.apply.tree import staging
from ha_sync.apply.tree.applier import Applier
from ha_sync.apply.tree.changes import Piece, decode
from tests.support.tree_apply_feed import at, frame, settings
from tests.support.tree_apply_model import Producer


def pieces(seed: int, groups: int, *, bulk: bool = False) -> list[Piece]:
    """``bulk``: only the last group ends the full sync."""
    producer = Producer(seed)
    return [
        decode(frame(producer.group(), at(number), consistent=number == groups or not bulk))
        for number in range(1, groups + 1)
    ]


@contextlib.contextmanager
def small_batches() -> Iterator[None]:
    """Every group with a file is a batch that syncs in the other thread."""
    before = staging.SYNCFS_FROM, staging.BATCH_STEPS_MAX
    staging.SYNCFS_FROM = staging.BATCH_STEPS_MAX = 1
    try:
        yield
    finally:
        staging.SYNCFS_FROM, staging.BATCH_STEPS_MAX = before


def open_applier(base: str, **more: object) -> Applier:
    return Applier(
        settings(os.path.join(base, "root")),
        catalogue_path=os.path.join(base, "catalogue.db"),
        report=lambda *_: None,
        durable=lambda _: None,
        **more,  # type: ignore[arg-type]
    )


def run(base: str, seed: int, groups: int, point: int, *, bulk: bool) -> None:
    """Never returns normally when the point is reached."""
    calls = itertools.count(1)

    def fail_point(_: str) -> None:
        if next(calls) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    applier = open_applier(base, fail_point=fail_point)
    applier.begin(comparing=False, now=time.monotonic())
    waiting = iter(pieces(seed, groups, bulk=bulk))
    # Groups come one, two or three at a time, so that some share a commit.
    for together in itertools.cycle((1, 3, 2)):
        batch = iter(list(itertools.islice(waiting, together)))
        first = next(batch, None)
        if first is None:
            break
        round_ = itertools.chain([first], batch)
        progress = applier.work(lambda it=round_: next(it, None), clock=time.monotonic)  # type: ignore[misc]
        if progress.failure is not None:
            raise progress.failure
        if together == 2:
            applier.settle()
    with open(os.path.join(base, "finished"), "w", encoding="ascii"):
        pass


def main() -> None:
    mode, base, seed, groups, *points = sys.argv[1:]
    bulk = mode == "bulk"
    for point in points:
        place = os.path.join(base, point)
        os.makedirs(place)
        child = os.fork()
        if child == 0:
            try:
                with small_batches() if bulk else contextlib.nullcontext():
                    run(place, int(seed), int(groups), int(point), bulk=bulk)
                os._exit(0)
            except BaseException as error:  # noqa: BLE001 - told to the test
                print(point, repr(error), file=sys.stderr)
                os._exit(1)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status) and os.WEXITSTATUS(status):
            sys.exit(1)


if __name__ == "__main__":
    main()
