"""Plays many schedules; the seed is printed before its run begins, so that even a crash of Python tells it."""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter

from tests.sim.schedule import kind_of, play
from tests.sim.world import Violation

FOUND_MAX = 20


def main(arguments: list[str] | None = None) -> int:
    """0: nothing found. 1: seeds whose run breaks an invariant are listed."""
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    parser.add_argument("--schedules", type=int, default=1000, help="how many to play")
    parser.add_argument("--seed", type=int, help="play this one only; with --schedules: the first one")
    options = parser.parse_args(arguments)
    first = options.seed if options.seed is not None else random.randrange(1 << 40)
    count = 1 if options.seed is not None and "--schedules" not in (arguments or sys.argv) else options.schedules
    return campaign(first, count)


def campaign(first: int, count: int) -> int:
    """Play ``count`` schedules from seed ``first`` on."""
    print(f"seed {first}, {count} schedules", flush=True)
    began = time.monotonic()
    played: Counter[str] = Counter()
    found = []
    for seed in range(first, first + count):
        played[kind_of(seed)] += 1
        try:
            play(seed)
        except Violation as violation:
            found.append(seed)
            print(f"FOUND {kind_of(seed)} {violation}", flush=True)
            if len(found) >= FOUND_MAX:
                break
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(played.items()))
    print(f"{sum(played.values())} schedules ({kinds}) in {time.monotonic() - began:.0f} s, {len(found)} found")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
