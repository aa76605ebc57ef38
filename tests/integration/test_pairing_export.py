"""A joiner's own data: refused, or exported whole and checked, before anything else happens."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import sqlite3
import stat
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import zstandard

from ha_sync.config import DatasetSettings, SqliteSettings, TreeSettings
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.errors import OperatorNeeded, Refused
from ha_sync.pairing import exporting
from ha_sync.pairing.exporting import export, holding
from ha_sync.pairing.identity import exists, init_cluster
from tests.support.pairing_nodes import join_as, serving

pytestmark = pytest.mark.req("R3")

ROWS = 300


def _database(path: Path) -> SqliteSettings:
    return SqliteSettings(name=DatasetName("config"), path=str(path), priority=Priority.CONFIG)


def _tree(path: Path) -> TreeSettings:
    return TreeSettings(name=DatasetName("voicemail"), path=str(path), priority=Priority.VOICEMAIL)


def _fill(path: Path, mode: str = "delete") -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.execute("CREATE TABLE extension (number TEXT, secret BLOB)")
        connection.executemany("INSERT INTO extension VALUES (?, ?)", [(str(n), b"\0x") for n in range(ROWS)])
        connection.commit()


def _unpack(archive: str, into: Path) -> list[str]:
    with zstandard.open(archive, "rb") as packed:
        content = packed.read()
    with tarfile.open(fileobj=io.BytesIO(content), encoding="utf-8", errors="surrogateescape") as tar:
        tar.extractall(into, filter="fully_trusted")
        return tar.getnames()


def test_an_empty_node_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "tree" / "empty").mkdir(parents=True)
    (tmp_path / "tree" / ".ha-sync-marker").write_text("ours")
    with contextlib.closing(sqlite3.connect(tmp_path / "schema.db")) as connection:
        connection.execute("CREATE TABLE extension (number TEXT)")
        connection.commit()
    (tmp_path / "zero.db").touch()
    datasets: tuple[DatasetSettings, ...] = (
        _tree(tmp_path / "tree"),
        _tree(tmp_path / "missing"),
        _database(tmp_path / "schema.db"),
        _database(tmp_path / "zero.db"),
        _database(tmp_path / "missing.db"),
    )
    assert holding(datasets) == ()


def test_a_row_a_file_and_what_cannot_be_read_count_as_data(tmp_path: Path) -> None:
    _fill(tmp_path / "pbx.db")
    (tmp_path / "encrypted.db").write_bytes(os.urandom(4096))
    (tmp_path / "tree" / "1001").mkdir(parents=True)
    (tmp_path / "tree" / "1001" / "msg0000.wav").touch()
    datasets = (_database(tmp_path / "pbx.db"), _tree(tmp_path / "tree"), _database(tmp_path / "encrypted.db"))
    assert holding(datasets) == ("config", "voicemail", "config")


async def test_a_joiner_with_data_is_refused_and_nothing_is_touched(tmp_path: Path) -> None:
    _fill(tmp_path / "pbx.db")
    before = (tmp_path / "pbx.db").read_bytes()
    datasets = (_database(tmp_path / "pbx.db"),)
    async with serving(init_cluster(str(tmp_path / "first"), address="127.0.0.1:7")) as port:
        token = port.token()
        with pytest.raises(Refused, match="--discard-local-data") as refused:
            await asyncio.to_thread(
                join_as,
                token,
                str(tmp_path / "second"),
                has_business_data=lambda: holding(datasets),
                exporter=lambda: export(datasets, str(tmp_path / "second")),
            )
        assert refused.value.exit_code == 6
        assert "config" in refused.value.reason
        assert not exists(str(tmp_path / "second"))
        assert "second" not in os.listdir(tmp_path)
        assert (tmp_path / "pbx.db").read_bytes() == before
        joined = await asyncio.to_thread(
            join_as,
            token,
            str(tmp_path / "second"),
            has_business_data=lambda: holding(datasets),
            exporter=lambda: export(datasets, str(tmp_path / "second")),
            discard_local_data=True,
        )
    assert _unpack(joined.exported_to, tmp_path / "out") == ["config/pbx.db"]


def test_a_tree_is_exported_with_every_kind_of_name_and_link(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "INBOX").mkdir(parents=True)
    (root / "INBOX" / "msg0000.wav").write_bytes(os.urandom(3_000_000))
    os.link(root / "INBOX" / "msg0000.wav", root / "same.wav")
    (root / "link").symlink_to("INBOX/msg0000.wav")
    (root / "dangling").symlink_to("/nowhere")
    hostile = os.fsencode(root) + b"/caf\xe9 \n name"
    with open(hostile, "wb") as file:
        file.write(b"not UTF-8")
    (root / ("long" * 40)).write_bytes(b"")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(root / "ctl"))
    os.chmod(root / "INBOX" / "msg0000.wav", 0o640)
    archive = export((_tree(root),), str(tmp_path / "state"))
    _unpack(archive, tmp_path / "out")
    copy = tmp_path / "out" / "voicemail"
    assert (copy / "INBOX" / "msg0000.wav").read_bytes() == (root / "INBOX" / "msg0000.wav").read_bytes()
    assert (copy / "same.wav").read_bytes() == (root / "INBOX" / "msg0000.wav").read_bytes()
    assert stat.S_IMODE((copy / "INBOX" / "msg0000.wav").stat().st_mode) == 0o640
    assert os.readlink(copy / "link") == "INBOX/msg0000.wav"
    assert os.readlink(copy / "dangling") == "/nowhere"
    assert sorted(os.listdir(os.fsencode(copy))) == sorted(
        name for name in os.listdir(os.fsencode(root)) if name != b"ctl"
    )
    with open(os.fsencode(copy) + b"/caf\xe9 \n name", "rb") as file:
        assert file.read() == b"not UTF-8"
    assert stat.S_IMODE(os.stat(archive).st_mode) == 0o600


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_a_database_is_exported_as_its_last_commit_left_it(tmp_path: Path, mode: str) -> None:
    """The writer was killed in a transaction: the journal or the WAL belongs to the content."""
    path = tmp_path / "pbx.db"
    _fill(path, mode)
    killed = (
        "import sqlite3, sys, os, signal\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.execute('PRAGMA cache_size=2'); c.execute('PRAGMA wal_autocheckpoint=0')\n"
        "c.execute(\"INSERT INTO extension VALUES ('committed', x'00')\")\n"
        "c.execute('BEGIN IMMEDIATE')\n"
        "for n in range(3000): c.execute(\"INSERT INTO extension VALUES ('never', randomblob(200))\")\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", killed, str(path)], check=False)
    assert (tmp_path / ("pbx.db-wal" if mode == "wal" else "pbx.db-journal")).stat().st_size > 0
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path) if name.startswith("pbx")}
    datasets = (_database(path),)
    assert holding(datasets) == ("config",)
    _unpack(export(datasets, str(tmp_path / "state")), tmp_path / "out")
    assert {name: (tmp_path / name).read_bytes() for name in before} == before
    with contextlib.closing(sqlite3.connect(tmp_path / "out" / "config" / "pbx.db")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        found = dict(connection.execute("SELECT number, count(*) FROM extension GROUP BY number = 'never', number"))
    assert "never" not in found
    assert found["committed"] == 1
    assert len(found) == ROWS + 1
    assert not list((tmp_path / "state").glob(".exporting-*"))


def test_what_is_no_database_is_exported_as_it_is(tmp_path: Path) -> None:
    noise = os.urandom(5000)
    (tmp_path / "pbx.db").write_bytes(noise)
    (tmp_path / "pbx.db-journal").write_bytes(b"journal")
    _unpack(export((_database(tmp_path / "pbx.db"),), str(tmp_path / "state")), tmp_path / "out")
    assert (tmp_path / "out" / "config" / "pbx.db").read_bytes() == noise
    assert (tmp_path / "out" / "config" / "pbx.db-journal").read_bytes() == b"journal"
    assert (tmp_path / "pbx.db-journal").read_bytes() == b"journal"


def test_a_database_that_a_program_has_open_is_refused_with_its_pid(tmp_path: Path) -> None:
    path = tmp_path / "pbx.db"
    _fill(path)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys; f = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()", path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(Refused, match=f"process {holder.pid} "):
            export((_database(path),), str(tmp_path / "state"))
        assert holder.stdin is not None
        holder.stdin.close()
    assert not (tmp_path / "state").exists()
    export((_database(path),), str(tmp_path / "state"))


def test_an_export_that_reads_back_differently_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "a").write_text("content")
    monkeypatch.setattr(exporting, "_read_back", lambda _file: iter([("voicemail/a", b"another hash")]))
    with pytest.raises(OperatorNeeded, match="cannot trust"):
        export((_tree(tmp_path / "tree"),), str(tmp_path / "state"))
    assert list((tmp_path / "state").iterdir()) == []


def test_two_exports_in_one_second_have_two_names(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    paths = {export((_tree(tmp_path / "tree"),), str(tmp_path / "state"), stamp="20260203T040506Z") for _ in range(2)}
    assert len(paths) == 2
