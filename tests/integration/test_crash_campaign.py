"""SIGKILL of either engine at random moments beside a busy PBX (short form; scripts/crash-campaign is the long one)."""

import os
from pathlib import Path

import pytest

from tests.support.crash_campaign import Campaign

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "10"))


@pytest.mark.req("R22", "R25", "R26")
@pytest.mark.timeout(120 + 15 * ROUNDS)
def test_nothing_acknowledged_is_missing_whatever_engine_is_killed(tmp_path: Path):
    Campaign(str(tmp_path), seed=20261122, calls=10).run(ROUNDS)
