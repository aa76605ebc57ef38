"""Which tables and rows belong to the node alone (R5). Pure.

A clause is SQL over the table's columns and holds on both nodes: a row for which it is true is neither shipped, nor
compared, nor deleted, nor guarded. Table names compare as SQLite compares them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ha_sync.config import SqliteSettings
from ha_sync.database.names import folded


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """What is node-local in one database."""

    tables: frozenset[str]
    clauses: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, settings: SqliteSettings) -> Locality:
        """As the settings say."""
        merged: dict[str, list[str]] = {}
        for rule in settings.node_local_rows:
            merged.setdefault(folded(rule.table), []).append(rule.where)
        clauses = tuple((table, " OR ".join(f"({w}\n)" for w in wheres)) for table, wheres in merged.items())
        return cls(tables=frozenset(folded(t) for t in settings.node_local_tables), clauses=clauses)

    def is_local_table(self, name: str) -> bool:
        """Whether no row of the table is ever shipped."""
        return folded(name) in self.tables

    def clause(self, name: str) -> str:
        """The condition of the table's node-local rows, or empty."""
        return next((clause for table, clause in self.clauses if table == folded(name)), "")

    def shared(self, name: str) -> str:
        """A condition that is true for the rows that are replicated."""
        clause = self.clause(name)
        return f"({clause}) IS NOT TRUE" if clause else "TRUE"
