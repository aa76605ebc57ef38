"""What of a node goes into a package, what stays out, what does not fit, and what is said of it."""

from __future__ import annotations

import io
import os
import sqlite3
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import zstandard

from ha_sync.backup.package import databases, staging
from ha_sync.backup.package import swap as swapping
from ha_sync.backup.package.exporting import expect
from ha_sync.backup.package.fit import NodeFacts, fit
from ha_sync.backup.package.format import Described, Schema
from ha_sync.backup.package.occupants import occupants
from ha_sync.backup.package.places import Stopped
from ha_sync.backup.package.plan import DatasetPlan, plan_of, plans_in, plans_out
from ha_sync.backup.package.reader import Package
from ha_sync.backup.package.swap import INTENT_NAME, recover, sweep
from ha_sync.backup.package.trees import TRIES, TreeReader
from ha_sync.config import NodeLocalRows, SqliteSettings, TreeSettings
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.database.lockfree import LockFreeReader, Refusal, Rejected
from ha_sync.errors import OperatorNeeded, Refused, Retryable
from ha_sync.files.rules import Rules
from tests.support.package_site import HEAD, Site, nothing


@pytest.fixture
def site(tmp_path: Path) -> Site:
    made = Site(str(tmp_path / "node"))
    made.furnish(3)
    return made


def decoded(path: str) -> bytes:
    with open(path, "rb") as file:
        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()


# ---- what goes in


@pytest.mark.req("R24")
def test_a_package_is_a_tar_that_every_tool_reads(site: Site) -> None:
    Path(site.path("files"), "f").write_text("content")
    site.export()
    with tarfile.open(fileobj=io.BytesIO(decoded(site.package))) as archive:
        names = archive.getnames()
        found = archive.extractfile("data/files/f")
        assert found is not None
        assert found.read() == b"content"
    assert (names[0], names[-1]) == ("ha-sync-package.json", "manifest.jsonl")
    assert "data/config/database.sqlite3" in names


@pytest.mark.req("R24", "R5")
def test_nothing_that_is_the_nodes_own_is_in_a_package_not_even_its_traces(site: Site) -> None:
    connection = sqlite3.connect(site.path("config.db"))
    connection.execute("INSERT OR REPLACE INTO settings VALUES ('externhost', 'a-secret-row')")
    connection.execute("INSERT INTO network VALUES ('eth9', 'a-secret-table')")
    connection.commit()
    connection.close()
    Path(site.path("files"), "own-key").write_text("a-secret-file")
    site.export()
    content = decoded(site.package)
    assert b"a-secret" not in content
    assert b"own-key" not in content
    assert sqlite3.connect(site.path("config.db")).execute("SELECT count(*) FROM network").fetchone()[0] > 1


@pytest.mark.req("R24")
def test_a_dataset_that_the_node_has_nothing_of_is_named_and_stays_at_a_restore(site: Site) -> None:
    os.rename(site.path("astdb.sqlite3"), site.path("aside"))
    assert site.export().absent == ("astdb",)
    os.rename(site.path("aside"), site.path("astdb.sqlite3"))
    before = site.looks()
    node = NodeFacts(cluster_id="c1", model="m", firmware="f1", kinds=kinds(site), versions={})
    with Package(site.package) as package:
        answer = fit(package.head, node, datasets=(), foreign=False)
    assert answer.chosen == ("config", "files", "recordings")
    assert answer.refusals == ()
    assert any("astdb" in note for note in answer.notes)
    assert site.looks() == before


@pytest.mark.req("R24")
def test_special_files_are_left_out_and_counted(site: Site) -> None:
    os.mkfifo(os.path.join(site.path("files"), "pipe"))
    site.export()
    with Package(site.package) as package:
        described = package.head.dataset("files")
        assert described is not None
        assert described.notes == ("1 sockets, FIFOs or devices left out",)


@pytest.mark.req("R24")
def test_a_damaged_database_is_packed_and_said_and_its_restore_is_refused(site: Site) -> None:
    path = Path(site.path("astdb.sqlite3"))
    content = bytearray(path.read_bytes())
    content[4096:4200] = b"\xff" * 104
    path.write_bytes(content)
    packed = site.export()
    assert [fault[0::2] for fault in packed.faults] == [("astdb", "damaged")]
    before = site.looks_of_files()
    with pytest.raises(Refused, match="damaged"):
        site.stage()
    recover(site.state)
    sweep(site.state)
    assert site.looks_of_files() == before


# ---- what moves while it is read


@contextmanager
def busily(work: object) -> Iterator[None]:
    ended = threading.Event()

    def loop() -> None:
        while not ended.is_set():
            work()  # type: ignore[operator]

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.req("R24")
def test_a_file_that_does_not_hold_still_is_packed_as_it_was_got_and_named(site: Site) -> None:
    path = os.path.join(site.path("recordings"), "growing")
    with open(path, "wb", buffering=0) as growing:
        growing.write(bytes(8 << 20))
        with busily(lambda: growing.write(b"more")):
            packed = site.export()
    assert packed.moving == ("recordings/growing",)
    site.verify()  # its hash is that of what is in the package
    with Package(site.package) as package:
        moving = [entry for entry in package.entries() if entry.moving]
    assert [entry.path for entry in moving] == [b"growing"]


def reader(root: Path, *, mailboxes: bool = False) -> TreeReader:
    return TreeReader("d", str(root), Rules((), mailboxes=mailboxes), spool_dir=str(root.parent), spend=nothing)


@pytest.mark.req("R24")
def test_a_file_that_held_still_at_a_later_try_is_not_moving(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "f").write_bytes(b"one")
    tries: list[int] = []

    def spend(_count: int) -> None:
        tries.append(1)
        if len(tries) < TRIES:
            (root / "f").write_bytes(b"try %d" % len(tries))

    objects = TreeReader("d", str(root), Rules(()), spool_dir=str(tmp_path), spend=spend).objects()
    found = {read.entry.path: (read.entry.moving, b"".join(read.content())) for read in objects}
    assert found[b"f"] == (False, b"try %d" % (TRIES - 1))


@pytest.mark.req("R24")
def test_the_messages_of_a_folder_are_read_together_and_not_under_its_lock(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "default" / "100" / "INBOX"
    folder.mkdir(parents=True)
    for number in range(3):
        (folder / f"msg000{number}.txt").write_text(str(number))
        (folder / f"msg000{number}.wav").write_text(str(number))
    (folder / ".lock").touch()
    unlock = threading.Timer(0.2, (folder / ".lock").unlink)
    unlock.start()
    found = {read.entry.path: b"".join(read.content()) for read in reader(tmp_path / "root", mailboxes=True).objects()}
    assert not (folder / ".lock").exists(), "it waited for the lock"
    unlock.join()
    assert found[b"default/100/INBOX/msg0001.wav"] == b"1"
    assert not [path for path in found if b".lock" in path]
    (folder / ".lock").touch()  # a program that died with it
    moving = [read.entry for read in reader(tmp_path / "root", mailboxes=True).objects() if read.entry.moving]
    assert len(moving) == 6, "read all the same, and said"


# ---- databases


@pytest.mark.req("R24")
def test_a_write_ahead_log_that_no_copy_can_be_had_of_is_read_in_a_short_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "db")
    writer = sqlite3.connect(path)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute("CREATE TABLE t(a)")
    writer.execute("INSERT INTO t VALUES (7)")
    writer.commit()
    rejected = Rejected(why=Refusal.LOG_BUSY)
    monkeypatch.setattr(LockFreeReader, "snapshot_to", lambda *_args, **_more: rejected)
    plan = DatasetPlan(name="d", kind="sqlite", path=path)
    copied = databases.copy_database(path, str(tmp_path / "copy"), plan.locality)
    assert copied is not None
    assert copied.notes == ("copied in a read transaction",)
    assert sqlite3.connect(copied.path).execute("SELECT a FROM t").fetchall() == [(7,)]
    monkeypatch.setattr(databases, "READ_S", -1.0)
    monkeypatch.setattr(databases, "PAGES_AT_ONCE", 1)
    with pytest.raises(Retryable, match="its log may grow no longer"):
        databases.copy_database(path, str(tmp_path / "copy2"), plan.locality)
    assert not (tmp_path / "copy2").exists()
    writer.close()


@pytest.mark.req("R24")
def test_a_database_that_is_too_busy_fails_the_export_with_the_reason(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    rejected = Rejected(why=Refusal.WRITING)
    monkeypatch.setattr(LockFreeReader, "snapshot_to", lambda *_args, **_more: rejected)
    with pytest.raises(Retryable, match="a program is writing"):
        databases.copy_database(site.path("astdb.sqlite3"), site.path("copy"), site.plans[1].locality)


# ---- whether it fits


def kinds(site: Site) -> dict[str, str]:
    return {plan.name: plan.kind for plan in site.plans}


PACKED = replace(
    HEAD,
    datasets=(
        Described(
            name="config", kind="sqlite", position="", schema=Schema(user_version=3, application_id=0, digest="")
        ),
        Described(name="files", kind="tree", position=""),
    ),
)
HERE = NodeFacts(
    cluster_id="c1", model="m", firmware="f1", kinds={"config": "sqlite", "files": "tree"}, versions={"config": 3}
)


@pytest.mark.req("R24")
@pytest.mark.parametrize(
    ("node", "refusal"),
    [
        (HERE, ""),
        (replace(HERE, versions={"config": 4}), ""),
        (replace(HERE, versions={"config": None}), ""),
        (replace(HERE, versions={"config": 2}), "newer: version 3 there, 2 here"),
        (replace(HERE, cluster_id="c2"), "another cluster"),
        (replace(HERE, cluster_id=""), "another cluster"),
        (replace(HERE, model="x"), "model m, this node is x"),
        (replace(HERE, model=""), ""),
        (replace(HERE, kinds={"config": "sqlite"}), "not configured here: files"),
        (replace(HERE, kinds={"config": "tree", "files": "tree"}), "of kind sqlite there and tree here"),
        (replace(HERE, kinds={**HERE.kinds, "more": "tree"}), ""),
    ],
)
def test_a_package_is_restored_only_where_it_fits(node: NodeFacts, refusal: str) -> None:
    answer = fit(PACKED, node, datasets=(), foreign=False)
    assert bool(answer.refusals) == bool(refusal)
    assert refusal in answer.reason


@pytest.mark.req("R24")
def test_a_migration_is_said_and_never_passes_a_newer_schema() -> None:
    stranger = replace(HERE, cluster_id="c2", model="x", firmware="f2")
    answer = fit(PACKED, stranger, datasets=(), foreign=True)
    assert answer.refusals == ()
    assert len(answer.notes) == 3
    assert fit(PACKED, replace(stranger, versions={"config": 2}), datasets=(), foreign=True).refusals


@pytest.mark.req("R24")
def test_datasets_are_chosen_by_name() -> None:
    alone = replace(HERE, kinds={"files": "tree"})
    assert fit(PACKED, alone, datasets=("files",), foreign=False).chosen == ("files",)
    assert "not in the package" in fit(PACKED, HERE, datasets=("other",), foreign=False).reason
    assert "not configured here" in fit(PACKED, alone, datasets=("config",), foreign=False).reason
    assert fit(replace(PACKED, datasets=()), HERE, datasets=(), foreign=False).refusals


# ---- room, and who is in the way


@pytest.mark.req("R24")
def test_no_room_is_known_before_anything_is_written(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.export()
    before = site.looks()
    monkeypatch.setattr(staging, "MARGIN_BYTES", 1 << 60)
    with pytest.raises(OperatorNeeded, match="no room to restore"):
        site.stage()
    assert recover(site.state) == "rolled back"
    sweep(site.state)
    assert site.looks() == before
    assert site.leftovers() == []
    monkeypatch.setattr("ha_sync.backup.package.exporting._free", lambda _path: 1)
    with pytest.raises(OperatorNeeded, match="no room to copy a database"):
        expect(site.plans, spool_dir=site.state)


@pytest.mark.req("R24", "R5")
def test_an_own_file_that_would_have_no_folder_any_more_stops_the_restore(site: Site) -> None:
    Path(site.path("files"), "here").write_text("a file in the package")
    site.export()
    os.unlink(os.path.join(site.path("files"), "here"))
    os.makedirs(os.path.join(site.path("files"), "here"))
    Path(site.path("files"), "here", "own-file").write_text("mine")
    before = site.looks()
    swap, _ = site.stage()
    with pytest.raises(Refused, match="has no folder where it lies"):
        swap.exchange()
    swap.give_up()
    swap.give_up()  # again, as whoever called it first may call it
    sweep(site.state)
    assert site.looks() == before
    assert site.leftovers() == []


@pytest.mark.req("R24")
def test_a_symlink_of_a_package_leads_no_own_file_away(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    os.symlink(outside, os.path.join(site.path("files"), "here"))
    site.export()
    os.unlink(os.path.join(site.path("files"), "here"))
    os.makedirs(os.path.join(site.path("files"), "here"))
    Path(site.path("files"), "here", "own-file").write_text("mine")
    swap, _ = site.stage()
    with pytest.raises(Refused):
        swap.exchange()
    swap.give_up()
    assert os.listdir(outside) == []
    assert Path(site.path("files"), "here", "own-file").read_text() == "mine"


@pytest.mark.req("R24")
def test_an_intent_that_cannot_be_read_stops_the_engine_instead_of_being_guessed(site: Site) -> None:
    for content in (
        "",
        "[]",
        '{"version": 2, "phase": "staging"}',
        '{"version": 1, "phase": "staging", "places": [[1]]}',
    ):
        Path(site.state, INTENT_NAME).write_text(content)
        with pytest.raises(OperatorNeeded, match="cannot undo the restore"):
            recover(site.state)


@pytest.mark.req("R24")
def test_who_writes_to_the_data_is_named(site: Site) -> None:
    with open(os.path.join(site.path("files"), "f"), "w", encoding="ascii"):
        assert occupants(site.plans) == (), "this process is the engine"


@pytest.mark.req("R24", "R5")
def test_neither_what_is_the_nodes_own_nor_a_call_file_is_packed() -> None:
    tree = TreeSettings(
        name=DatasetName("spool"), path="/x", priority=Priority.CDR, exclude=("a",), node_local=("b/*",),
        hold=("outgoing/*",), mailboxes=True,
    )  # fmt: skip
    plan = plan_of(tree)
    assert (plan.left_out, plan.mailboxes) == (("a", "b/*", "outgoing/*"), True)
    database = SqliteSettings(
        name=DatasetName("config"), path="/y", priority=Priority.CONFIG, node_local_tables=("network",),
        node_local_rows=(NodeLocalRows(table="settings", where="name = 'x'"),),
    )  # fmt: skip
    plan = plan_of(database, mode=0o640)
    assert (plan.local_tables, plan.local_rows, plan.mode) == (("network",), (("settings", "name = 'x'"),), 0o640)


def test_plans_travel_as_they_are(site: Site) -> None:
    plans = (*site.plans, DatasetPlan(name="x", kind="tree", path="/x", mailboxes=True, mode=0o640, position="1/a/2"))
    assert plans_in(plans_out(plans)) == plans


@pytest.mark.req("R24")
def test_a_removal_that_was_told_to_stop_goes_on_where_it_was(site: Site) -> None:
    for number in range(20):
        Path(site.path("files"), f"f{number}").touch()
    site.export()
    before = site.looks(own=False)
    swap, _ = site.stage()
    swap.exchange()
    swap.commit()
    swap.forget()
    left = 10

    def stop() -> bool:
        nonlocal left
        left -= 1
        return left < 0

    with pytest.raises(Stopped):
        sweep(site.state, stop=stop)
    assert site.leftovers() != []
    assert recover(site.state) == "", "it is over: nothing has to wait for the rest"
    sweep(site.state)
    assert site.leftovers() == []
    assert site.looks(own=False) == before


@pytest.mark.req("R24")
def test_a_folder_without_permission_is_removed(site: Site) -> None:
    folder = Path(site.path("files"), "closed")
    folder.mkdir()
    (folder / "f").touch()
    site.export()
    folder.chmod(0)
    site.restore()
    assert site.leftovers() == []


@pytest.mark.req("R24")
def test_data_that_could_not_be_brought_back_is_said_to_be_open(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.export()
    before = site.looks()
    swap, _ = site.stage()
    real = swapping._move
    calls: list[int] = []

    def failing(source: bytes, target: bytes) -> None:
        calls.append(1)
        if len(calls) >= 3:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(swapping, "_move", failing)
    with pytest.raises(OSError, match="Input/output"):
        swap.exchange()
    with pytest.raises(OSError, match="Input/output"):
        swap.give_up()
    assert swap.is_open
    assert not swap.committed
    with pytest.raises(OperatorNeeded, match="cannot undo the restore"):
        recover(site.state)
    monkeypatch.setattr(swapping, "_move", real)
    swap.give_up()
    assert not swap.is_open
    assert site.looks() == before
