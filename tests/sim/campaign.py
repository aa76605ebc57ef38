"""Plays many schedules; the seed is printed before its run begins, so that even a crash of Python tells it."""

from __future__ import annotations

import time
from collections import Counter

from tests.sim.schedule import kind_of, play

FOUND_MAX = 20


def campaign(first: int, count: int) -> int:
    """Play ``count`` schedules from seed ``first`` on; 1 if a seed breaks an invariant."""
    print(f"seed {first}, {count} schedules", flush=True)
    began = time.monotonic()
    played: Counter[str] = Counter()
    found = []
    for seed in range(first, first + count):
        played[kind_of(seed)] += 1
        try:
            play(seed)
        except AssertionError as broken:  # of the schedule, or one of the arbiter's own
            found.append(seed)
            print(f"FOUND {kind_of(seed)} seed {seed}: {broken}", flush=True)
            if len(found) >= FOUND_MAX:
                break
    kinds = ", ".join(f"{number} {kind}" for kind, number in sorted(played.items()))
    print(f"{sum(played.values())} schedules ({kinds}) in {time.monotonic() - began:.0f} s, {len(found)} found")
    return 1 if found else 0
