"""What two copies of a database must have in common beside their rows: schema, versions, sequences, encoding.

Both nodes write it down in one canonical form, so that a hash tells whether it is the same. Nothing of ours and nothing
of node-local tables' content is in it. Pure but for ``describe``, which reads in the caller's transaction.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import apsw
import xxhash

from ha_sync.database.connection import one
from ha_sync.database.facts import read_facts
from ha_sync.database.locality import Locality
from ha_sync.database.names import folded
from ha_sync.database.schema import read_objects

FACTS = "facts"
SEQUENCE = "sequence"


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Objects as (type, name) -> SQL, and everything else by name; sequences as (``sequence``, table) -> number."""

    objects: dict[tuple[str, str], str]
    facts: dict[tuple[str, str], str | int]

    def to_json(self) -> str:
        """Canonical."""
        objects = sorted([kind, name, sql] for (kind, name), sql in self.objects.items())
        facts = sorted([kind, name, value] for (kind, name), value in self.facts.items())
        return json.dumps([objects, facts], ensure_ascii=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Raises ``ValueError`` or ``TypeError`` for what ``to_json`` does not make."""
        objects, facts = json.loads(text)
        return cls(
            objects={(str(kind), str(name)): str(sql) for kind, name, sql in objects},
            facts={(str(kind), str(name)): value for kind, name, value in facts},
        )

    @property
    def hash(self) -> bytes:
        """Of the canonical form."""
        return xxhash.xxh3_128_digest(self.to_json().encode())


def describe(db: apsw.Connection, locality: Locality) -> Description:
    """Of one database."""
    facts = read_facts(db, locality)
    told: dict[tuple[str, str], str | int] = {
        (FACTS, "encoding"): str(one(db, "PRAGMA main.encoding")),
        (FACTS, "user_version"): facts.user_version,
        (FACTS, "application_id"): facts.application_id,
        (FACTS, "journal mode"): facts.journal,
    }
    told.update({(SEQUENCE, name): value for name, value in facts.sequences.items()})
    objects = {(o.type, folded(o.name)): o.sql for o in read_objects(db) if not locality.is_local_table(o.table)}
    return Description(objects=objects, facts=told)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One thing that is not the same."""

    kind: str  # table, index, trigger, view, facts, sequence
    name: str
    active: str | int | None
    standby: str | int | None

    @property
    def subject(self) -> str:
        """For people."""
        return self.name if self.kind == FACTS else f"{self.kind} {self.name}"

    @property
    def detail(self) -> str:
        """For people."""
        if self.active is None:
            return "the Active has none"
        if self.standby is None:
            return "the Standby had none"
        if self.kind in {FACTS, SEQUENCE}:
            return f"{self.active} on the Active, {self.standby} on the Standby"
        return "made by other SQL"


def differences(active: Description, standby: Description) -> tuple[Difference, ...]:
    """What differs, in order of names."""
    found = []
    pairs = ((active.objects, standby.objects), (active.facts, standby.facts))
    for ours, theirs in pairs:
        for kind, name in sorted({*ours, *theirs}):
            one_side, other = ours.get((kind, name)), theirs.get((kind, name))
            if one_side != other:
                found.append(Difference(kind=kind, name=name, active=one_side, standby=other))
    return tuple(found)
