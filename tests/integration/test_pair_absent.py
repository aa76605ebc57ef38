"""What the Active has nothing of yet does not keep the Standby waiting, and arrives when it comes into being."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ha_sync.sample.pair import LocalPair
from tests.support.small_pair import furnish, read_rows, small_toml, until, write_rows

ABSENT = "the active has nothing of it yet"


@pytest.mark.req("R22", "R30")
def test_datasets_that_do_not_exist_yet_are_told_apart_from_those_that_are_behind(tmp_path: Path) -> None:
    with LocalPair(str(tmp_path), small_toml) as pair:
        furnish(pair.a.place.root)
        root = pair.a.place.root
        os.unlink(f"{root}/astdb.sqlite3")
        shutil.move(f"{root}/files", f"{root}/aside")
        pair.pair_up()
        pair.b.serve("standby", 1)
        for name in ("astdb", "files"):
            pair.b.until(lambda name=name: pair.b.dataset(name).reason == ABSENT, f"word of {name}")
            assert pair.b.dataset(name).state == "waiting"
        pair.b.until(lambda: pair.b.dataset("config").state == "streaming", "config")
        assert pair.b.dataset("config").reason == ""

        shutil.move(f"{root}/aside", f"{root}/files")
        write_rows(f"{root}/astdb.sqlite3", "CREATE TABLE astdb(key TEXT PRIMARY KEY, value TEXT)")
        write_rows(f"{root}/astdb.sqlite3", "INSERT INTO astdb VALUES (?, ?)", "/cidname/100", "Ann")
        Path(root, "files", "f").write_text("x")
        pair.b.until(lambda: pair.b.dataset("astdb").state == "streaming", "astdb")
        pair.b.until(lambda: pair.b.dataset("files").state == "streaming", "files")
        assert pair.a.wait_replicated() == ()
        there = pair.b.place.root
        assert read_rows(f"{there}/astdb.sqlite3", "SELECT * FROM astdb") == [("/cidname/100", "Ann")]
        until(lambda: Path(there, "files", "f").read_text() == "x", "the file")


@pytest.mark.req("R22")
def test_the_barrier_waits_for_contents_that_nobody_has_changed_yet(tmp_path: Path) -> None:
    with LocalPair(str(tmp_path), small_toml) as pair:
        furnish(pair.a.place.root)
        pair.pair_up()
        pair.a.until(lambda: pair.a.dataset("config").reason == "no standby is connected", "capture of the rows")
        missing = pair.a.wait_replicated(timeout_s=0.3)
        assert any(text.startswith("config: ") for text in missing), missing
        pair.b.serve("standby", 1)
        assert pair.a.wait_replicated() == ()
        tables = "SELECT name FROM sqlite_schema WHERE name = 'extension'"
        assert read_rows(f"{pair.b.place.root}/config.db", tables) == [("extension",)]
