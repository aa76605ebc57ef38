"""Random faults of a whole pair beside a busy PBX (HA_SYNC_ROUNDS for a long one; `scripts/pair-campaign`)."""

import os
from pathlib import Path

import pytest

from tests.support import netns
from tests.support.pair_campaign import Campaign

REASON = netns.unavailable()
ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "3"))
SEED = int(os.environ.get("HA_SYNC_SEED", "1"))


@pytest.mark.root
@pytest.mark.skipif(REASON is not None, reason=REASON or "")
@pytest.mark.req("R10", "R13", "R20", "R22")
@pytest.mark.timeout(120 + 60 * ROUNDS)
def test_a_pair_stands_again_after_any_faults_with_equal_copies_and_nothing_covered_lost(tmp_path: Path) -> None:
    Campaign(str(tmp_path), seed=SEED).run(ROUNDS)
