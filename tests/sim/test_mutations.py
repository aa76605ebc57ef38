"""Every row and every guard of the table is alive: without it the test that killers.json names fails."""

from __future__ import annotations

import pytest

from tests.sim.mutations import cases, killers, mutants, notices

MUTANTS = mutants()


@pytest.mark.req("R13")
def test_every_mutant_has_a_killer() -> None:
    assert killers().keys() == MUTANTS.keys(), "scripts/simulate --mutations looks for killers"
    assert set(killers().values()) <= cases().keys()


@pytest.mark.req("R13")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_table_that_lacks_it_is_noticed(mutant: str) -> None:
    assert notices(killers()[mutant], MUTANTS[mutant])
