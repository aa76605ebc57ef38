"""Random schemas, random work by another process, random crashes: the Standby is always a committed state (R22)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.rows_pipe import RowsPair, content, write
from tests.support.rows_writer import digest

# A run without the knob tries the same plans every time; a campaign (HA_SYNC_ROUNDS=300) tries new ones.
ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "0"))

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
)
INDEXES = (
    "",
    "CREATE UNIQUE INDEX i{t} ON {t}(b)",
    "CREATE UNIQUE INDEX i{t} ON {t}(a, c) WHERE b > 1",
    "CREATE UNIQUE INDEX i{t} ON {t}(lower(a), b)",
    "CREATE UNIQUE INDEX i{t} ON {t}(c COLLATE NOCASE)",
    "CREATE TRIGGER g{t} AFTER INSERT ON {t} BEGIN UPDATE {t} SET c = 'by trigger' WHERE a = NEW.b; END",
)
VALUES = ("1", "2", "3", "'1'", "'x'", "'X'", "'y'", "NULL", "x'31'", "0.5", "x''", "CAST(x'ff' AS TEXT)")
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
)
SCHEMA_WORK = (
    "ALTER TABLE {t} ADD COLUMN n{n} DEFAULT {x}",
    "ALTER TABLE {t} DROP COLUMN c",
    "ALTER TABLE {t} RENAME COLUMN a TO r{n}",
    "ALTER TABLE {t} RENAME TO u{n}",
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
    journal: str
    live: bool
    foreign_keys: bool
    schema: tuple[str, ...]
    steps: tuple[tuple[str, Any], ...]  # ("work", statements) | ("settle", None) | ("crash", None) | ("cut", None)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
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
            steps.append(("work", ["VACUUM"] if change == "VACUUM" else [change, "COMMIT"]))
        else:
            steps.append((kind, None))
    return Plan(
        journal=draw(st.sampled_from(["wal", "delete"])),
        live=draw(st.sampled_from([True, True, False])),
        foreign_keys=draw(st.booleans()),
        schema=tuple(schema),
        steps=tuple(steps),
    )


@pytest.mark.req("R20", "R22", "R25")
@settings(
    max_examples=ROUNDS or 30,
    derandomize=not ROUNDS,
    database=None,
    phases=(Phase.explicit, Phase.generate),  # no shrinking: each attempt at a stuck plan would wait for its bound
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(plan=plans())
def test_the_standby_is_always_a_committed_state_and_ends_equal(plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(_carry_out(plan, Path(directory)))


async def _carry_out(plan: Plan, directory: Path) -> None:
    write(directory / "active.db", f"PRAGMA journal_mode={plan.journal}", *plan.schema)
    pair = RowsPair(directory, live_triggers=plan.live, writer_busy_timeout_ms=1000)
    await pair.open()
    await pair.connect()
    committed = {(0, _digest(pair.active)[1])}
    seen: list[tuple[int, str]] = []
    writer = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.rows_writer",
        str(pair.active),
        str(int(plan.foreign_keys)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    observer = asyncio.create_task(_observe(pair, seen))
    try:
        for kind, statements in plan.steps:
            if kind == "work":
                committed.add(await _work(writer, statements))
            elif kind == "settle":
                await pair.settle()
                seen.append(_digest(pair.standby))
            elif kind == "cut":
                await pair.disconnect()
                await pair.connect()
            else:
                await pair.crash()
                await pair.open()
                await pair.connect()
        await pair.settle()
        observer.cancel()
        assert content(pair.standby) == content(pair.active)
        assert set(seen) <= committed, "the Standby held a state that the Active never had"
    finally:
        observer.cancel()
        assert writer.stdin is not None
        writer.stdin.close()
        await writer.wait()
        await pair.close()


async def _work(writer: asyncio.subprocess.Process, statements: list[str]) -> tuple[int, str]:
    assert writer.stdin is not None
    assert writer.stdout is not None
    writer.stdin.write(json.dumps(statements).encode() + b"\n")
    await writer.stdin.drain()
    number, found = json.loads(await writer.stdout.readline())
    return number, found


async def _observe(pair: RowsPair, seen: list[tuple[int, str]]) -> None:
    """Looks at the Standby again and again, as a program could."""
    while True:
        if pair.durable:
            seen.append(_digest(pair.standby))
        await asyncio.sleep(0.005)


def _digest(path: Path) -> tuple[int, str]:
    db = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
        db.set_busy_timeout(10_000)
        db.execute("BEGIN")
        number = db.execute("SELECT n FROM ledger").fetchone()
        assert number is not None
        return int(str(number[0])), digest(lambda sql: db.execute(sql).fetchall())
    finally:
        db.close()
