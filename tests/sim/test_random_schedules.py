"""Random schedules: S1-S7 at every step, L1 after healing. The seed is printed first; one seed makes one run.

``HA_SYNC_ROUNDS`` sets how many (default 1,000), ``HA_SYNC_SEED`` the first. ``scripts/simulate`` plays campaigns.
"""

from __future__ import annotations

import os

import pytest

from tests.sim.schedule import kind_of, play

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "1000"))
FIRST = int(os.environ.get("HA_SYNC_SEED", "20261"))
PARTS = 10

FOUND_BY_CAMPAIGNS = (
    6682, 1002080, 1003325, 5000179, 5000425, 5001464, 5001797, 5003513, 5005235, 5005931,
    5010398, 5016739, 5021216, 5022476, 5026784, 5027234, 5027279, 7012244, 7017659, 7022378,
    10005676, 10006916, 10025239, 21005215, 30013892, 31005461, 31013183, 31021442,
    40026601, 40046302, 40047236, 41024591, 41045651, 50018966, 50021855, 51006824, 51010799, 61047680,
    394690415546, 394690422623, 770000067143, 880000016381, 881001031601, 883000039235,
)  # fmt: skip
"""Seeds whose schedules once broke an invariant, of the arbiter or of the simulator's own rules."""


@pytest.mark.req("R10", "R11", "R12", "R13")
@pytest.mark.parametrize("part", range(PARTS))
def test_no_schedule_breaks_an_invariant(part: int) -> None:
    for seed in range(FIRST + part, FIRST + ROUNDS, PARTS):
        print(f"seed {seed} ({kind_of(seed)})")
        play(seed)


@pytest.mark.req("R13")
@pytest.mark.parametrize("seed", FOUND_BY_CAMPAIGNS)
def test_what_a_campaign_once_found(seed: int) -> None:
    play(seed)


@pytest.mark.req("R13")
def test_one_seed_makes_one_run() -> None:
    assert play(17).log == play(17).log
