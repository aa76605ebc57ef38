"""A real pair: exported, changed, restored; the Standby follows, the epoch grew. And everything that is refused."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_sync.backup.package.reader import Package
from ha_sync.sample.pair import LocalNode, LocalPair
from tests.support.package_site import tree_looks
from tests.support.small_pair import furnish, read_rows, small_toml, until, write_rows

EXTENSIONS = "SELECT number, name FROM extension ORDER BY number"
LOCAL = "SELECT value FROM settings WHERE name = 'externhost'"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[LocalPair]:
    with LocalPair(str(tmp_path), small_toml) as made:
        furnish(made.a.place.root)
        made.start()
        yield made


@pytest.fixture
def lone(tmp_path: Path) -> Iterator[LocalNode]:
    """A node of no cluster."""
    folder = tmp_path / "lone"
    folder.mkdir()
    node = LocalPair(str(folder), small_toml).a
    furnish(node.place.root)
    try:
        node.serve("active", 1)
        yield node
    finally:
        node.close()


@pytest.mark.req("R24")
def test_a_package_moves_to_another_machine_where_that_is_meant(
    pair: LocalPair, lone: LocalNode, tmp_path: Path
) -> None:
    fill(pair)
    file = tmp_path / "pbx.package"
    pair.a.command("package", "export", str(file))
    lone.kill()  # its data went with its disk
    shutil.rmtree(lone.place.root)
    os.makedirs(lone.place.root)
    lone.serve("active", 2)
    assert "another cluster" in refused(lone, 6, "restore", str(file))
    lone.command("package", "restore", str(file), "--foreign")
    assert is_filled(lone.place.root)


def fill(pair: LocalPair) -> None:
    root = Path(pair.a.place.root)
    write_rows(str(root / "config.db"), "INSERT INTO extension (number, name) VALUES ('100', 'Ann')")
    write_rows(str(root / "config.db"), "INSERT OR REPLACE INTO settings VALUES ('externhost', 'a.example')")
    write_rows(str(root / "astdb.sqlite3"), "INSERT INTO astdb VALUES ('/cidname/100', 'Ann')")
    (root / "files" / "conf").mkdir()
    (root / "files" / "conf" / "sip.conf").write_text("[general]\n")
    for number in range(40):
        (root / "recordings" / f"call-{number}.wav").write_bytes(bytes(20_000) + str(number).encode())
    assert pair.a.wait_replicated() == ()


def spoil(pair: LocalPair) -> None:
    """What a restore is made for."""
    root = Path(pair.a.place.root)
    write_rows(str(root / "config.db"), "DELETE FROM extension")
    write_rows(str(root / "config.db"), "UPDATE settings SET value = 'new.example' WHERE name = 'externhost'")
    write_rows(str(root / "astdb.sqlite3"), "DELETE FROM astdb")
    (root / "files" / "conf" / "sip.conf").write_text("spoilt")
    (root / "files" / "conf" / "added").write_text("added")
    for number in range(60):
        (root / "files" / f"much-{number}").write_text("new")
    for number in range(15):
        (root / "recordings" / f"call-{number}.wav").unlink()
    assert pair.a.wait_replicated() == ()


def is_filled(root: str) -> bool:
    recordings = Path(root, "recordings")
    return (
        read_rows(f"{root}/config.db", EXTENSIONS) == [("100", "Ann")]
        and read_rows(f"{root}/astdb.sqlite3", "SELECT * FROM astdb") == [("/cidname/100", "Ann")]
        and Path(root, "files/conf/sip.conf").read_text() == "[general]\n"
        and sorted(tree_looks(f"{root}/files", own=True)) == [".", "conf", "conf/sip.conf"]
        and all((recordings / f"call-{n}.wav").read_bytes().endswith(str(n).encode()) for n in range(40))
    )


@pytest.mark.req("R24", "R33", "R31", "R5")
def test_a_package_is_exported_and_restored_and_the_standby_follows(pair: LocalPair, tmp_path: Path) -> None:
    file = tmp_path / "packages" / "pbx.package"
    file.parent.mkdir()
    fill(pair)
    told = json.loads(pair.a.command("package", "export", str(file), "--json").stdout)
    assert told["package_bytes"] == file.stat().st_size
    assert (told["faults"], told["moving"], told["absent"]) == ([], [], [])
    assert sorted(os.listdir(file.parent)) == ["pbx.package"]
    piped = tmp_path / "piped"
    with piped.open("wb") as out:
        command = [sys.executable, "-m", "ha_sync.cli", "package", "export", "-", "--config", pair.a.config]
        subprocess.run(command, stdout=out, check=True, timeout=60)
    checked = json.loads(pair.a.command("package", "verify", str(piped), "--json").stdout)
    assert checked["entries"] == told["entries"]
    assert (checked["refusals"], checked["chosen"]) == ([], ["astdb", "config", "files", "recordings"])

    spoil(pair)
    before = pair.a.status()
    restored = json.loads(pair.a.command("package", "restore", str(file), "--json").stdout)
    after = pair.a.status()
    assert restored["epoch"] == after.epoch > before.epoch
    positions = {one.name: one.position.incarnation for one in before.datasets}
    assert all(one.position.incarnation != positions[one.name] for one in after.datasets)
    assert is_filled(pair.a.place.root)
    assert read_rows(f"{pair.a.place.root}/config.db", LOCAL) == [("new.example",)], "the node's own row stays"
    pair.until_streaming()
    assert pair.a.wait_replicated() == ()
    until(lambda: is_filled(pair.b.place.root), "the Standby follows")
    assert pair.b.status().epoch == after.epoch
    until(lambda: not hidden(pair.a.place.root), "the old data goes")
    runs = json.loads("[" + ",".join(pair.a.command("logs", "backup", "--json").stdout.splitlines()) + "]")
    syncs = [run["trigger"] for run in runs if run["kind"] == "full-sync"]
    assert syncs[-1] == "restore", "the log says why the Standby got everything"
    kinds = [(run["kind"], run["result"], run["trigger"]) for run in runs if run["kind"] in {"export", "restore"}]
    assert kinds == [("export", "done", "manual"), ("export", "done", "manual"), ("restore", "done", "manual")]


def hidden(root: str) -> list[str]:
    return [path.name for path in Path(root).rglob(".ha-restore*")]


@pytest.mark.req("R24", "R33")
def test_what_does_not_fit_is_refused_and_nothing_is_touched(pair: LocalPair, tmp_path: Path) -> None:
    file = tmp_path / "pbx.package"
    fill(pair)
    pair.a.command("package", "export", str(file))
    spoil(pair)
    root = pair.a.place.root
    before = (read_rows(f"{root}/config.db", EXTENSIONS), sorted(os.listdir(f"{root}/files")), pair.a.status().epoch)

    assert "this node is not the Active" in refused(pair.b, 3, "restore", str(file))
    assert "the Standby" in refused(pair.b, 3, "export", str(tmp_path / "other"))
    pair.b.command("package", "export", "--from-standby", str(tmp_path / "other"))
    with Package(str(tmp_path / "other")) as package:
        assert package.head.role == "standby"
        modes = {entry.dataset: entry.mode for entry in package.entries() if entry.dataset == "astdb"}
    assert modes == {"astdb": os.stat(f"{root}/astdb.sqlite3").st_mode & 0o7777}, "not that of its guard"
    assert not os.stat(f"{pair.b.place.root}/astdb.sqlite3").st_mode & 0o200
    assert "not in the package" in refused(pair.a, 6, "restore", str(file), "--dataset", "nothing")
    whole = file.read_bytes()
    bad = tmp_path / "bad"
    for content in (whole[:-1], whole[: len(whole) // 2], b"", b"\0" * 4096, flipped(whole, 100), flipped(whole, -60)):
        bad.write_bytes(content)
        refused(pair.a, 6, "verify", str(bad))
        refused(pair.a, 6, "restore", str(bad))
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, f"{root}/astdb.sqlite3"], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert f"pid {holder.pid}" in refused(pair.a, 6, "restore", str(file))
        holder.communicate()
    write_rows(f"{root}/astdb.sqlite3", "PRAGMA user_version = 0")
    set_version(f"{root}/astdb.sqlite3", 9)
    assert pair.a.wait_replicated() == ()
    newer = tmp_path / "newer"
    pair.a.command("package", "export", str(newer))
    set_version(f"{root}/astdb.sqlite3", 8)
    assert "newer" in refused(pair.a, 6, "restore", str(newer))

    after = (read_rows(f"{root}/config.db", EXTENSIONS), sorted(os.listdir(f"{root}/files")), pair.a.status().epoch)
    assert after == before
    assert hidden(root) == []
    results = [json.loads(line)["result"] for line in pair.a.command("logs", "backup", "--json").stdout.splitlines()]
    assert "refused" in results


HOLDER = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute('SELECT 1 FROM astdb').fetchall(); "
HOLDER += "print(flush=True); sys.stdin.read()"


def flipped(content: bytes, at: int) -> bytes:
    changed = bytearray(content)
    changed[at] ^= 1
    return bytes(changed)


def set_version(path: str, version: int) -> None:
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()


def refused(node: LocalNode, exit_code: int, verb: str, *arguments: str) -> str:
    done = node.command("package", verb, *arguments, "--json", check=False)
    assert done.returncode == exit_code, (done.stdout, done.stderr)
    error = json.loads(done.stdout.splitlines()[-1])["error"]
    return str(error.get("reason") or error["message"])
