"""What an idle engine costs: processor time of both engines while nothing happens.

The sample PBX has made its databases and files and has ended; the pair is in sync and keeps all nine datasets under
watch. The larger of the two engines' shares is the figure; children are counted.
"""

from __future__ import annotations

import os
import sys
import time

from benchmarks.busy import toml, warm
from benchmarks.harness.result import median
from benchmarks.harness.run import Run, drain, main, meters

SLICE_S = 5.0
SETTLE_S = 5.0


def measure(run: Run) -> None:
    """See the module."""
    slices = 5 if run.quick else 24
    with run.pair(toml) as pair:
        warm(pair, os.path.join(run.place("ledger"), "ledger.jsonl"))
        pair.start()
        drain(pair.a)
        time.sleep(SETTLE_S)
        run.say("idle")
        active, standby = [], []
        for _ in range(slices):
            one, other = meters(pair)
            time.sleep(SLICE_S)
            active.append(one.percent())
            standby.append(other.percent())
    worse = active if sum(active) >= sum(standby) else standby
    run.figures["cpu_percent"] = median(worse, "% of a core")
    run.figures["cpu_percent_idle_active"] = median(active, "% of a core")
    run.figures["cpu_percent_idle_standby"] = median(standby, "% of a core")


if __name__ == "__main__":
    sys.exit(main("idle", measure))
