"""Two real engines and a database by rows: damage of either node is found, mended, named; kills leave no half state."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.sample.pair import LocalPair, Place
from tests.support.rows_examined import behind_our_back, flip_bit, index_page, table_page
from tests.support.rows_pipe import content
from tests.support.small_pair import small_toml, until, write_rows

pytestmark = pytest.mark.req("R23", "R13")

ROWS = 4000
TABLE = """
PRAGMA journal_mode=WAL;
CREATE TABLE cdr(id INTEGER PRIMARY KEY, src, dst);
CREATE INDEX cdr_src ON cdr(src);
WITH s(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM s WHERE x < 4000)
INSERT INTO cdr SELECT x, 'source-' || x, 'needle-' || x || ';' FROM s;
"""


def rows_toml(place: Place) -> str:
    node, _, datasets = small_toml(place).partition("[[dataset]]")
    config = datasets.partition("[[dataset]]")[0].replace("node_local_rows", "# node_local_rows")
    return f"{node}[backup]\nfull = false\n\n[[dataset]]{config}"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[LocalPair]:
    with LocalPair(str(tmp_path), rows_toml) as made:
        with closing(sqlite3.connect(f"{made.a.place.root}/config.db")) as connection:
            connection.executescript(TABLE)
        made.start()
        active, standby = databases(made)
        until(lambda: content(standby) == content(active), "the first sync")
        yield made


def databases(pair: LocalPair) -> tuple[Path, Path]:
    return Path(pair.a.place.root, "config.db"), Path(pair.b.place.root, "config.db")


def backup(pair: LocalPair) -> tuple[int, set[tuple[str, str, str, bool]]]:
    """The exit code, and what the log names."""
    done = pair.a.command("full-backup", "--wait", "--json", check=False, timeout_s=120)
    run = json.loads(done.stdout)["run"]
    found = pair.a.control().ListFindings(pb.ListFindingsRequest(log="backup", id=str(run)))
    return done.returncode, {(item.subject, item.fault, item.side, item.repaired) for item in found}


def test_damage_on_either_node_is_found_mended_and_named(pair: LocalPair) -> None:
    active, standby = databases(pair)
    assert backup(pair) == (0, set())
    behind_our_back(standby, "UPDATE cdr SET dst = NULL WHERE id = 7", "DELETE FROM cdr WHERE id = 8")
    flip_bit(standby, b"source-900", index_page)
    flip_bit(active, b"needle-1200;", table_page)
    code, found = backup(pair)
    assert code == 0
    # The index is made anew with the file; whether the rows came back by that or singly, all of it is named.
    assert (str(active), "damaged", "standby", True) in found
    assert found <= {
        (str(active), "damaged", "standby", True),
        ("cdr (7)", "content", "standby", True),
        ("cdr (8)", "missing", "standby", True),
        ("cdr (1200)", "content", "standby", True),
    }
    assert content(standby) == content(active)
    assert backup(pair) == (0, set())


@pytest.mark.req("R22")
@pytest.mark.parametrize("victim", ["a", "b"])
def test_a_node_killed_in_the_middle_of_a_repair_ends_equal(pair: LocalPair, victim: str) -> None:
    active, standby = databases(pair)
    behind_our_back(standby, "DELETE FROM cdr WHERE id % 3 = 0")
    pair.a.control().StartFullBackup(pb.StartFullBackupRequest())
    node, role = (pair.a, "active") if victim == "a" else (pair.b, "standby")
    node.kill()
    write_rows(str(active), "UPDATE cdr SET dst = 'meanwhile' WHERE id = ?", 5)
    node.serve(role, 1)
    pair.until_streaming()
    until(lambda: backup(pair)[0] == 0, "a full backup that finds all equal", timeout_s=60)
    assert pair.a.wait_replicated() == ()
    assert content(standby) == content(active)
    assert not [name for name in os.listdir(standby.parent) if "renewed" in name]
