"""SIGKILL at random moments of exports and restores (short form; scripts/package-campaign is the long one)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.package_campaign import Campaign

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "6"))


@pytest.mark.req("R24")
@pytest.mark.timeout(120 + 15 * ROUNDS)
def test_whatever_is_killed_the_data_and_the_package_are_before_or_after(tmp_path: Path) -> None:
    Campaign(str(tmp_path), seed=20260701).run(ROUNDS)
