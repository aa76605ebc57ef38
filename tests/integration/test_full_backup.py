"""Two real engines: what differs behind the guards' backs is found by the full backup, repaired, named in the log."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.catalogue.tree import TYPE_FILE, Entry, TreeCatalogue, Witness
from ha_sync.files.blocks import content_of
from ha_sync.sample.pair import LocalNode, LocalPair, Place
from tests.support.rows_examined import behind_our_back
from tests.support.small_pair import furnish, read_rows, small_toml, until, write_rows

FILES = 40
ONLY_FILES = ("files", "recordings", "astdb")


def slow_toml(place: Place) -> str:
    """A full backup that takes seconds: each large file waits for two."""
    return small_toml(place).replace("[[dataset]]", "[backup]\nfull = false\nrate_mib_per_s = 16\n\n[[dataset]]", 1)


def furnished(pair: LocalPair, *, size: int = 3000) -> None:
    furnish(pair.a.place.root)
    pair.start()
    for number in range(FILES):
        folder = Path(pair.a.place.root, "files", f"d{number % 4}")
        folder.mkdir(exist_ok=True)
        (folder / f"f{number:02}").write_bytes(number.to_bytes(2, "big") + os.urandom(size))
    assert pair.a.wait_replicated() == ()


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[LocalPair]:
    with LocalPair(str(tmp_path), small_toml) as made:
        furnished(made)
        yield made


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[LocalPair]:
    with LocalPair(str(tmp_path), slow_toml) as made:
        furnish(made.a.place.root)
        made.start()
        for number in range(4):
            # Ranges of a size that the rate lets through one by one.
            Path(made.a.place.root, "files", f"large{number}").write_bytes(os.urandom(33 * 1024 * 1024))
        assert made.a.wait_replicated() == ()
        yield made


def behind_its_back(node: LocalNode, dataset: str, change: Callable[[Path, TreeCatalogue], None], *, role: str) -> None:
    """Changes a node's tree while its engine is down, and its catalogue so that nothing looks changed."""
    node.stop()  # in order: what a kill leaves half done would be done again at the start
    catalogue = TreeCatalogue(os.path.join(node.place.state_dir, "datasets", dataset, "catalogue.db"))
    try:
        with catalogue.transaction(durable=True):
            change(Path(node.place.root, dataset), catalogue)
    finally:
        catalogue.close()
    node.serve(role, 1)


def unchanged_to_the_eye(root: Path, catalogue: TreeCatalogue, path: str, **fields: int) -> None:
    """The entry shows the file as it stands now."""
    entry = catalogue.entry(path.encode())
    assert entry is not None
    status = os.lstat(root / path)
    witness = Witness(inode=status.st_ino, ctime_ns=status.st_ctime_ns)
    catalogue.put_entries([replace(entry, witness=witness, **fields)])


def flip_a_bit(path: Path) -> None:
    """As a disk does: size and times stay."""
    status = os.stat(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def backup(node: LocalNode, *arguments: str) -> tuple[int, dict[str, object]]:
    done = node.command("full-backup", "--wait", "--json", *arguments, check=False, timeout_s=120)
    return done.returncode, json.loads(done.stdout)


def findings(node: LocalNode, run: object) -> set[tuple[str, str, str, str, bool]]:
    found = list(node.control().ListFindings(pb.ListFindingsRequest(log="backup", id=str(run))))
    return {(item.dataset, item.subject, item.fault, item.side, item.repaired) for item in found}


def only(found: set[tuple[str, str, str, str, bool]], *datasets: str) -> set[tuple[str, str, str, str, bool]]:
    return {item for item in found if item[0] in datasets}


@pytest.mark.req("R23", "R13")
@pytest.mark.parametrize("verify", ["content", "metadata"])
def test_what_differs_on_the_standby_is_found_named_and_repaired(pair, verify):
    def spoil(root: Path, catalogue: TreeCatalogue) -> None:
        flip_a_bit(root / "d1/f01")
        unchanged_to_the_eye(root, catalogue, "d1/f01")
        os.chmod(root / "d2/f02", 0o600)
        unchanged_to_the_eye(root, catalogue, "d2/f02", mode=0o600)
        os.unlink(root / "d3/f03")
        catalogue.remove_entries([b"d3/f03"])
        (root / "d0/extra").write_bytes(b"nobody on the active wrote this")
        status = os.lstat(root / "d0/extra")
        content = content_of(b"nobody on the active wrote this")
        witness = Witness(inode=status.st_ino, ctime_ns=status.st_ctime_ns)
        owned = {"mode": status.st_mode & 0o777, "uid": status.st_uid, "gid": status.st_gid}
        told = {"size": content.size, "hash": content.hash, "block_size": content.block_size}
        extra = Entry(path=b"d0/extra", type=TYPE_FILE, mtime_ns=status.st_mtime_ns, witness=witness, **owned, **told)
        catalogue.put_entries([extra])

    behind_its_back(pair.b, "files", spoil, role="standby")
    pair.until_streaming()
    code, last = backup(pair.a, "--verify", verify)
    found = only(findings(pair.a, last["run"]), *ONLY_FILES)
    # Directories whose time moved with what was added and removed may be among them, and are repaired as well.
    plain = {item for item in found if item[1] not in {"d0", "d3"}}
    rot = {("files", "d1/f01", "rotten", "standby", True)} if verify == "content" else set()
    assert plain == {
        *rot,
        ("files", "d2/f02", "metadata", "standby", True),
        ("files", "d3/f03", "missing", "standby", True),
        ("files", "d0/extra", "surplus", "standby", True),
    }
    assert all(item[4] for item in found)
    a, b = Path(pair.a.place.root, "files"), Path(pair.b.place.root, "files")
    changed = ["d2/f02", "d3/f03"] + (["d1/f01"] if verify == "content" else [])
    for name in changed:
        assert (b / name).read_bytes() == (a / name).read_bytes()
        assert os.stat(b / name).st_mode == os.stat(a / name).st_mode
    assert not (b / "d0/extra").exists()
    events = pair.a.command("logs", "events", "--json").stdout
    assert "full backup ended" in events
    assert "d3/f03" in events
    again_code, again = backup(pair.a, "--verify", verify)
    assert only(findings(pair.a, again["run"]), *ONLY_FILES) == set()
    assert again_code <= code


@pytest.mark.req("R23", "R13")
def test_a_row_that_was_edited_and_a_guard_that_is_gone_are_found_by_name(pair):
    rows = f"{pair.b.place.root}/config.db"
    for row in range(20):
        write_rows(f"{pair.a.place.root}/config.db", "INSERT INTO extension (number, name) VALUES (?, 'x')", str(row))
    assert pair.a.wait_replicated() == ()
    guards = [name for (name,) in read_rows(rows, "SELECT name FROM sqlite_schema WHERE type = 'trigger'")]
    for fault, spoilt in (
        ("content", "UPDATE extension SET name = 'spoilt' WHERE id = 7"),
        ("guard", f"DROP TRIGGER {guards[0]}"),
    ):
        behind_our_back(Path(rows), spoilt)
        code, last = backup(pair.a)
        found = findings(pair.a, last["run"])
        assert (code, last["result"]) == (0, "done"), found
        assert {(item[0], *item[2:]) for item in found} == {("config", fault, "standby", True)}
    assert read_rows(rows, "SELECT name FROM extension WHERE id = 7") == [("x",)]
    assert backup(pair.a)[1]["differing"] == 0


@pytest.mark.req("R23")
def test_a_file_that_rotted_on_the_active_is_told_and_never_copied(pair):
    good = Path(pair.a.place.root, "files/d1/f05").read_bytes()

    def rot(root: Path, catalogue: TreeCatalogue) -> None:
        flip_a_bit(root / "d1/f05")
        unchanged_to_the_eye(root, catalogue, "d1/f05")

    backup(pair.a)
    behind_its_back(pair.a, "files", rot, role="active")
    pair.until_streaming()
    code, last = backup(pair.a)
    assert code == 4
    assert last["result"] == "partial"
    found = only(findings(pair.a, last["run"]), "files")
    assert found == {("files", "d1/f05", "rotten", "active", False)}
    named = list(pair.a.control().ListFindings(pb.ListFindingsRequest(log="backup", id=str(last["run"]))))
    assert any(item.equal_until_unix_s for item in named if item.dataset == "files")  # since when it can have been
    assert Path(pair.b.place.root, "files/d1/f05").read_bytes() == good
    assert Path(pair.a.place.root, "files/d1/f05").read_bytes() != good
    # The way that the hint names: the good copy is brought back, and all is equal again.
    Path(pair.a.place.root, "files/d1/f05").write_bytes(good)
    assert pair.a.wait_replicated() == ()
    _, again = backup(pair.a)
    assert only(findings(pair.a, again["run"]), "files") == set()


@pytest.mark.req("R23")
def test_what_is_being_written_is_in_motion_and_no_fault(pair):
    growing = Path(pair.a.place.root, "recordings", "call.wav")
    with growing.open("wb", buffering=0) as file:
        file.write(b"RIFF" + bytes(40) + os.urandom(100_000))
        engine = pair.a.control()
        run = engine.StartFullBackup(pb.StartFullBackupRequest()).progress.run
        for now in engine.WatchFullBackup(pb.WatchFullBackupRequest(run=run)):
            file.write(os.urandom(3200))
            assert now.run == run
        assert only(findings(pair.a, run), *ONLY_FILES) == set()


@pytest.mark.req("R23")
def test_only_the_active_makes_one_and_cron_may_call_it_on_both(pair):
    assert pair.b.command("full-backup", check=False).returncode == 3
    idle = pair.b.command("full-backup", "--if-active", "--json", check=False)
    assert (idle.returncode, json.loads(idle.stdout)["started"]) == (0, False)


@pytest.mark.req("R23")
def test_a_second_request_joins_and_a_run_can_be_paused_and_cancelled(slow):
    first = json.loads(slow.a.command("full-backup", "--json").stdout)
    second = json.loads(slow.a.command("full-backup", "--json").stdout)
    assert (first["joined"], second["joined"]) == (False, True)
    assert second["progress"]["run"] == first["progress"]["run"]
    until(lambda: slow.b.status().full_backup.phase == "answering the active", "a question")
    assert "paused" in slow.a.command("full-backup", "pause").stdout
    status = slow.a.status().full_backup
    assert (status.state, status.phase) == ("backing up", "paused")
    assert "paused" not in slow.a.command("full-backup", "resume").stdout
    slow.a.command("full-backup", "cancel")
    until(lambda: slow.a.status().full_backup.state == "idle", "the end of the run")
    assert slow.a.status().full_backup.result == "cancelled"
    assert "cancelled" in slow.a.command("logs", "backup").stdout
    assert slow.a.command("full-backup", "cancel", check=False).returncode == 3


@pytest.mark.req("R23", "R22")
@pytest.mark.parametrize("victim", ["a", "b"])
def test_a_run_survives_the_death_of_either_node(slow, victim):
    slow.a.command("full-backup")
    until(lambda: slow.a.status().full_backup.objects > 1, "some progress", timeout_s=60)
    node, role = (slow.a, "active") if victim == "a" else (slow.b, "standby")
    node.kill()
    node.serve(role, 1)
    slow.until_streaming()
    until(lambda: slow.a.status().full_backup.state == "backing up", "the run going on")
    now = slow.a.status().full_backup
    until(lambda: slow.a.status().full_backup.state == "idle", "the end of the run", timeout_s=120)
    last = slow.a.status().full_backup
    assert last.run == now.run
    assert last.result in {"done", "partial"}
    assert only(findings(slow.a, last.run), *ONLY_FILES) == set()
    # Each object once, though the run came in two parts.
    assert last.objects >= 5
    assert last.objects <= last.objects_expected
    if victim == "a":
        assert "goes on where an interrupted run was" in slow.a.command("logs", "backup").stdout


@pytest.mark.req("R23", "R22", "R13")
@pytest.mark.parametrize("number", range(int(os.environ.get("HA_SYNC_ROUNDS", "2"))))
def test_a_node_killed_at_a_random_moment_of_a_repair_leaves_nothing_half_repaired(pair, number):
    dice = random.Random(number)
    victim = "ab"[number % 2]
    rows = f"{pair.b.place.root}/config.db"
    for row in range(50):
        write_rows(f"{pair.a.place.root}/config.db", "INSERT INTO extension (number, name) VALUES (?, 'x')", str(row))
    assert pair.a.wait_replicated() == ()

    def spoil(root: Path, catalogue: TreeCatalogue) -> None:
        for path in sorted(root.glob("d*/f*"))[::3]:
            flip_a_bit(path)
            unchanged_to_the_eye(root, catalogue, str(path.relative_to(root)))

    behind_its_back(pair.b, "files", spoil, role="standby")
    pair.until_streaming()
    behind_our_back(Path(rows), "UPDATE extension SET name = 'spoilt' WHERE id % 7 = 0")
    pair.a.command("full-backup")
    # Any moment will do, before its end or after.
    until(lambda: dice.random() < 0.05 or pair.a.status().full_backup.state == "idle", "the moment")
    node, role = (pair.a, "active") if victim == "a" else (pair.b, "standby")
    node.kill()
    node.serve(role, 1)
    pair.until_streaming()
    until(lambda: pair.a.status().full_backup.state == "idle", "the end of the first run", timeout_s=120)
    code, last = backup(pair.a)
    assert (code, last["result"]) == (0, "done"), findings(pair.a, last["run"])
    again_code, again = backup(pair.a)
    assert (again_code, again["differing"], again["unverified"]) == (0, 0, 0)
    for path in Path(pair.a.place.root, "files").glob("d*/f*"):
        other = Path(pair.b.place.root, path.relative_to(pair.a.place.root))
        assert other.read_bytes() == path.read_bytes()
    names = "SELECT id, number, name FROM extension ORDER BY id"
    assert read_rows(rows, names) == read_rows(f"{pair.a.place.root}/config.db", names)
