"""Each writer of the sample PBX against what was observed on a real one (docs/sample-pbx.md)."""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import shutil
import sqlite3
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ha_sync.sample import voicemail as voicemail_module
from ha_sync.sample.astdb import UUID_KEY, AstDb
from ha_sync.sample.audio import PIECE_BYTES, NoisePool
from ha_sync.sample.callrecords import CDR_COLUMNS, CallCsv, CallRecords
from ha_sync.sample.configdb import EDITS, ConfigDb
from ha_sync.sample.ledger import Ledger, Line, read_ledger
from ha_sync.sample.recordings import Recordings
from ha_sync.sample.schema import broken_rules
from ha_sync.sample.textfiles import CallFiles, ConfFiles, Log
from ha_sync.sample.voicemail import Voicemail, folder_messages

POOL = NoisePool(1)
ROW = tuple(f"value of {name}" for name in CDR_COLUMNS)
PENDING_BYTE = 0x40000000
SHARED_FIRST, SHARED_SIZE = PENDING_BYTE + 2, 510


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "pbx"
    directory.mkdir()
    return directory


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(str(tmp_path / "ledger")) as opened:
        yield opened


def lines(tmp_path: Path, *kinds: str) -> list[Line]:
    return [line for line in read_ledger(str(tmp_path / "ledger")) if line["k"] in kinds]


class Inotify:
    """The raw events of one directory, as (mask, name); masks as in inotify(7)."""

    MODIFY, ATTRIB, CLOSE_WRITE, MOVED_FROM, MOVED_TO, CREATE, DELETE = 0x2, 0x4, 0x8, 0x40, 0x80, 0x100, 0x200

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(None, use_errno=True)
        self._file = library.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert library.inotify_add_watch(self._file, os.fsencode(path), 0x3CE) >= 0

    def events(self) -> list[tuple[int, str]]:
        found = []
        data = os.read(self._file, 1 << 20)
        os.close(self._file)
        while data:
            _, mask, _, length = struct.unpack_from("iIII", data)
            found.append((mask, data[16 : 16 + length].rstrip(b"\0").decode()))
            data = data[16 + length :]
        return found


LOCK_QUERY = """
import fcntl, os, struct, sys
asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, {first}, {size}, 0)
held = fcntl.fcntl(os.open(sys.argv[1], os.O_RDWR), fcntl.F_GETLK, asked)
print(struct.unpack("hhqqi4x", held)[0])
"""


def lock_held(path: Path) -> str:
    """Which lock another process would meet on the SHARED bytes of a database: read, write or none."""
    query = LOCK_QUERY.format(first=SHARED_FIRST, size=SHARED_SIZE)
    answer = subprocess.run(
        [sys.executable, "-c", query, str(path)], check=True, capture_output=True, text=True, timeout=30
    )
    return {fcntl.F_RDLCK: "read", fcntl.F_WRLCK: "write", fcntl.F_UNLCK: "none"}[int(answer.stdout)]


HOLDER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2]); connection.execute(sys.argv[3]).fetchall()
print("held", flush=True)
sys.stdin.readline()
"""


class Holder:
    """Another process that holds a lock until told."""

    def __init__(self, path: Path, begin: str, then: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(path), begin, then], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"held\n"

    def __exit__(self, *_: object) -> None:
        self._process.communicate(b"\n", timeout=30)


# Call records


def test_a_call_record_is_one_rollback_journal_transaction(root: Path, ledger: Ledger, tmp_path: Path) -> None:
    records = CallRecords(str(root), "master.db", "cdr", CDR_COLUMNS, ledger)
    seen = Inotify(root)
    assert records.add(ROW)
    events = seen.events()
    journal = [mask for mask, name in events if name == "master.db-journal"]
    assert journal.count(Inotify.CREATE) == 1
    assert journal[-1] == Inotify.DELETE
    assert (Inotify.MODIFY, "master.db") in events
    assert lock_held(root / "master.db") == "none"
    records.close()
    [row] = lines(tmp_path, "row")
    assert (row["db"], row["table"], row["key"]) == ("master.db", "cdr", "[1]")


@pytest.mark.req("R25")
def test_a_call_record_waits_less_than_a_second_for_a_lock_and_is_then_lost(
    root: Path, ledger: Ledger, tmp_path: Path
) -> None:
    records = CallRecords(str(root), "master.db", "cdr", CDR_COLUMNS, ledger)
    with Holder(root / "master.db", "BEGIN IMMEDIATE", "SELECT 1"):
        assert not records.add(ROW)
    assert records.add(ROW)  # nothing remembers the lost one
    records.close()
    [lost] = lines(tmp_path, "lost")
    assert "locked" in lost["why"]
    assert len(lines(tmp_path, "row")) == 1


def test_a_short_lock_only_delays_a_call_record(root: Path, ledger: Ledger) -> None:
    records = CallRecords(str(root), "master.db", "cdr", CDR_COLUMNS, ledger)
    with closing(sqlite3.connect(root / "master.db", isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.2, other.execute, ["COMMIT"])
        timer.start()
        assert records.add(ROW)
        timer.join()
    records.close()


def test_csv_files_are_opened_and_closed_for_every_record(root: Path, ledger: Ledger, tmp_path: Path) -> None:
    csv = CallCsv(str(root), ledger)
    seen = Inotify(root / "cdr-csv")
    csv.add(ROW, "acct1")
    csv.add(ROW, "")
    closes = [name for mask, name in seen.events() if mask == Inotify.CLOSE_WRITE]
    assert closes == ["Master.csv", "Custom.csv", "acct1.csv", "Master.csv", "Custom.csv"]
    appended = [line for line in lines(tmp_path, "append") if line["p"] == "cdr-csv/Master.csv"]
    assert [line["o"] for line in appended] == [0, appended[0]["n"]]


# astdb


@pytest.mark.req("R25")
def test_astdb_keeps_a_shared_lock_after_a_read_until_the_next_commit(root: Path, ledger: Ledger) -> None:
    astdb = AstDb(str(root), ledger)
    astdb.put("/a/b", "c")
    _await(lambda: lock_held(root / "astdb.sqlite3") == "none")
    assert astdb.get("/a/b") == "c"
    assert lock_held(root / "astdb.sqlite3") == "read"
    astdb.put("/a/b", "d")
    _await(lambda: lock_held(root / "astdb.sqlite3") == "none")
    astdb.close()


@pytest.mark.req("R25")
def test_a_readers_lock_at_the_commit_loses_a_put_that_was_answered_with_success(
    root: Path, ledger: Ledger, tmp_path: Path
) -> None:
    astdb = AstDb(str(root), ledger)
    _await(lambda: lock_held(root / "astdb.sqlite3") == "none")
    with Holder(root / "astdb.sqlite3", "BEGIN", "SELECT count(*) FROM astdb"):
        assert astdb.put("/lost/put", "x")
        _await(lambda: bool(lines(tmp_path, "undone")))
    assert astdb.get("/lost/put") is None
    astdb.close()
    [lost] = lines(tmp_path, "lost")
    assert "/lost/put" in lost["what"]
    assert not lines(tmp_path, "done")


@pytest.mark.req("R25")
def test_a_schema_change_kills_astdb_until_a_restart(root: Path, ledger: Ledger) -> None:
    astdb = AstDb(str(root), ledger)
    assert astdb.put("/k", "before")
    _await(lambda: lock_held(root / "astdb.sqlite3") == "none")
    with closing(sqlite3.connect(root / "astdb.sqlite3")) as other:
        other.execute("CREATE INDEX ours ON astdb (value)")
        other.commit()
    assert astdb.get("/k") is None
    assert not astdb.put("/k", "after")
    astdb.close()
    again = AstDb(str(root), ledger)
    assert again.get("/k") == "before"
    again.close()


def test_the_nodes_own_uuid_is_never_in_the_ledger(root: Path, ledger: Ledger, tmp_path: Path) -> None:
    astdb = AstDb(str(root), ledger)
    mine = astdb.get(UUID_KEY)
    astdb.put("/x", "y")
    astdb.delete("/x")
    astdb.close()
    again = AstDb(str(root), ledger)
    assert again.get(UUID_KEY) == mine
    again.close()
    rows = [row for line in lines(tmp_path, "tx") for row in line["rows"]]
    assert [key for _, key, _ in rows] == ['["/x"]'] * len(rows)
    assert rows[-1][2] is None


# Recordings


def test_a_recording_has_zero_lengths_until_it_is_closed(root: Path, ledger: Ledger) -> None:
    recordings = Recordings(str(root), POOL, ledger)
    path = root / "monitor/2026/r.wav"
    recordings.begin("k", "monitor/2026/r.wav")
    recordings.piece("k", 5, PIECE_BYTES)
    recordings.piece("k", 6, PIECE_BYTES)
    data = path.read_bytes()
    assert len(data) == 44 + 2 * PIECE_BYTES
    assert (data[4:8], data[40:44]) == (bytes(4), bytes(4))
    inode = path.stat().st_ino
    recordings.end("k", 7, 100)
    data = path.read_bytes()
    assert path.stat().st_ino == inode
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8
    assert struct.unpack_from("<I", data, 40)[0] == len(data) - 44 == 2 * PIECE_BYTES + 100


def test_a_gsm_recording_has_no_header(root: Path, ledger: Ledger) -> None:
    recordings = Recordings(str(root), POOL, ledger)
    recordings.begin("k", "monitor/q.gsm")
    assert (root / "monitor/q.gsm").stat().st_size == 0
    recordings.end("k", 7, 999)
    assert (root / "monitor/q.gsm").read_bytes() == POOL.piece(7, 999)


# Voicemail


def box(root: Path, name: str = "1001") -> Path:
    return root / "voicemail/default" / name


def leave(voicemail: Voicemail, key: str, rest: int = 2000) -> None:
    voicemail.begin(key, "1001", f"tmp{key}")
    voicemail.end(key, 3 + len(key), rest, f"[message]\nmsg_id={key}\n")


def test_a_message_is_delivered_under_the_lock_with_the_txt_last(root: Path, ledger: Ledger) -> None:
    voicemail = Voicemail(str(root), ("1001",), POOL, ledger)
    voicemail.begin("k", "1001", "AbCdEf")
    assert {path.name for path in (box(root) / "tmp").iterdir()} == {"AbCdEf", "AbCdEf.gsm", "AbCdEf.wav", "AbCdEf.WAV"}
    seen = Inotify(box(root) / "INBOX")
    voicemail.end("k", 1, 500, "[message]\n")
    events = seen.events()
    names = [(mask, "own" if name.startswith(".lock-") else name) for mask, name in events]
    assert names == [
        (Inotify.CREATE, "own"),
        (Inotify.CLOSE_WRITE, "own"),
        (Inotify.CREATE, ".lock"),
        (Inotify.DELETE, "own"),
        (Inotify.MOVED_TO, "msg0000.gsm"),
        (Inotify.MOVED_TO, "msg0000.wav"),
        (Inotify.MOVED_TO, "msg0000.WAV"),
        (Inotify.MOVED_TO, "msg0000.txt"),
        (Inotify.ATTRIB, "msg0000.txt"),
        (Inotify.DELETE, ".lock"),
    ]
    assert (box(root) / "INBOX/msg0000.txt").stat().st_mode & 0o777 == 0o666
    assert not list((box(root) / "tmp").iterdir())


class OnlyFirst(random.Random):
    """Deletes message 0 and hears none: its shares are drawn as 0.0, then 1.0."""

    def __init__(self, draws: list[float]) -> None:
        super().__init__(1)
        self._draws = draws

    def random(self) -> float:
        return self._draws.pop(0)


def test_deleting_renames_later_messages_over_and_unlinks_the_tail_txt_first(root: Path, ledger: Ledger) -> None:
    voicemail = Voicemail(str(root), ("1001",), POOL, ledger)
    for key in ("a", "bb", "ccc"):
        leave(voicemail, key)
    texts = [(box(root) / f"INBOX/msg000{n}.txt").read_text() for n in range(3)]
    seen = Inotify(box(root) / "INBOX")
    voicemail.session("1001", 0.5, 0.5, OnlyFirst([0.9, 0.9, 0.9, 0.1, 0.9, 0.1]))  # deletes the first and the last
    events = [(mask, name) for mask, name in seen.events() if not name.startswith(".lock")]
    moved = [name for mask, name in events if mask == Inotify.MOVED_TO]
    assert moved == ["msg0000.gsm", "msg0000.wav", "msg0000.WAV", "msg0000.txt"]
    deleted = [name for mask, name in events if mask == Inotify.DELETE]
    assert deleted == ["msg0002.txt", "msg0002.gsm", "msg0002.wav", "msg0002.WAV"]
    assert [path.read_text() for path in (box(root) / "INBOX").glob("*.txt")] == [texts[1]]


def test_heard_messages_are_copied_to_old_with_new_inodes(root: Path, ledger: Ledger) -> None:
    voicemail = Voicemail(str(root), ("1001",), POOL, ledger)
    leave(voicemail, "a")
    inode = (box(root) / "INBOX/msg0000.wav").stat().st_ino
    [message] = folder_messages(str(box(root) / "INBOX"))
    voicemail.session("1001", 1.0, 0.0, random.Random(1))
    assert folder_messages(str(box(root) / "INBOX")) == []
    assert folder_messages(str(box(root) / "Old")) == [message]
    assert (box(root) / "Old/msg0000.wav").stat().st_ino != inode


def test_a_lock_that_stays_loses_the_message(
    root: Path, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(voicemail_module, "LOCK_WAIT_S", 0.1)
    voicemail = Voicemail(str(root), ("1001",), POOL, ledger)
    (box(root) / "INBOX/.lock").touch()
    leave(voicemail, "a")
    [lost] = lines(tmp_path, "lost")
    assert "voicemail will be lost" in lost["why"]
    assert [path.name for path in (box(root) / "INBOX").iterdir()] == [".lock"]


def test_a_pin_is_truncated_and_then_appended_three_times(root: Path, ledger: Ledger) -> None:
    voicemail = Voicemail(str(root), ("1001",), POOL, ledger)
    voicemail.secret("1001", "0000")
    seen = Inotify(box(root))
    voicemail.secret("1001", "1234")
    closes = [name for mask, name in seen.events() if mask == Inotify.CLOSE_WRITE]
    assert closes == ["secret.conf"] * 4
    assert "password=1234" in (box(root) / "secret.conf").read_text()


def test_a_greeting_comes_by_rename(root: Path, ledger: Ledger) -> None:
    voicemail = Voicemail(str(root), ("1001",), POOL, ledger)
    seen = Inotify(box(root))
    voicemail.greeting("1001", 1, 5000)
    arrived = [name for mask, name in seen.events() if mask == Inotify.MOVED_TO]
    assert arrived == ["unavail.wav", "unavail.gsm"]


# Text files


def test_update_config_closes_once_per_line_and_once_more(root: Path, ledger: Ledger) -> None:
    conf = ConfFiles(str(root), ledger)
    seen = Inotify(root / "etc")
    conf.rewrite("x.conf", ("a\n", "b\n", "c\n"))
    assert [name for mask, name in seen.events() if mask == Inotify.CLOSE_WRITE] == ["x.conf"] * 4
    assert (root / "etc/x.conf").read_text() == "a\nb\nc\n"


def test_an_editor_renames(root: Path, ledger: Ledger) -> None:
    conf = ConfFiles(str(root), ledger)
    seen = Inotify(root / "etc")
    conf.replace("x.conf", ("a\n",))
    assert [name for mask, name in seen.events() if mask == Inotify.MOVED_TO] == ["x.conf"]


def test_the_log_keeps_one_descriptor_and_rotates_by_rename(root: Path) -> None:
    log = Log(str(root))
    seen = Inotify(root / "log")
    log.write(("one\n", "two\n"))
    log.rotate("1")
    log.write(("three\n",))
    log.close()
    closes = [name for mask, name in seen.events() if mask == Inotify.CLOSE_WRITE]
    assert len(closes) == 2  # at the rotation and at the end, none for a line
    assert (root / "log/full.1").read_text() == "one\ntwo\n"
    assert (root / "log/full").read_text() == "three\n"


def test_a_call_file_comes_by_rename_and_is_dated_in_the_future(root: Path, ledger: Ledger) -> None:
    files = CallFiles(str(root), ledger)
    seen = Inotify(root / "outgoing")
    files.arrive("cf.call", "Channel: Local/1\n", 300)
    events = seen.events()
    assert events[0] == (Inotify.MOVED_TO, "cf.call")
    assert events[-1] == (Inotify.ATTRIB, "cf.call")
    status = (root / "outgoing/cf.call").stat()
    assert status.st_mtime > status.st_ctime + 250
    files.done("cf.call")
    assert not (root / "outgoing/cf.call").exists()


# config.db


def test_config_db_has_the_features_that_make_replication_hard(root: Path, ledger: Ledger) -> None:
    ConfigDb(str(root), ledger, wal=True).close()
    with closing(sqlite3.connect(root / "config.db")) as connection:
        sql = "\n".join(row[0] for row in connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL"))
        tables = connection.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'table'").fetchone()[0]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA user_version").fetchone() != (0,)
    assert 50 <= tables <= 70
    for feature in (
        "AUTOINCREMENT",
        "WITHOUT ROWID",
        "ON DELETE CASCADE",
        "ON UPDATE CASCADE",
        "USING fts5",
        "GENERATED",
    ):
        assert feature in sql
    assert "CREATE TRIGGER" in sql
    assert "UNIQUE" in sql


@pytest.mark.parametrize("wal", [True, False])
def test_every_edit_keeps_the_rules_and_is_in_the_ledger_row_by_row(
    root: Path, ledger: Ledger, tmp_path: Path, wal: bool
) -> None:
    config = ConfigDb(str(root), ledger, wal=wal)
    for dice in range(40):
        config.edit(random.Random(dice))
    config.close()
    with closing(sqlite3.connect(root / "config.db")) as connection:
        assert broken_rules(connection) == []
    assert not lines(tmp_path, "lost", "undone")
    edits = lines(tmp_path, "tx")[1:]
    assert len(edits) == 40
    assert all(len(edit["rows"]) >= 3 for edit in edits)
    assert {table for edit in edits for table, _, _ in edit["rows"]} >= {
        "extensions",
        "ring_group_members",
        "phonebook",
    }
    assert len(EDITS) == 11


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE ring_group_members SET weight = weight + 1 WHERE place = 1 AND group_id = 1",
        "UPDATE revision SET number = number + 1",
        "UPDATE extensions SET port = -1; DELETE FROM phonebook WHERE extension_id = 3",
        "DELETE FROM ring_group_members WHERE group_id = 2 AND place = 1",
        "UPDATE trunks SET rank = 99 WHERE rank = 2",
    ],
)
def test_half_an_edit_breaks_a_rule(root: Path, ledger: Ledger, damage: str) -> None:
    ConfigDb(str(root), ledger, wal=False).close()
    with closing(sqlite3.connect(root / "config.db", isolation_level=None)) as connection:
        connection.execute(damage.split("; ")[-1])
        assert broken_rules(connection)


def _await(true: object, timeout_s: float = 20.0) -> None:
    """Until the condition holds; the limit only ends a test that would never end."""
    assert callable(true)
    deadline = threading.Event()
    timer = threading.Timer(timeout_s, deadline.set)
    timer.start()
    try:
        while not true():
            assert not deadline.wait(0.02), "it never came true"
    finally:
        timer.cancel()


def test_the_database_files_live_where_the_system_library_put_them(root: Path, ledger: Ledger) -> None:
    astdb = AstDb(str(root), ledger)
    astdb.put("/a", "b")
    astdb.close()
    copy = shutil.copy(root / "astdb.sqlite3", root / "copy.db")
    with closing(sqlite3.connect(copy)) as connection:
        assert ("/a", "b") in connection.execute("SELECT key, value FROM astdb").fetchall()
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
