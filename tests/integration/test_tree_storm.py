"""Hostile programs in the Active's trees while engines are killed and frozen (HA_SYNC_ROUNDS for a long one)."""

import os
from pathlib import Path

import pytest

from tests.support.tree_storm import Storm

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "2"))
SEED = int(os.environ.get("HA_SYNC_SEED", "1"))


@pytest.mark.req("R20", "R21", "R22")
@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_the_standbys_trees_are_equal_after_any_storm_and_any_death(tmp_path: Path):
    Storm(str(tmp_path), seed=SEED, operations=150).run(ROUNDS)
