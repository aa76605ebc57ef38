"""Whether a package fits this node, and what of it is restored. Pure.

A package of another cluster or another model is refused unless the administrator says that he means it (``foreign``:
a migration). A newer schema is always refused: the programs here could not read it. What the package has and this node
does not is refused, unless the datasets were chosen; what only this node has stays as it is, and is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ha_sync.backup.package.format import Described, Head


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """This node."""

    cluster_id: str  # empty: not paired
    model: str  # empty: unknown
    firmware: str
    kinds: Mapping[str, str]  # of the datasets configured here, in their order
    versions: Mapping[str, int | None]  # ``user_version`` of each database; None: unknown, or there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The answer."""

    chosen: tuple[str, ...]
    refusals: tuple[str, ...]  # one is enough
    notes: tuple[str, ...]

    @property
    def reason(self) -> str:
        """The refusals in one line."""
        return "; ".join(self.refusals)


def fit(head: Head, node: NodeFacts, *, datasets: tuple[str, ...], foreign: bool) -> Fit:
    """``datasets``: only these; empty: all."""
    refusals: list[str] = []
    notes: list[str] = []
    for differs in _strange(head, node):
        (notes if foreign else refusals).append(differs)
    if head.firmware != node.firmware and head.firmware and node.firmware:
        notes.append(f"it was made with firmware {head.firmware}, this node has {node.firmware}")
    chosen = _chosen(head, node, datasets, refusals, notes)
    for one in head.datasets:
        if one.name in chosen:
            refusals.extend(_unfit(one, node))
    if head.moving:
        notes.append(f"{head.moving} files did not hold still when it was made")
    return Fit(chosen=chosen, refusals=tuple(refusals), notes=tuple(notes))


def _strange(head: Head, node: NodeFacts) -> list[str]:
    found = []
    if head.cluster_id != node.cluster_id:
        theirs, mine = head.cluster_id or "a node that was not paired", node.cluster_id or "not paired"
        found.append(f"it is of another cluster: of {theirs}, this node is {mine} (--foreign for a migration)")
    if head.model != node.model and head.model and node.model:
        found.append(f"it is of model {head.model}, this node is {node.model} (--foreign for a migration)")
    return found


def _chosen(
    head: Head, node: NodeFacts, datasets: tuple[str, ...], refusals: list[str], notes: list[str]
) -> tuple[str, ...]:
    present = [one.name for one in head.datasets if one.present]
    for name in datasets:
        if name not in present:
            refusals.append(f"dataset {name!r} is not in the package; there are: {', '.join(present) or 'none'}")
        elif name not in node.kinds:
            refusals.append(f"dataset {name!r} is not configured here")
    if datasets:
        return tuple(name for name in present if name in datasets and name in node.kinds)
    strange = [name for name in present if name not in node.kinds]
    if strange:
        refusals.append(f"not configured here: {', '.join(strange)} (--dataset to choose which to restore)")
    staying = [name for name in node.kinds if name not in present]
    if staying:
        notes.append(f"not in the package, so they stay as they are: {', '.join(staying)}")
    chosen = tuple(name for name in present if name in node.kinds)
    if not chosen and not strange:
        refusals.append("there is nothing in it")
    return chosen


def _unfit(one: Described, node: NodeFacts) -> list[str]:
    if one.kind != node.kinds[one.name]:
        return [f"dataset {one.name!r} is of kind {one.kind} there and {node.kinds[one.name]} here"]
    here = node.versions.get(one.name)
    there = one.schema.user_version if one.schema is not None else None
    if here is not None and there is not None and there > here:
        return [f"the schema of {one.name!r} is newer: version {there} there, {here} here"]
    return []
