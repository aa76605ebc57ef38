from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.rows_pipe import content, rows_pair, write


@pytest.mark.req("R20", "R22")
@pytest.mark.parametrize("journal", ["wal", "delete"])
async def test_rows_of_a_simple_table_arrive(tmp_path: Path, journal: str) -> None:
    write(tmp_path / "active.db", f"PRAGMA journal_mode={journal}; CREATE TABLE t(id INTEGER PRIMARY KEY, v)")
    async with rows_pair(tmp_path) as pair:
        await pair.settle()
        write(pair.active, "INSERT INTO t(v) VALUES('a'), (2), (x'00ff'), (NULL), (1e999)")
        await pair.settle()
        assert content(pair.standby) == content(pair.active)
        write(pair.active, "UPDATE t SET v = 'b' WHERE id = 2; DELETE FROM t WHERE id = 1")
        await pair.settle()
        assert content(pair.standby) == content(pair.active)
        assert len(content(pair.standby)["rows"]["t"]) == 4
        assert pair.failures == []
