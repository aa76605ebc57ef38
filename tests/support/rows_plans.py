"""Random schemas and random work for the tests of databases captured as rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

TABLES = (
    "{t}(id INTEGER PRIMARY KEY, a, b, c)",
    "{t}(id INTEGER PRIMARY KEY AUTOINCREMENT, a UNIQUE, b, c)",
    "{t}(a, b, c)",
    "{t}(a TEXT PRIMARY KEY, b UNIQUE, c)",
    "{t}(a, b, c, PRIMARY KEY(a, b))",
    "{t}(a TEXT COLLATE NOCASE, b, c UNIQUE, PRIMARY KEY(a)) WITHOUT ROWID",
    "{t}(a, b, c, PRIMARY KEY(b DESC, a)) WITHOUT ROWID",
    "{t}(id INTEGER PRIMARY KEY, a NOT NULL DEFAULT 1 UNIQUE, b, c, d AS (a || b) STORED, e AS (c) VIRTUAL UNIQUE)",
    "{t}(rowid, a, b, c UNIQUE)",
    "{t}(id INTEGER PRIMARY KEY, a, b REFERENCES t0(id) ON DELETE CASCADE ON UPDATE CASCADE, c)",
    "{t}(id INTEGER PRIMARY KEY, a, b REFERENCES {t}(id) ON DELETE SET NULL ON UPDATE CASCADE, c)",
    "{t}(id INTEGER PRIMARY KEY, a NOT NULL DEFAULT 1, b, c, d AS (a) UNIQUE, e AS (a || c) STORED, UNIQUE(e, b))",
    "{t}(a INT, b TEXT, c REAL, d AS (b || typeof(a)), PRIMARY KEY(c, a)) WITHOUT ROWID",
    "{t}(id INTEGER PRIMARY KEY, a UNIQUE ON CONFLICT REPLACE, b UNIQUE, c)",
)
INDEXES = (
    "",
    "CREATE UNIQUE INDEX i{t} ON {t}(b)",
    "CREATE UNIQUE INDEX i{t} ON {t}(a, c) WHERE b > 1",
    "CREATE UNIQUE INDEX i{t} ON {t}(lower(a), b)",
    "CREATE UNIQUE INDEX i{t} ON {t}(c COLLATE NOCASE)",
    "CREATE UNIQUE INDEX i{t} ON {t}(b, c COLLATE NOCASE, a DESC)",
    "CREATE UNIQUE INDEX i{t} ON {t}(a || b) WHERE c IS NOT NULL",
    "CREATE UNIQUE INDEX i{t} ON {t}(coalesce(a, 'none')); CREATE UNIQUE INDEX k{t} ON {t}(c)",
    "CREATE UNIQUE INDEX i{t} ON {t}(a COLLATE RTRIM, typeof(b)) WHERE b IN (1, 2, 'x')",
    "CREATE UNIQUE INDEX i{t} ON {t}(b) WHERE a > c",
    "CREATE TRIGGER g{t} AFTER INSERT ON {t} BEGIN UPDATE {t} SET c = 'by trigger' WHERE a = NEW.b; END",
)
VALUES = (
    "1",
    "2",
    "3",
    "'1'",
    "'x'",
    "'X'",
    "'y'",
    "NULL",
    "x'31'",
    "0.5",
    "x''",
    "CAST(x'ff' AS TEXT)",
    "1e999",
    "-1e999",
    "1.0",
    "'x '",
    "-0.0",
    "9007199254740993",
    "'e' || char(0)",
)
WORK = (
    "INSERT INTO {t}(a, b, c) VALUES({x}, {y}, {z})",
    "REPLACE INTO {t}(a, b, c) VALUES({x}, {y}, {z})",
    "INSERT OR IGNORE INTO {t}(a, b, c) VALUES({x}, {y}, {z}), ({y}, {z}, {x})",
    "INSERT INTO {t}(a, b, c) VALUES({x}, {y}, {z}) ON CONFLICT DO UPDATE SET c = {x}, a = {z}",
    "UPDATE {t} SET a = {x} WHERE b = {y}",
    "UPDATE OR REPLACE {t} SET b = {x}, c = {y}",
    "UPDATE OR REPLACE {t} SET a = {x} WHERE a = {y}",
    "UPDATE OR REPLACE {t} SET id = id + 1 WHERE a = {x}",
    "UPDATE {t} SET _rowid_ = _rowid_ + 100 WHERE c = {x}",
    "DELETE FROM {t} WHERE a = {x}",
    "DELETE FROM {t} WHERE b > {x}",
    "DELETE FROM {t}",
    "INSERT INTO {t}(a, b, c) SELECT c, a, b FROM {t}",
    "REPLACE INTO {t}(a, b, c) SELECT b, a, c FROM {t}",
    "UPDATE OR REPLACE {t} SET a = b, b = a",
    "UPDATE OR REPLACE {t} SET b = {x} WHERE a = {y}",
)
SCHEMA_WORK = (
    "ALTER TABLE {t} ADD COLUMN n{n} DEFAULT {x}",
    "ALTER TABLE {t} DROP COLUMN c",
    "ALTER TABLE {t} RENAME COLUMN a TO r{n}",
    "ALTER TABLE {t} RENAME TO u{n}",
    "ALTER TABLE {t} RENAME TO {t}x; ALTER TABLE {t}x RENAME TO {t}",
    "DROP INDEX i{t}; ALTER TABLE {t} DROP COLUMN b",
    "DROP INDEX i{t}; ALTER TABLE {t} RENAME COLUMN c TO r{n}",
    "CREATE UNIQUE INDEX z{t} ON {t}(c, b)",
    "CREATE UNIQUE INDEX z{t} ON {t}(b); REPLACE INTO {t}(a, b, c) VALUES({x}, {y}, {z}); DROP INDEX z{t}",
    "CREATE TRIGGER h{t} AFTER INSERT ON {t} BEGIN UPDATE OR REPLACE {t} SET b = {x} WHERE a = NEW.b; END",
    "CREATE TRIGGER h{t} BEFORE UPDATE ON {t} BEGIN DELETE FROM {t} WHERE c = NEW.a; END",
    "DROP TRIGGER h{t}",
    "DROP TABLE {t}",
    "CREATE TABLE {t}(a, b, c)",
    "CREATE TABLE v{n} AS SELECT * FROM {t}",
    "DROP INDEX i{t}",
    "CREATE INDEX j{t} ON {t}(a)",
    "PRAGMA user_version={n}",
    "VACUUM",
)


@dataclass(frozen=True)
class Plan:
    """A database and what happens to it."""

    journal: str
    live: bool
    foreign_keys: bool
    schema: tuple[str, ...]
    steps: tuple[tuple[str, Any], ...]  # ("work", statements) | ("settle", None) | ("crash", None) | ("cut", None)


def statements_of(script: str) -> list[str]:
    """The statements of a template; those of a trigger's body stay together."""
    return [script] if "BEGIN" in script else script.split("; ")


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan."""
    count = draw(st.integers(1, 3))
    schema = ["CREATE TABLE ledger(n); INSERT INTO ledger VALUES(0)"]
    for i in range(count):
        schema.append("CREATE TABLE " + draw(st.sampled_from(TABLES)).format(t=f"t{i}"))
        schema.append(draw(st.sampled_from(INDEXES)).format(t=f"t{i}"))

    def statement(templates: tuple[str, ...]) -> str:
        x, y, z = (draw(st.sampled_from(VALUES)) for _ in range(3))
        table = f"t{draw(st.integers(0, count - 1))}"
        return draw(st.sampled_from(templates)).format(t=table, x=x, y=y, z=z, n=draw(st.integers(1, 9)))

    steps: list[tuple[str, Any]] = []
    for _ in range(draw(st.integers(3, 25))):
        kind = draw(st.sampled_from(["work"] * 12 + ["schema", "settle", "crash", "cut"]))
        if kind == "work":
            statements = [statement(WORK) for _ in range(draw(st.integers(1, 6)))]
            steps.append(("work", [*statements, draw(st.sampled_from(["COMMIT"] * 5 + ["ROLLBACK"]))]))
        elif kind == "schema":
            change = statement(SCHEMA_WORK)
            steps.append(("work", ["VACUUM"] if change == "VACUUM" else [*statements_of(change), "COMMIT"]))
        else:
            steps.append((kind, None))
    return Plan(
        journal=draw(st.sampled_from(["wal", "delete"])),
        live=draw(st.sampled_from([True, True, False])),
        foreign_keys=draw(st.booleans()),
        schema=tuple(schema),
        steps=tuple(steps),
    )
