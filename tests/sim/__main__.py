"""What scripts/simulate runs: campaigns of random schedules, the exhaustive exploration, the search for killers."""

from __future__ import annotations

import argparse
import random
import sys

from tests.sim.campaign import campaign
from tests.sim.exhaustive import report
from tests.sim.mutations import search


def main() -> int:
    """0: nothing found. 1: something was, and it is told."""
    parser = argparse.ArgumentParser(prog="simulate", description=__doc__)
    parser.add_argument("--schedules", type=int, metavar="N", help="play so many random schedules")
    parser.add_argument("--seed", type=int, metavar="S", help="play this one; with --schedules: begin with it")
    parser.add_argument(
        "--mutations", nargs="?", const="missing", choices=("missing", "all"), help="look for tests that notice mutants"
    )
    parser.add_argument("--exhaustive", type=int, metavar="DEPTH", help="explore all moves of so many half seconds")
    parser.add_argument("--faults", type=int, default=2, metavar="N", help="of which so many are faults (2)")
    options = parser.parse_args()
    if options.exhaustive is not None:
        return report(options.exhaustive, options.faults)
    if options.mutations is not None:
        return search(anew=options.mutations == "all")
    first = options.seed if options.seed is not None else random.randrange(1 << 40)
    return campaign(first, options.schedules or (1 if options.seed is not None else 1000))


if __name__ == "__main__":
    sys.exit(main())
