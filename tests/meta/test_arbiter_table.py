"""The arbiter's table is whole: events answered or ignored with a reason, actions known, the page current."""

from __future__ import annotations

import dataclasses
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ha_agent.arbiter import actions, effects, facts, step
from ha_agent.arbiter.actions import Action
from ha_agent.arbiter.picture import picture
from ha_agent.arbiter.transitions import EVERY_EVENT, IGNORED, TABLE, index
from ha_agent.arbiter.values import Phase
from tests.sim.node import DEEDS

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "docs" / "arbiter.md"
UNION = set(Action.__args__)


@pytest.mark.req("R13")
def test_every_event_has_a_row_in_every_phase_or_is_ignored_with_a_reason() -> None:
    rows = index(TABLE)
    unanswered = {kind for phase in Phase for kind in EVERY_EVENT if not rows[phase, kind]}
    assert unanswered == IGNORED.keys()
    assert all(IGNORED.values())


def test_rows_have_names_of_their_own_and_say_why() -> None:
    assert len({row.name for row in TABLE}) == len(TABLE)
    assert all(row.why and row.phases and row.on and row.effects for row in TABLE)
    assert all(guard.__doc__ for row in TABLE for guard in row.guards)


def test_every_action_that_the_arbiter_names_is_of_the_union_that_drivers_know() -> None:
    defined = {thing for _, thing in inspect.getmembers(actions, dataclasses.is_dataclass)}
    made_here = {thing for thing in defined if thing.__module__ == actions.__name__}
    assert made_here == UNION
    used = {thing for module in (effects, facts, step) for _, thing in inspect.getmembers(module, inspect.isclass)}
    assert used >= UNION, "an action that nobody orders"


def test_the_simulators_driver_knows_every_action() -> None:
    assert DEEDS.keys() == UNION


def test_the_page_is_current() -> None:
    done = subprocess.run(
        [ROOT / "scripts/draw-arbiter", "--check"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHON": sys.executable},
    )
    assert done.returncode == 0, done.stderr
    assert picture() in PAGE.read_text()


def test_a_page_that_is_not_current_is_noticed(tmp_path: Path) -> None:
    for name in ("docs", "scripts"):
        (tmp_path / name).mkdir()
    script = tmp_path / "scripts/draw-arbiter"
    script.write_text((ROOT / "scripts/draw-arbiter").read_text())
    (tmp_path / "docs/arbiter.md").write_text(PAGE.read_text().replace("two Actives meet", "two meet"))
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", script, "--check"], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, "not current" in done.stderr) == (1, True)


def test_the_page_explains_every_phase() -> None:
    text = PAGE.read_text()
    assert not [phase.value for phase in Phase if f"\n| {phase.value} | " not in text]
