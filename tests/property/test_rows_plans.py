"""Random plans without processes, tasks and wire: many more in the same time, and they shrink (R22)."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.rows_direct import RowsDirect
from tests.support.rows_pipe import content
from tests.support.rows_plans import Plan, plans

# A run without the knob tries the same plans every time; a campaign (HA_SYNC_ROUNDS=300) tries new ones.
ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "0"))
PLANS_PER_ROUND = 20
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # nothing is killed here: syncing proves nothing


@pytest.mark.req("R20", "R22", "R25")
@settings(
    max_examples=ROUNDS * PLANS_PER_ROUND or 150,
    derandomize=not ROUNDS,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(plan=plans())
def test_whatever_the_writer_does_the_standby_ends_equal_and_no_statement_fails_because_of_us(plan: Plan) -> None:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory, RowsDirect(Path(directory), *plan.schema) as pair:
        pair.run(f"PRAGMA foreign_keys={int(plan.foreign_keys)}")
        for kind, statements in plan.steps:
            if kind == "work" and statements == ["VACUUM"]:
                pair.run("VACUUM")
            elif kind == "work":
                pair.work(*statements[:-1], keep=statements[-1] == "COMMIT")
            elif kind == "settle":
                pair.ship()
                assert content(pair.standby) == content(pair.active)
            elif kind == "cut":
                pair.lose()
            else:
                pair.crash()
        pair.ship()
        assert content(pair.standby) == content(pair.active)
        assert not [error for error in pair.errors if "_ha_" in error], "a statement of the writer failed because of us"
