"""Draws the table for docs/arbiter.md: the diagram, its rows with their reasons, their conditions, what is ignored.

Pure: the text follows from ``transitions.TABLE`` alone. ``scripts/draw-arbiter`` writes it into the page, a test asks
whether the page is current.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ha_agent.arbiter.transitions import EVERY_EVENT, EVERY_PHASE, IGNORED, TABLE, Row, index
from ha_agent.arbiter.values import SERVING, WAITING, Phase

GROUPS = {"waiting": WAITING, "serving": SERVING}
"""Boxes of the diagram; a row of a whole box is drawn once, from its edge."""


def picture() -> str:
    """All that is generated, in Markdown."""
    parts = (diagram(), rows_table(), conditions_table(), ignored_table())
    return "\n\n".join(parts) + "\n"


def diagram() -> str:
    """The phases and the edges between them."""
    lines = ["```mermaid", "stateDiagram-v2"]
    for group, phases in GROUPS.items():
        lines += [f"    state {group} {{", *(f"        {phase.value}" for phase in _ordered(phases)), "    }"]
    edges: dict[tuple[str, str], list[str]] = {("[*]", Phase.STARTING.value): ["boot"]}
    for row in TABLE:
        if row.to is not None and row.phases != EVERY_PHASE - {row.to}:
            for start in _starts(row):
                edges.setdefault((start, row.to.value), []).append(row.name)
    lines += [f"    {start} --> {end}: {', '.join(names)}" for (start, end), names in edges.items()]
    lines += ["```"]
    anywhere = [f"`{row.name}` (to {row.to.value})" for row in TABLE if row.to and row.phases == EVERY_PHASE - {row.to}]
    return "\n".join([*lines, "", f"Not drawn, because it leads out of every phase: {', '.join(anywhere)}."])


def rows_table() -> str:
    """The rows in their order, which is part of the rules."""
    head = ["| row | in | on | if | to | does | why |", "| --- | --- | --- | --- | --- | --- | --- |"]
    return "\n".join([*head, *(_row(row) for row in TABLE)])


def conditions_table() -> str:
    """Each condition that a row names, in one sentence."""
    guards = {guard.__name__: guard for row in TABLE for guard in row.guards}
    head = ["| condition | holds when |", "| --- | --- |"]
    return "\n".join([*head, *(f"| {_words(name)} | {_sentence(guards[name])} |" for name in sorted(guards))])


def ignored_table() -> str:
    """Events without a row in some phases."""
    head = ["| event | without a row in | because |", "| --- | --- | --- |"]
    rows = index(TABLE)
    lines = []
    for kind in sorted(IGNORED, key=lambda kind: kind.__name__):
        phases = [phase for phase in Phase if not rows[phase, kind]]
        lines.append(f"| {kind.__name__} | {_phases(frozenset(phases))} | {IGNORED[kind]} |")
    return "\n".join([*head, *lines])


def _row(row: Row) -> str:
    to = row.to.value if row.to is not None else ""
    cells = (
        f"`{row.name}`",
        _phases(row.phases),
        "any" if row.on == EVERY_EVENT else ", ".join(kind.__name__ for kind in row.on),
        ", ".join(_words(guard.__name__) for guard in row.guards),
        to,
        ", ".join(_words(effect.__name__) for effect in row.effects),
        row.why,
    )
    return f"| {' | '.join(cells)} |"


def _starts(row: Row) -> list[str]:
    """Where the edges of a row begin: boxes as wholes, then single phases."""
    left = row.phases
    starts = []
    for group, phases in GROUPS.items():
        if phases <= left:
            starts.append(group)
            left -= phases
    return starts + [phase.value for phase in _ordered(left)]


def _phases(phases: frozenset[Phase]) -> str:
    if phases == EVERY_PHASE:
        return "any"
    if len(EVERY_PHASE - phases) <= 3:
        return f"any but {', '.join(phase.value for phase in _ordered(EVERY_PHASE - phases))}"
    return ", ".join(phase.value for phase in _ordered(phases))


def _ordered(phases: Iterable[Phase]) -> list[Phase]:
    chosen = set(phases)
    return [phase for phase in Phase if phase in chosen]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _sentence(guard: Callable[..., Any]) -> str:
    return " ".join((guard.__doc__ or "").split()).removesuffix(".")
