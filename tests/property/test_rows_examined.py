"""Random databases, random damage: the full backup finds exactly what differs, row by row, and makes it equal (R23)."""

from __future__ import annotations

import asyncio
import os
import tempfile
from pathlib import Path
from typing import Any

import apsw
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ha_sync.backup.rows import RowsExaminer, RowsWitness
from ha_sync.core.examine import Examined
from ha_sync.database.connection import open_active
from ha_sync.database.keys import selected, taken
from ha_sync.database.locality import Locality
from ha_sync.database.names import quoted
from ha_sync.database.rowhash import PAGE, Hasher, Span, hashing
from ha_sync.database.schema import Table, read_schema
from tests.support.rows_direct import RowsDirect
from tests.support.rows_examined import LocalPeer, LocalRun
from tests.support.rows_pipe import content
from tests.support.rows_plans import VALUES, Plan, plans

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "0"))
IN_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # nothing is killed here: syncing proves nothing
NOBODYS = Locality(tables=frozenset(), clauses=())

DAMAGE = (
    "UPDATE {t} SET {c} = {x} WHERE ({k}) = (SELECT {k} FROM {t} LIMIT 1 OFFSET {n})",
    "DELETE FROM {t} WHERE ({k}) = (SELECT {k} FROM {t} LIMIT 1 OFFSET {n})",
    "INSERT INTO {t}({c}) VALUES({x})",
    "REPLACE INTO {t}(a, b, c) VALUES({x}, {x}, {n})",
)


@st.composite
def damages(draw: st.DrawFn) -> tuple[tuple[str, str, int], ...]:
    """(side, statement with a table to be filled in, which table)."""
    found = []
    for _ in range(draw(st.integers(1, 6))):
        statement = draw(st.sampled_from(DAMAGE))
        values = {"c": draw(st.sampled_from("abc")), "x": draw(st.sampled_from(VALUES)), "n": draw(st.integers(0, 9))}
        for name, value in values.items():
            statement = statement.replace(f"{{{name}}}", str(value))
        found.append((draw(st.sampled_from(["active", "standby"])), statement, draw(st.integers(0, 3))))
    return tuple(found)


class Direct:
    """Both ends of a pair without threads, for an examiner and a witness."""

    def __init__(self, pair: RowsDirect) -> None:
        self.pair = pair
        self.scratch = str(pair.directory / "scratch")
        self.proof = str(pair.directory / "proof")
        self.settings = pair.settings

    async def put_back(self) -> tuple[str, ...]:
        return self.pair.capture.put_back()

    async def resend(self, objects: tuple[bytes, ...]) -> None:
        self.pair.capture.send_again(objects)

    def looked(self) -> None:
        assert self.pair.applier.check(thorough=True) == ""

    def noticed(self, told: int) -> tuple[tuple[int, str], ...]:
        return ()


class DirectRun(LocalRun):
    """Its barrier ships everything."""

    def __init__(self, pair: RowsDirect) -> None:
        super().__init__(None)  # type: ignore[arg-type]
        self._direct = pair

    async def replicated(self) -> None:
        self._direct.ship()


def rows_of(path: Path) -> dict[tuple[str, Any], Any]:
    """Every row by table and key, exactly."""
    db = open_active(str(path))
    try:
        found = {}
        for table in read_schema(db).tables.values():
            keys = [quoted(k) for k in table.key]
            columns = [quoted(c) for c in table.shipped]
            for row in db.execute(f"SELECT {selected(keys)}, {selected(columns)} FROM {quoted(table.name)}"):
                key, values = taken(row[: 2 * len(keys)]), row[2 * len(keys) :]
                found[table.name, key] = [v.hex() if isinstance(v, float) else (type(v), v) for v in values]
        return found
    finally:
        db.close()


def damaged(pair: RowsDirect, side: str, statement: str, number: int) -> None:
    path = pair.active if side == "active" else pair.standby
    db = apsw.Connection(str(path))
    db.config(apsw.SQLITE_DBCONFIG_ENABLE_TRIGGER, 0)
    db.config(apsw.SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1)
    try:
        tables = [t for n, t in sorted(read_schema(db).tables.items()) if n != "ledger"]
        if tables:
            table = tables[number % len(tables)]
            sql = statement.replace("{t}", quoted(table.name)).replace("{k}", ", ".join(map(quoted, table.key)))
            for _ in db.execute(sql):
                pass
    except apsw.Error:
        pass  # a column that is not there, a value that is taken
    finally:
        db.close()


async def examined(pair: RowsDirect) -> tuple[Examined, DirectRun]:
    ends, run = Direct(pair), DirectRun(pair)
    peer = LocalPeer(RowsWitness(pair.applier_settings, ends))
    try:
        return await RowsExaminer(pair.settings, ends).examine(peer, run), run
    finally:
        peer.close()


@pytest.mark.req("R23")
@settings(
    max_examples=ROUNDS * 20 or 60,
    derandomize=not ROUNDS,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
)
@given(plan=plans(), damage=damages())
def test_exactly_the_rows_that_differ_are_found_and_made_equal(plan: Plan, damage: Any) -> None:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory, RowsDirect(Path(directory), *plan.schema) as pair:
        for kind, statements in plan.steps:
            if kind == "work" and statements != ["VACUUM"]:
                pair.work(*statements[:-1], keep=statements[-1] == "COMMIT")
        pair.ship()
        before = content(pair.active)
        for side, statement, number in damage:
            damaged(pair, side, statement, number)
        ours, theirs = rows_of(pair.active), rows_of(pair.standby)
        differing = {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)}
        found, run = asyncio.run(examined(pair))
        beside = [f for f in run.findings if f.fault.value == "schema"]  # an AUTOINCREMENT that was drawn
        assert found.differing - len(beside) == len(differing), (run.findings, differing, before)
        assert found.repaired == found.differing
        assert content(pair.standby) == content(pair.active)
        again, run = asyncio.run(examined(pair))
        assert (again.differing, run.findings) == (0, [])


def table_with(directory: str, values: list[str], *, page_size: int, encoding: str) -> tuple[apsw.Connection, Table]:
    db = apsw.Connection(os.path.join(directory, f"{page_size}.db"))
    for pragma in (f"page_size={page_size}", f"encoding='{encoding}'"):
        db.execute(f"PRAGMA {pragma}").fetchall()
    db.execute("CREATE TABLE t(id INTEGER PRIMARY KEY, v, w)")
    for number, value in enumerate(values):
        db.execute(f"INSERT INTO t VALUES({number * 7}, {value}, NULL)")
    return db, read_schema(db).tables["t"]


@pytest.mark.req("R23")
@settings(max_examples=ROUNDS * 20 or 80, derandomize=not ROUNDS, database=None, deadline=None)
@given(
    values=st.lists(st.sampled_from(VALUES), max_size=400),
    encoding=st.sampled_from(["UTF-8", "UTF-16le"]),
    piece=st.integers(1, 50),
)
def test_equal_rows_have_equal_hashes_however_they_are_stored_and_read(
    values: list[str], encoding: str, piece: int
) -> None:
    with tempfile.TemporaryDirectory(dir=IN_MEMORY) as directory:
        found = []
        for page_size in (512, 8192):
            db, table = table_with(directory, values, page_size=page_size, encoding=encoding)
            with hashing(db), Hasher(db, table, NOBODYS) as hasher:
                hasher._piece = piece if page_size == 512 else 256
                hasher.digest(Span(after=taken(("integer", 7))))  # whatever was hashed before leaves no trace
                found.append(hasher.digest(Span()))
            db.close()
        assert found[0] == found[1]
        assert found[0].rows == len(values)
        assert found[0].size >= 2 * PAGE
