"""What makes two records the same: every column but the row's key, byte for byte and type for type. Pure.

A table hands out its row keys, so two nodes give the same key to different records, and a record is a member of a
multiset: what counts is how many of it there are. SQL here compares a column that has no affinity and no collation of
its own (an image's) with one that may have both, by value and storage class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ha_sync.database.image import Part
from ha_sync.database.names import quoted
from ha_sync.database.schema import Keyed


def identity_columns(part: Part) -> tuple[tuple[int, str], ...]:
    """Place in the image and name of each column that counts. A key that the program gives is part of the record."""
    skipped = 1 if part.keyed is Keyed.ROWID else 0
    return tuple(enumerate(part.columns))[skipped:]


def same_record(part: Part, *, image: str, table: str) -> str:
    """A condition on aliases of the image's rows and of the table's rows."""
    terms = []
    for place, name in identity_columns(part):
        mine, theirs = f"{image}.c{place}", f"{table}.{quoted(name)}"
        terms.append(f"{mine} IS +{theirs} AND typeof({mine}) = typeof({theirs})")
    return " AND ".join(terms) or "TRUE"


def grouping(part: Part) -> str:
    """GROUP BY terms that tell records of an image apart."""
    return ", ".join(f"c{place}, typeof(c{place})" for place, _ in identity_columns(part)) or "TRUE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Equal records of an archive, by the places where they stand in it."""

    members: tuple[int, ...]


def missing(groups: Iterable[Group], have: Mapping[int, int]) -> tuple[int, ...]:
    """The members that must be inserted so that there are as many of each record as the archive has.

    ``have`` tells by a group's first member how many there are already. Never more are inserted than are missing, and
    nothing that is there in excess is taken away.
    """
    wanted: list[int] = []
    for group in groups:
        there = have.get(group.members[0], 0)
        wanted.extend(group.members[min(there, len(group.members)) :])
    return tuple(wanted)


def grouped(members: Sequence[tuple[int, int]]) -> list[Group]:
    """Groups of ``(first member, member)`` pairs, in the order of the members."""
    found: dict[int, list[int]] = {}
    for first, member in members:
        found.setdefault(first, []).append(member)
    return [Group(members=tuple(sorted(each))) for each in found.values()]
