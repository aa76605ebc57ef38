"""Whether the storages of two nodes fit together, and whether one of them may be synchronised now. Pure.

Every answer is words for people; none means that it fits. Sizes in bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from ha_sync.external.inventory import Found

ROOM_KEPT = 16 * 1024 * 1024
"""Left free on the other node's storage: for directories, and what its own filesystem needs."""

ENTRY_BYTES = 4096
"""What an object costs besides its content, at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Both:
    """One storage on both nodes; None: not configured there."""

    name: str
    here: Found | None
    there: Found | None

    @property
    def shared(self) -> bool:
        """Whether both nodes have mounted the same one."""
        here, there = self.here, self.there
        return here is not None and there is not None and bool(here.identity) and here.identity == there.identity

    @property
    def kinds(self) -> tuple[str, ...]:
        """Of the filesystems, as far as they are known."""
        return tuple(one.filesystem for one in (self.here, self.there) if one is not None and one.filesystem)


def side_by_side(here: Iterable[Found], there: Iterable[Found]) -> tuple[Both, ...]:
    """By name, in the order of this node, then what only the other has."""
    mine, theirs = {one.name: one for one in here}, {one.name: one for one in there}
    names = [*mine, *(name for name in theirs if name not in mine)]
    return tuple(Both(name=name, here=mine.get(name), there=theirs.get(name)) for name in names)


def mismatches(pairs: Iterable[Both]) -> tuple[str, ...]:
    """Where kinds and numbers of what is configured and mounted differ."""
    pairs = tuple(pairs)
    here, there = _mounted(pair.here for pair in pairs), _mounted(pair.there for pair in pairs)
    numbers = tuple(
        f"{here[medium]} {medium} mounted here, {there[medium]} on the other node"
        for medium in sorted({*here, *there})
        if here[medium] != there[medium]
    )
    return (*numbers, *(f"{pair.name}: {reason}" for pair in pairs for reason in unlike(pair)))


def _mounted(found: Iterable[Found | None]) -> Counter[str]:
    return Counter(one.medium for one in found if one is not None and one.mounted)


def unlike(pair: Both) -> tuple[str, ...]:
    """What of one storage does not match."""
    here, there = pair.here, pair.there
    if here is None:
        return ("only on the other node",)
    if there is None:
        return ("only on this node",)
    faults = []
    if here.medium != there.medium:
        faults.append(f"{here.medium} here, {there.medium} on the other node")
    if here.mode != there.mode:
        faults.append(f"{here.mode} here, {there.mode} on the other node")
    if here.mounted != there.mounted:
        faults.append("not mounted on the other node" if here.mounted else "not mounted here")
    return tuple(faults)


def refusal(pair: Both) -> str:
    """Why this storage of the Active, ``here``, cannot be synchronised now."""
    here, there = pair.here, pair.there
    if here is None:
        return "it is not configured on this node"
    if here.trouble:
        return f"on this node: {here.trouble}"
    if there is None:
        return "it is not configured on the other node"
    if there.trouble:
        return f"on the other node: {there.trouble}"
    if pair.shared:
        return "both nodes have mounted the same one (same marker): it is shared, nothing is copied"
    if unlike(pair):
        return "; ".join(unlike(pair))
    return "the other node's is mounted read-only" if there.read_only else ""


def lacks_room(*, send_bytes: int, send_objects: int, there: Found) -> str:
    """Whether what is to be sent has no room there."""
    needed = send_bytes + send_objects * ENTRY_BYTES + ROOM_KEPT
    if needed > there.free_bytes:
        return f"the other node's storage lacks room: {needed} bytes needed, {there.free_bytes} free"
    if there.free_files and send_objects > there.free_files:
        return f"the other node's storage lacks room for {send_objects} files: it takes {there.free_files} more"
    return ""
