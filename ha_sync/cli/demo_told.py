"""What the demo found, for a person and as JSON. The JSON names are a stable contract; times in their names' unit."""

from __future__ import annotations

from dataclasses import asdict
from typing import Final

from ha_sync.cli.demo_run import Outcome
from ha_sync.cli.output import table
from ha_sync.cli.switch_lines import PHASES

MISSING_TOLD_MAX: Final = 20
REJECTED_TOLD_MAX: Final = 5
WAYS: Final = {"udp": "UDP echo", "arp": "ARP"}


def lines_of(outcome: Outcome) -> list[str]:
    """For a terminal."""
    verdict, switch = outcome.verdict, outcome.take_over
    lag = [(one.dataset, f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}", str(one.samples)) for one in outcome.lag]
    parts = ", ".join(f"{name} {switch.phases_s[name]:.2f}" for name in PHASES if name in switch.phases_s)
    asked = "a stand-in on loopback" if outcome.stand_in else "a real address"
    return [
        "",
        *table(("DATASET", "LAG P50 MS", "P99 MS", "CHANGES"), lag, right=frozenset({1, 2, 3})),
        "",
        f"take-over, seconds:                 {parts}",
        f"from the kill, seconds:             address {switch.address_s:.2f}, PBX at work {switch.working_s:.2f}",
        *(
            f"client of {outcome.cluster_ip} ({asked}) without an answer to {WAYS[name]}: {seconds:.2f} s"
            for name, seconds in switch.outages_s.items()
        ),
        f"finished for the dead node:         {switch.finished}",
        "",
        f"acknowledged and present:           {verdict.present}",
        f"acknowledged and missing:           {len(verdict.acknowledged_missing)}",
        f"never acknowledged and lost:        {verdict.unacknowledged_lost}",
        f"refused to the PBX because of us:   {len(verdict.rejected)}",
        *(f"  {line}" for line in verdict.acknowledged_missing[:MISSING_TOLD_MAX]),
        *(f"  {line}" for line in verdict.faults[:MISSING_TOLD_MAX]),
        *(f"  {line}" for line in verdict.rejected[:REJECTED_TOLD_MAX]),
    ]


def facts_of(outcome: Outcome) -> dict[str, object]:
    """For a program."""
    verdict, switch = outcome.verdict, outcome.take_over
    return {
        "acknowledged_missing": list(verdict.acknowledged_missing),
        "unacknowledged_lost": verdict.unacknowledged_lost,
        "present": verdict.present,
        "by_kind": {kind: asdict(count) for kind, count in verdict.by_kind.items()},
        "faults": list(verdict.faults),
        "rejected": verdict.rejected,
        "promotion_s": switch.promotion_s,
        "finished": switch.finished,
        "lag_ms": {one.dataset: {"p50": one.p50_ms, "p99": one.p99_ms, "samples": one.samples} for one in outcome.lag},
        "take_over": {
            "epoch": switch.epoch,
            "phases_s": {name: switch.phases_s.get(name) for name in PHASES},
            "address_s": switch.address_s,
            "working_s": switch.working_s,
        },
        "client": {
            "cluster_ip": outcome.cluster_ip,
            "stand_in": outcome.stand_in,
            "outage_s": {name: switch.outages_s.get(name) for name in WAYS},
        },
    }
