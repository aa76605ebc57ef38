"""All orders of few faults, to a stated depth; and the exploration finds what a broken table does.

``scripts/simulate --exhaustive DEPTH --faults N`` goes deeper.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from ha_agent.arbiter.state import Settings
from ha_agent.arbiter.transitions import TABLE
from tests.sim.exhaustive import STARTS, explore, settings_of
from tests.sim.mutations import table
from tests.sim.rounds import Found, Place


@pytest.mark.req("R10", "R11", "R13")
@pytest.mark.parametrize(("faults", "depth"), [(1, 24), (2, 8)])
@pytest.mark.parametrize("start", STARTS)
def test_no_order_of_faults_breaks_an_invariant(start: str, faults: int, depth: int) -> None:
    settings = settings_of()
    explored = explore(STARTS[start](settings), settings, depth=depth, faults=faults)
    print(f"{start}: {faults} faults, {explored}")
    assert explored.rounds > explored.places > 400, "nothing was explored"
    assert explored.instants < explored.rounds / 1000


@pytest.mark.req("R13")
@pytest.mark.parametrize(
    ("lacking", "invariant"), [({"silent_enough", "nobody_answers", "claim_probed"}, "S1"), ({"sound"}, "S4")]
)
def test_a_broken_table_is_found(lacking: set[str], invariant: str) -> None:
    rows = tuple(
        replace(row, guards=tuple(guard for guard in row.guards if guard.__name__ not in lacking)) for row in TABLE
    )
    settings = settings_of()
    starts = [start(settings) for start in STARTS.values()]  # pairs that the whole table formed
    with table(rows), pytest.raises(Found, match=invariant):
        explore_all(starts, settings)


def explore_all(starts: list[Place], settings: tuple[Settings, Settings]) -> None:
    for start in starts:
        explore(start, settings, depth=12, faults=1)
