"""A bad network for hours: the role does not move."""

from __future__ import annotations

import pytest

from tests.sim.long import moves_under_loss, moves_without_anything, moves_without_cable


@pytest.mark.req("R11")
def test_a_day_of_thirty_percent_loss_switches_nothing() -> None:
    assert moves_under_loss(24.0, beat_s=0.5) == 0


@pytest.mark.req("R11")
def test_an_hour_of_thirty_percent_loss_switches_nothing_at_the_shortest_timeout() -> None:
    assert moves_under_loss(1.0, beat_s=0.1, timeout_s=3.0) == 0


@pytest.mark.req("R11")
def test_an_hour_without_the_heartbeat_cable_switches_nothing() -> None:
    assert moves_without_cable(1.0) == 0


def test_what_counts_the_moves_of_the_role_counts_one_that_must_happen() -> None:
    assert moves_without_anything(0.01) == 2
