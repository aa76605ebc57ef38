"""Mutants of the table: one row, or one guard of one row, is taken out. Each must make a test fail.

``killers.json`` names for each mutant the test that notices it, so that CI runs one test a mutant. ``search`` makes the
map: it tries all tests of the named schedules and of single rows. A mutant that nobody notices needs a test in
test_rows.py, or the guard is superfluous.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ha_agent.arbiter.step import INDEX
from ha_agent.arbiter.transitions import TABLE, Row, index
from tests.sim.world import World

KILLERS = Path(__file__).with_name("killers.json")
MODULES = tuple(
    f"tests.sim.test_{subject}"
    for subject in (
        "rows", "counter_examples", "boot", "death", "links", "hand_over", "faults", "contradictions", "force"
    )
)  # fmt: skip
RECENT = 8


def mutants() -> dict[str, tuple[Row, ...]]:
    """The tables that lack one row or one guard, by name."""
    found: dict[str, tuple[Row, ...]] = {}
    for row in TABLE:
        found[row.name] = tuple(one for one in TABLE if one is not row)
        for guard in row.guards:
            less = replace(row, guards=tuple(one for one in row.guards if one is not guard))
            found[f"{row.name} / {guard.__name__}"] = tuple(less if one is row else one for one in TABLE)
    return found


@functools.cache
def cases() -> dict[str, Callable[[], object]]:
    """Everything that may notice a mutant."""
    found: dict[str, Callable[[], object]] = {}
    for module in MODULES:
        for name, function in inspect.getmembers(importlib.import_module(module), inspect.isfunction):
            if name.startswith("test_") and function.__module__ == module:
                for label, arguments in _parameters(function):
                    found[name + label] = lambda function=function, arguments=arguments: function(**arguments)  # type: ignore[misc]
    return found


def _parameters(function: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    marks = [mark for mark in getattr(function, "pytestmark", []) if mark.name == "parametrize"]
    choices = [[(mark.args[0], value) for value in mark.args[1]] for mark in marks]
    for chosen in itertools.product(*choices):
        label = "".join(f"[{value}]" for _, value in chosen)
        yield label, dict(chosen)


def case(name: str) -> Callable[[], object]:
    """A case by its name."""
    return cases()[name]


@contextlib.contextmanager
def table(rows: tuple[Row, ...]) -> Iterator[None]:
    """Let all worlds run by another table."""
    World.table = index(rows)
    try:
        yield
    finally:
        World.table = INDEX


def notices(name: str, rows: tuple[Row, ...]) -> bool:
    """Whether the case fails by that table."""
    with table(rows):
        try:
            case(name)()
        except Exception:  # noqa: BLE001 - a mutant may break anything
            return True
    return False


def killers() -> dict[str, str]:
    """Mutant to case."""
    return dict(json.loads(KILLERS.read_text())) if KILLERS.exists() else {}


def search(*, anew: bool) -> int:
    """Find a killer for every mutant that has none, or whose killer sleeps; 1 if one lives on."""
    known = {} if anew else killers()
    alive = []
    everything = mutants()
    for number, (mutant, rows) in enumerate(everything.items(), start=1):
        if mutant in known and known[mutant] in cases() and notices(known[mutant], rows):
            continue
        known.pop(mutant, None)
        recent = [*dict.fromkeys(reversed(list(known.values())))][
            :RECENT
        ]  # what notices one guard of a row notices more
        order = [name for name in dict.fromkeys([*recent, *cases()]) if name in cases()]
        killer = next((name for name in order if notices(name, rows)), None)
        print(f"{number}/{len(everything)} {mutant}: {killer}", flush=True)
        if killer is None:
            alive.append(mutant)
        else:
            known[mutant] = killer
        ordered = {name: known[name] for name in everything if name in known}
        KILLERS.write_text(json.dumps(ordered, indent=1) + "\n")
    print(f"{len(everything)} mutants, alive: {alive or 'none'}")
    return 1 if alive else 0
