"""Random schemas, random work by another process, random crashes: the Standby is always a committed state (R22)."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path

import apsw
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.support.rows_pipe import RowsPair, content, write
from tests.support.rows_plans import Plan, plans
from tests.support.rows_writer import digest

# A run without the knob tries the same plans every time; a campaign (HA_SYNC_ROUNDS=300) tries new ones.
ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "0"))


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
