"""How this node's data stands: what the agent compares with the other node's. Pure.

``data`` is the epoch of the data. A node that served last has the data of that epoch, whole. Once it follows another
Active, the first position of the higher epoch makes its data that of a Standby: as old as its oldest dataset, and sound
only when every dataset has a consistent copy. What the Active has nothing of yet is left out; where that is all, the
data of the epoch is had.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ha_sync.core.dataset import DatasetName, DatasetState, Role
from ha_sync.core.position import NO_INCARNATION, NOWHERE, Epoch, Position

FLOWING = frozenset({DatasetState.STREAMING, DatasetState.DEGRADED})


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetStanding:
    """One dataset on this node."""

    name: DatasetName
    state: DatasetState
    position: Position  # captured as Active, applied as Standby
    acknowledged: Position | None  # Active only
    consistent: bool
    connected: bool
    absent: bool = False  # as Standby: the Active has nothing of it yet


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """All datasets together."""

    data: Epoch
    sound: bool  # consistent, and complete at least once
    current: bool  # as Standby: every stream is connected and none is in a full sync
    progress: int  # grows with the data; compares between equal ``data`` only
    positions: str  # a line for each dataset that both nodes can have; equal text means equal data


def standing_of(
    datasets: Iterable[DatasetStanding], *, role: Role | None, epoch: Epoch, served: Epoch, founder: bool
) -> Standing:
    """``served``: the last epoch in which this node was Active; ``founder``: it began the pair, its data counts."""
    found = tuple(one for one in datasets if role is Role.ACTIVE or not one.absent or one.position != NOWHERE)
    data, sound = _data(found, role=role, epoch=epoch, served=served, founder=founder)
    return Standing(
        data=data,
        sound=sound,
        current=all(one.connected and one.state in FLOWING for one in found),
        progress=sum(one.position.sequence for one in found),
        positions="\n".join(sorted(filter(None, map(_line, found)))),
    )


def _data(
    found: tuple[DatasetStanding, ...], *, role: Role | None, epoch: Epoch, served: Epoch, founder: bool
) -> tuple[Epoch, bool]:
    if role is Role.ACTIVE:
        return epoch, True
    if not found and role is Role.STANDBY:
        return epoch, True
    newest = max((one.position.epoch for one in found), default=served)
    if newest <= served:
        return served, founder or served > 0
    complete = all(one.consistent and one.position.incarnation != NO_INCARNATION for one in found)
    return min(one.position.epoch for one in found), complete


def _line(one: DatasetStanding) -> str:
    position = one.acknowledged or one.position
    # Nothing was captured yet in this incarnation: the Standby need not have heard of it.
    if position.sequence == 0:
        return ""
    return f"{one.name}:{position.epoch}:{position.incarnation.hex()}:{position.sequence}"
