"""The sample PBX as a process, and the checker: passes what is right, finds everything that is not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import time
import tomllib
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from ha_sync.config import TreeSettings, load
from ha_sync.sample import SampleSettings, Verdict, check, start_command, sync_toml
from ha_sync.sample.audio import PIECE_BYTES, WAV_HEADER_BYTES, header_lengths
from ha_sync.sample.ledger import Line, digest, read_ledger

ALWAYS = float("inf")
EVERYTHING = {"config", "cdr", "cel", "astdb", "config-files", "cdr-csv", "voicemail", "recordings"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A run that is over."""

    root: Path
    ledger: str

    def copy(self, into: Path) -> Path:
        """As plain ``cp -a`` makes it."""
        shutil.copytree(self.root, into, symlinks=True)
        return into


def settings_in(directory: Path, **changes: object) -> SampleSettings:
    given: dict[str, object] = {"root": str(directory / "a"), "ledger": str(directory / "ledger"), "seed": 11}
    given |= {"rate_scale": 8.0, "seconds": 6.0, "calls": 20, "boxes": 4}
    return SampleSettings(**{**given, **changes})  # type: ignore[arg-type]


def start(settings: SampleSettings) -> subprocess.Popen[str]:
    process = subprocess.Popen(start_command(settings), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "sample: running\n"
    return process


def await_in_ledger(ledger: str, true: Callable[[list[Line]], bool]) -> None:
    limit = time.monotonic() + 100  # only ends a test that would never end
    while not true(list(read_ledger(ledger))):
        assert time.monotonic() < limit, "the sample does not get on"
        time.sleep(0.1)


def await_lines(ledger: str, count: int) -> None:
    await_in_ledger(ledger, lambda lines: len(lines) >= count)


def has_seen_everything(lines: list[Line]) -> bool:
    """Enough of each for every damage below."""
    files = {line["p"].rpartition("/")[2] for line in lines if line["k"] == "file"}
    return (
        {"unavail.wav", "secret.conf"} <= files
        and any(name.endswith(".conf") and name != "secret.conf" for name in files)
        and any(line["k"] == "move" for line in lines)
        and any(line["k"] == "closed" and line["n"] > PIECE_BYTES * 2 for line in lines)
        and any(line["k"] == "folder" and "INBOX" in line["p"] and line["messages"] for line in lines[-40:])
        and any("dialplan_extra" in table for line in lines if line["k"] == "tx" for table, _, _ in line["rows"])
        and len(lines) > 1500
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One busy run that stopped by itself: everything that a PBX does has happened at least once."""
    directory = tmp_path_factory.mktemp("sample")
    settings = settings_in(directory, seconds=None)
    process = start(settings)
    await_in_ledger(settings.ledger, has_seen_everything)
    process.terminate()
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "sample: stopped" in printed
    return Finished(root=directory / "a", ledger=settings.ledger)


@pytest.fixture
def copied(finished: Finished, tmp_path: Path) -> Path:
    return finished.copy(tmp_path / "copy")


# What is right passes


def test_a_plain_copy_after_a_clean_stop_passes(finished: Finished, copied: Path) -> None:
    verdict = check(finished.ledger, str(copied), ALWAYS)
    assert verdict.ok, verdict
    assert verdict.unacknowledged_lost == 0
    assert verdict.rejected == []
    assert set(verdict.by_kind) == EVERYTHING
    assert all(count.present > 0 and count.missing == 0 for count in verdict.by_kind.values())


def test_the_check_leaves_no_trace_on_the_copy(finished: Finished, copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copied.rglob("*")}
    check(finished.ledger, str(copied), ALWAYS)
    assert {path: path.stat().st_mtime_ns for path in copied.rglob("*")} == before


def test_nothing_was_acknowledged_so_nothing_is_missing_but_everything_is_lost(
    finished: Finished, tmp_path: Path
) -> None:
    verdict = check(finished.ledger, str(tmp_path / "empty"), 0.0)
    assert verdict.ok
    assert verdict.unacknowledged_lost > 1000


def test_an_empty_copy_misses_every_kind(finished: Finished, tmp_path: Path) -> None:
    verdict = check(finished.ledger, str(tmp_path / "empty"), ALWAYS)
    assert not verdict.ok
    assert all(verdict.by_kind[kind].missing > 0 for kind in EVERYTHING)


def test_other_tables_and_triggers_of_an_engine_do_not_disturb(finished: Finished, copied: Path) -> None:
    change(
        copied / "config.db",
        "CREATE TABLE _ha_change (seq INTEGER PRIMARY KEY AUTOINCREMENT, key)",
        "INSERT INTO _ha_change (key) VALUES (1)",
        "CREATE TRIGGER _ha_guard BEFORE INSERT ON extensions BEGIN SELECT RAISE(ABORT, 'standby'); END",
        "UPDATE network SET address = '198.51.100.7'",
        "UPDATE sip_settings SET value = 'pbx-b.example' WHERE name = 'externhost'",
    )
    assert check(finished.ledger, str(copied), ALWAYS).ok


# What is wrong is found


def change(database: Path, *statements: str) -> None:
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        for statement in statements:
            assert connection.execute(statement).rowcount != 0, "the damage did nothing"


def sql(database: str, *statements: str) -> Callable[[Path], None]:
    return lambda root: change(root / database, *statements)


def one(root: Path, pattern: str, least: int = 1) -> Path:
    found = sorted(path for path in root.glob(pattern) if path.stat().st_size >= least)
    assert found, pattern
    return found[0]


def patch(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        assert file.read(len(data)) != data
        file.seek(offset)
        file.write(data)


def zero_header(root: Path) -> None:
    patch(one(root, "monitor/**/*.wav", 1000), 4, bytes(4))


def without_a_message(root: Path) -> None:
    text = one(root, "voicemail/default/*/INBOX/*.txt")
    for path in text.parent.glob(f"{text.stem}.*"):
        path.unlink()


def mixed_message(root: Path) -> None:
    text = one(root, "voicemail/default/*/INBOX/*.txt")
    patch(text.with_suffix(".gsm"), 10, b"other sound")


def returned_message(root: Path) -> None:
    text = one(root, "voicemail/default/*/INBOX/*.txt")
    for path in list(text.parent.glob(f"{text.stem}.*")):
        shutil.copy(path, text.parent / f"msg0090{path.suffix}")


def cut_recording(root: Path) -> None:
    path = one(root, "monitor/**/*.wav", PIECE_BYTES * 2)
    os.truncate(path, path.stat().st_size - PIECE_BYTES)


def torn_page(root: Path) -> None:
    # The middle of the root page of the rows: integrity_check and reading both notice.
    path = root / "master.db"
    patch(path, path.stat().st_size - 4096, random.Random(1).randbytes(4096))


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a call record is gone": ("cdr: ", sql("master.db", "DELETE FROM cdr WHERE AcctId = 7")),
    "a call record differs": ("cdr: ", sql("master.db", "UPDATE cdr SET billsec = 'x' WHERE AcctId = 7")),
    "a channel event is gone": ("cel: ", sql("cel_master.db", "DELETE FROM cel WHERE AcctId = 9")),
    "a page is torn": ("master.db", torn_page),
    "a value is old": (
        "astdb: ",
        sql("astdb.sqlite3", "UPDATE astdb SET value = 'old' WHERE key LIKE '/LastCaller/%'"),
    ),
    "a value is gone": ("astdb: ", sql("astdb.sqlite3", "DELETE FROM astdb WHERE key LIKE '/LastCaller/%'")),
    "a setting is gone": ("config: ", sql("config.db", "DELETE FROM ivr WHERE name = 'ivr-1'")),
    "a keyless row is gone": ("config: ", sql("config.db", "DELETE FROM dialplan_extra")),
    "a sequence is behind": ("config: ", sql("config.db", "UPDATE sqlite_sequence SET seq = 1 WHERE name = 'audit'")),
    "a row came from nowhere": ("never committed", sql("config.db", "INSERT INTO ldap_settings VALUES ('x', 1, 1)")),
    "a rule is broken": ("weights", sql("config.db", "UPDATE ring_group_members SET weight = 0 WHERE place = 1")),
    "the index is behind": ("phonebook_fts", sql("config.db", "DELETE FROM phonebook_fts_data WHERE id > 10")),
    "a database is gone": ("cdr: ", lambda root: (root / "master.db").unlink()),
    "a conf file is older": ("config-files: ", lambda root: one(root, "etc/*.conf").write_text("; old\n") and None),
    "a conf file is gone": ("config-files: ", lambda root: one(root, "etc/*.conf").unlink()),
    "a greeting differs": ("voicemail: ", lambda root: patch(one(root, "voicemail/**/unavail.wav"), 100, b"damage")),
    "a PIN is empty": ("voicemail: ", lambda root: os.truncate(one(root, "voicemail/**/secret.conf"), 0)),
    "a CSV line is cut": ("cdr-csv: ", lambda root: os.truncate(one(root, "cdr-csv/Custom.csv"), 50)),
    "a CSV file is gone": ("cdr-csv: ", lambda root: one(root, "cdr-csv/Master.csv.*").unlink()),
    "a recording is cut": ("recordings: ", cut_recording),
    "a recording's sound differs": (
        "recordings: ",
        lambda root: patch(one(root, "monitor/**/*.wav", 1000), WAV_HEADER_BYTES + 9, b"damage"),
    ),
    "a recording's header is not finished": ("true header", zero_header),
    "a recording is gone": ("recordings: ", lambda root: one(root, "monitor/**/*.wav", 1000).unlink()),
    "a message is gone": ("voicemail: ", without_a_message),
    "a message is mixed of two": ("mixed", mixed_message),
    "a deleted message came back": ("deletion", returned_message),
}


@pytest.mark.req("R20")
@pytest.mark.parametrize("name", DAMAGES)
def test_every_damage_to_the_copy_is_found_and_named(finished: Finished, copied: Path, name: str) -> None:
    named, damage = DAMAGES[name]
    damage(copied)
    verdict = check(finished.ledger, str(copied), ALWAYS)
    assert not verdict.ok
    assert any(named in line for line in (*verdict.acknowledged_missing, *verdict.faults)), verdict


# Histories written by hand


def ledger_of(path: Path, *written: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in written))
    return str(path)


def transaction(mark: int, time_s: float, rows: list[list[object]], **more: object) -> list[dict[str, object]]:
    database = {"k": "tx", "t": time_s - 0.5, "id": mark, "db": "astdb.sqlite3", "rows": rows, **more}
    return [database, {"k": "done", "t": time_s, "id": mark}]


def astdb_with(root: Path, **values: str) -> None:
    root.mkdir(exist_ok=True)
    with closing(sqlite3.connect(root / "astdb.sqlite3")) as connection:
        connection.execute("CREATE TABLE astdb (key VARCHAR(256), value VARCHAR(256), PRIMARY KEY (key))")
        connection.executemany("INSERT INTO astdb VALUES (?, ?)", values.items())
        connection.commit()


def value(key: str, text: str) -> list[object]:
    from ha_sync.sample.ledger import row_digest

    return ["astdb", json.dumps([key]), row_digest((key, text))]


@pytest.mark.parametrize(
    ("here", "until_s", "missing", "lost", "present"),
    [
        ("one", 10.0, 0, 2, 1),
        ("two", 10.0, 0, 1, 2),
        ("three", 10.0, 0, 0, 3),
        ("one", 20.0, 1, 1, 1),
        ("three", 30.0, 0, 0, 3),
        ("two", 30.0, 1, 0, 2),
        ("never", 10.0, 1, 2, 0),
    ],
)
def test_a_later_version_supersedes_and_an_older_one_is_missing(  # noqa: PLR0917 - one row of the table each
    tmp_path: Path, here: str, until_s: float, missing: int, lost: int, present: int
) -> None:
    versions = [transaction(n, n * 10.0, [value("k", text)]) for n, text in enumerate(("one", "two", "three"), 1)]
    ledger = ledger_of(tmp_path / "ledger", *[line for version in versions for line in version])
    astdb_with(tmp_path / "copy", k=here)
    verdict = check(ledger, str(tmp_path / "copy"), until_s)
    assert len(verdict.acknowledged_missing) == missing
    assert (verdict.unacknowledged_lost, verdict.present) == (lost, present)


def test_a_split_transaction_is_a_fault_even_if_nothing_was_acknowledged(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path / "ledger", *transaction(1, 10.0, [value("a", "1"), value("b", "1")]))
    astdb_with(tmp_path / "copy", a="1")
    verdict = check(ledger, str(tmp_path / "copy"), 0.0)
    assert not verdict.ok
    assert any("split" in fault for fault in verdict.faults)


@pytest.mark.parametrize("here", ["old", "new"])
def test_a_commit_that_was_announced_and_never_completed_may_be_there_or_not(tmp_path: Path, here: str) -> None:
    announced = {"k": "tx", "t": 11.0, "id": 2, "db": "astdb.sqlite3", "rows": [value("k", "new")]}
    ledger = ledger_of(tmp_path / "ledger", *transaction(1, 10.0, [value("k", "old")]), announced)
    astdb_with(tmp_path / "copy", k=here)
    verdict = check(ledger, str(tmp_path / "copy"), ALWAYS)
    assert verdict.ok, verdict
    assert verdict.unacknowledged_lost == 0


def test_a_rolled_back_put_is_rejected_by_the_pbx_and_not_missing(tmp_path: Path) -> None:
    announced = {"k": "tx", "t": 11.0, "id": 2, "db": "astdb.sqlite3", "rows": [value("k", "new")]}
    undone = {"k": "undone", "t": 12.0, "id": 2, "why": "database is locked"}
    lost = {"k": "lost", "t": 12.0, "what": "astdb/k", "why": "database is locked"}
    ledger = ledger_of(tmp_path / "ledger", *transaction(1, 10.0, [value("k", "old")]), announced, undone, lost)
    astdb_with(tmp_path / "copy", k="old")
    verdict = check(ledger, str(tmp_path / "copy"), ALWAYS)
    assert verdict.ok
    assert verdict.rejected == ["astdb/k: database is locked"]


@pytest.mark.parametrize(("until_s", "ok"), [(15.0, True), (25.0, False)])
def test_an_acknowledged_delete_must_not_come_back(tmp_path: Path, until_s: float, ok: bool) -> None:
    deleted = transaction(2, 20.0, [["astdb", '["k"]', None]])
    ledger = ledger_of(tmp_path / "ledger", *transaction(1, 10.0, [value("k", "v")]), *deleted)
    astdb_with(tmp_path / "copy", k="v")
    assert check(ledger, str(tmp_path / "copy"), until_s).ok is ok


def folder(time_s: float, *messages: str) -> dict[str, object]:
    return {"k": "folder", "t": time_s, "p": "voicemail/default/1001/INBOX", "messages": list(messages), "id": 0}


def mailbox_with(root: Path, *texts: str) -> list[str]:
    from ha_sync.sample.voicemail import folder_messages

    inbox = root / "voicemail/default/1001/INBOX"
    inbox.mkdir(parents=True)
    for number, text in enumerate(texts):
        (inbox / f"msg{number:04d}.txt").write_text(text)
    return folder_messages(str(inbox))


def test_a_message_that_was_deleted_after_the_cut_may_be_there_or_not(tmp_path: Path) -> None:
    [one_digest] = mailbox_with(tmp_path / "with", "one")
    mailbox_with(tmp_path / "without")
    ledger = ledger_of(tmp_path / "ledger", folder(10.0, one_digest), folder(20.0))
    for copy in ("with", "without"):
        assert check(ledger, str(tmp_path / copy), 15.0).ok
    assert not check(ledger, str(tmp_path / "with"), 25.0).ok


def test_the_same_message_twice_is_missing_when_it_is_there_once(tmp_path: Path) -> None:
    [digest] = mailbox_with(tmp_path / "copy", "forwarded")
    ledger = ledger_of(tmp_path / "ledger", folder(10.0, digest, digest))
    assert not check(ledger, str(tmp_path / "copy"), 15.0).ok


def piece(time_s: float, offset: int, data: bytes) -> dict[str, object]:
    path = "cdr-csv/Master.csv"
    return {"k": "append", "t": time_s, "p": path, "o": offset, "n": len(data), "d": digest(data)}


@pytest.mark.parametrize("completed", [True, False])
@pytest.mark.parametrize(("old_name", "until_s", "ok"), [("", 15.0, True), (".1", 15.0, True), ("", 25.0, False)])
def test_a_rotated_file_is_looked_for_under_the_names_it_had_since_the_cut(
    tmp_path: Path, *, completed: bool, old_name: str, until_s: float, ok: bool
) -> None:
    announced = {"k": "try", "t": 19.0, "id": 5, "paths": ["cdr-csv/Master.csv", "cdr-csv/Master.csv.1"]}
    moved = {"k": "move", "t": 20.0, "p": "cdr-csv/Master.csv", "to": "cdr-csv/Master.csv.1", "id": 5}
    before = [piece(5.0, 0, b"one\n"), piece(10.0, 4, b"two\n"), announced]
    ledger = ledger_of(tmp_path / "ledger", *before, *([moved] if completed else []), piece(21.0, 0, b"new\n"))
    (tmp_path / "copy/cdr-csv").mkdir(parents=True)
    (tmp_path / f"copy/cdr-csv/Master.csv{old_name}").write_bytes(b"one\ntwo\n")
    verdict = check(ledger, str(tmp_path / "copy"), until_s)
    assert verdict.ok is ok, verdict
    assert verdict.present == (2 if ok else 0)


def test_a_folder_whose_session_was_cut_off_is_in_doubt_and_no_other(tmp_path: Path) -> None:
    mailbox_with(tmp_path / "copy")
    announced = {"k": "try", "t": 12.0, "id": 9, "paths": ["voicemail/default/1001/INBOX"]}
    other = {**folder(11.0, "of another box"), "p": "voicemail/default/1002/INBOX"}
    ledger = ledger_of(tmp_path / "ledger", folder(10.0, "a", "b"), other, announced)
    verdict = check(ledger, str(tmp_path / "copy"), ALWAYS)
    assert [line for line in verdict.acknowledged_missing if "1001" in line] == []
    assert len(verdict.acknowledged_missing) == 1


def test_an_unknown_line_of_the_ledger_is_not_passed_over(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path / "ledger", {"k": "surprise", "t": 1.0})
    with pytest.raises(AttributeError):
        check(ledger, str(tmp_path), ALWAYS)


# Crashes


def crash(settings: SampleSettings, entries: int) -> float:
    """Run until the ledger has so many lines, then SIGKILL. Returns a moment after the last line."""
    process = start(settings)
    await_lines(settings.ledger, entries)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    return time.monotonic()


def test_a_crash_leaves_what_a_crash_leaves_and_everything_that_the_ledger_says(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, seconds=None, calls=40, rate_scale=12.0)
    until_s = crash(settings, 1500)
    verdict = check(settings.ledger, settings.root, until_s)
    assert verdict.ok, verdict
    assert verdict.unacknowledged_lost == 0
    recordings = list(Path(settings.root, "monitor").rglob("*.wav"))
    open_ones = [path for path in recordings if path.read_bytes()[40:44] == bytes(4)]
    assert open_ones
    # One may have been killed in the middle of its last write.
    odd = [path for path in open_ones if (path.stat().st_size - WAV_HEADER_BYTES) % PIECE_BYTES]
    assert len(odd) <= 1


def test_headers_that_a_promotion_repaired_pass(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, seconds=None, rate_scale=4.0, parts=("recordings",))
    until_s = crash(settings, 60)
    for path in Path(settings.root, "monitor").rglob("*.wav"):
        riff, data = header_lengths(path.stat().st_size)
        with path.open("r+b") as file:
            file.seek(4)
            file.write(riff)
            file.seek(40)
            file.write(data)
    assert check(settings.ledger, settings.root, until_s).ok


@pytest.mark.slow
def test_crashes_and_restarts_over_the_same_files_stay_explained(tmp_path: Path) -> None:
    rounds = int(os.environ.get("HA_SYNC_ROUNDS", "3"))
    settings = settings_in(tmp_path, seconds=None, calls=40, rate_scale=12.0)
    entries = 0
    for run in range(rounds):
        entries += 600
        until_s = crash(replace(settings, run=run), entries)
        verdict = check(settings.ledger, settings.root, until_s)
        assert verdict.ok, (run, verdict)
        for lock in Path(settings.root, "voicemail").rglob(".lock*"):
            lock.unlink()  # what an administrator, or a promotion, does before the PBX starts


def test_sigterm_finishes_every_recording_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, seconds=None, calls=40, rate_scale=12.0)
    process = start(settings)
    await_lines(settings.ledger, 1500)
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert process.stdout is not None
    process.stdout.close()
    root = Path(settings.root)
    for path in (root / "monitor").rglob("*.wav"):
        size = path.stat().st_size
        assert size == WAV_HEADER_BYTES or path.read_bytes()[40:44] == header_lengths(size)[1]
    assert not list(root.glob("voicemail/**/tmp/*"))
    assert not list(root.glob("*-journal"))
    assert check(settings.ledger, settings.root, ALWAYS).ok


def test_options_that_make_no_sense_end_with_code_2_and_a_reason() -> None:
    command = [*start_command(settings_in(Path("/nonexistent")))]
    command[command.index("--calls") + 1] = "0"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "calls" in done.stderr


def test_a_root_that_cannot_be_made_ends_with_code_1() -> None:
    settings = settings_in(Path("/dev/null"))
    done = subprocess.run(start_command(settings), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1


# The configuration of the pair


def test_the_sync_toml_names_every_dataset_with_its_own_path(tmp_path: Path) -> None:
    text = sync_toml(root=str(tmp_path), state_dir="/s", run_dir="/r", listen="127.0.0.1:1", peer="127.0.0.2:1")
    parsed = tomllib.loads(text)
    assert parsed["node"] == {"state_dir": "/s", "run_dir": "/r", "listen": "127.0.0.1:1", "peer": "127.0.0.2:1"}
    by_name = {dataset["name"]: dataset for dataset in parsed["dataset"]}
    assert set(by_name) == EVERYTHING | {"spool"}
    assert len({dataset["path"] for dataset in parsed["dataset"]}) == len(by_name)
    assert by_name["astdb"]["node_local_rows"] == [{"table": "astdb", "where": "key = '/pbx/UUID'"}]
    assert by_name["cdr"]["writer_busy_timeout_ms"] == 1000
    assert by_name["recordings"]["growing"] is True


def test_the_engine_takes_the_sync_toml_as_it_is(tmp_path: Path) -> None:
    for name in ("state", "run", "data"):
        (tmp_path / name).mkdir()
    text = sync_toml(
        root=str(tmp_path / "data"),
        state_dir=str(tmp_path / "state"),
        run_dir=str(tmp_path / "run"),
        listen="127.0.0.1:19527",
        peer="127.0.0.2:19527",
        name="a",
        active_at="127.0.0.1",
    )
    (tmp_path / "sync.toml").write_text(text)
    settings = load(str(tmp_path / "sync.toml"))
    assert {dataset.name for dataset in settings.datasets} == EVERYTHING | {"spool"}
    assert settings.notices == ()
    [voicemail] = [dataset for dataset in settings.datasets if dataset.name == "voicemail"]
    assert isinstance(voicemail, TreeSettings)
    assert voicemail.mailboxes


def test_a_verdict_is_only_ok_without_missing_and_without_faults() -> None:
    good = Verdict(acknowledged_missing=[], unacknowledged_lost=5, present=1, by_kind={})
    assert good.ok
    assert not replace(good, acknowledged_missing=["x"]).ok
    assert not replace(good, faults=["x"]).ok
