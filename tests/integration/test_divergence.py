"""Two real engines part and meet again: what only one of them had is saved, merged by what it is, or shown."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_sync.sample.pair import LocalNode
from tests.support.divergence_pair import (
    INBOX,
    DivergedPair,
    divergences,
    message,
    messages,
    record,
    records,
)
from tests.support.small_pair import read_rows, until, write_rows


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[DivergedPair]:
    with DivergedPair(str(tmp_path)) as made:
        made.start()
        assert made.a.wait_replicated() == ()
        yield made


def write_alone(node: LocalNode) -> None:
    """What only the old Active has. Its keys, numbers and names are the next ones: the other node gives them too."""
    root = node.place.root
    record(root, "a-1", "200", 5, b"\x00blob")
    record(root, "a-1", "200", 5, b"\x00blob")  # a record is no set: unique ids repeat
    record(root, "old", "100", 1)
    record(root, "a-1", "200", 5, 1.0, database="cel.db")
    write_rows(f"{root}/config.db", "UPDATE extension SET name = 'Anna' WHERE number = '100'")
    write_rows(f"{root}/config.db", "INSERT INTO extension VALUES ('102', 'Carl', 7)")
    write_rows(f"{root}/config.db", "DELETE FROM extension WHERE number = '101'")
    Path(root, "files", "sip.conf").write_text("[general]\nfrom=a\n")
    Path(root, "files", "new.conf").write_text("a\n")
    message(root, 1, "alone", b"sound on a")
    message(root, 0, "another", b"in another folder", folder="voicemail/default/200/INBOX")
    Path(root, "recordings", "same-name.wav").write_bytes(b"call on a")
    Path(root, "recordings", "only-a.wav").write_bytes(b"another call on a")


def write_as_the_new_active(node: LocalNode) -> None:
    root = node.place.root
    record(root, "b-1", "300", 6)
    record(root, "b-1", "300", 6, database="cel.db")
    message(root, 1, "here", b"sound on b")
    Path(root, "recordings", "same-name.wav").write_bytes(b"call on b")


def fail_over(pair: DivergedPair) -> None:
    """The stream stops, a goes on alone and dies, b takes over, a comes back."""
    pair.b.kill()
    write_alone(pair.a)
    pair.a.kill()
    pair.b.serve("active", 2)
    write_as_the_new_active(pair.b)
    pair.a.serve("standby", 2)
    pair.until_streaming(active=pair.b)


def all_merged(node: LocalNode) -> bool:
    found = divergences(node)
    return bool(found) and all(item["state"] == "merged" for item in found.values() if item["mergeable"])


OLD, ALONE, HERE = ("old", "100", 1, None), ("a-1", "200", 5, b"\x00blob"), ("b-1", "300", 6, None)
UNION = sorted([OLD, OLD, ALONE, ALONE, HERE], key=str)
UNION_OF_PAGES = sorted([OLD, ("a-1", "200", 5, 1.0), HERE], key=str)
MAIL = {"msg0000": (b"sound of the first", "first"), "msg0001": (b"sound on b", "here")}
MERGED_MAIL = {**MAIL, "msg0002": (b"sound on a", "alone")}
OTHER_FOLDER = "voicemail/default/200/INBOX"


def recordings(node: LocalNode) -> dict[str, bytes]:
    folder = Path(node.place.root, "recordings")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


def require_union(node: LocalNode) -> None:
    """Everything of both, nothing twice, no gaps."""
    assert sorted(records(node), key=str) == UNION
    assert sorted(records(node, "cel.db"), key=str) == UNION_OF_PAGES
    assert messages(node) == MERGED_MAIL
    assert messages(node, OTHER_FOLDER) == {"msg0000": (b"in another folder", "another")}
    assert sorted(recordings(node).values()) == [b"an old call", b"another call on a", b"call on a", b"call on b"]
    assert recordings(node)["same-name.wav"] == b"call on b"
    assert all(name.endswith(".wav") for name in recordings(node))


@pytest.mark.req("R13", "R16")
def test_what_only_the_old_active_had_is_saved_and_merged_and_config_is_shown(pair):
    fail_over(pair)
    until(lambda: all_merged(pair.a), "merging", timeout_s=60)
    require_union(pair.b)
    assert pair.b.wait_replicated() == ()
    require_union(pair.a)
    keys = read_rows(f"{pair.b.place.root}/cdr.db", "SELECT id FROM cdr")
    assert len({key for (key,) in keys}) == len(UNION)
    # Configuration is the new Active's, untouched; the rest is told, with old and new.
    extensions = [("100", "Ann", None), ("101", "Bob", None)]
    assert read_rows(f"{pair.b.place.root}/config.db", "SELECT * FROM extension ORDER BY 1") == extensions
    assert Path(pair.b.place.root, "files", "sip.conf").read_text() == "[general]\n"
    shown = json.loads(pair.a.command("divergence", "show", "1", "--json").stdout)
    told = {(line["dataset"], line["what"], line["key"], line["column"]): line for line in shown["differences"]}
    changed = told["config", "changed", "number='100'", "name"]
    assert (changed["table"], changed["old"], changed["new"]) == ("extension", "'Ann'", "'Anna'")
    assert told["config", "new", "number='102'", "fax"]["new"] == "7"
    assert told["config", "deleted", "number='101'", "name"]["old"] == "'Bob'"
    assert Path(told["files", "changed", "sip.conf", ""]["kept_at"]).read_text() == "[general]\nfrom=a\n"
    assert ("files", "new", "new.conf", "") in told
    assert {line["dataset"] for line in shown["differences"]} == {"config", "files"}
    # The status reminds of it until somebody has decided.
    until(lambda: {text.split()[3] for text in pair.a.status().notices} == {"config", "files"}, "the notices")
    pair.a.command("divergence", "discard", "1", "--dataset", "config", "--yes")
    pair.a.command("divergence", "discard", "1", "--dataset", "files", "--yes")
    until(lambda: not pair.a.status().notices, "the end of the notice")


@pytest.mark.req("R13")
def test_merging_again_adds_nothing(pair):
    fail_over(pair)
    until(lambda: all_merged(pair.a), "merging", timeout_s=60)
    again = json.loads(pair.a.command("divergence", "merge", "1", "--json").stdout)
    before = {name: item["added"] for name, item in divergences(pair.a).items()}
    assert {item["dataset"]: item["added"] for item in again["archives"]} == {
        name: added for name, added in before.items() if name not in {"config", "files"}
    }
    require_union(pair.b)
    runs = json.loads(pair.a.command("logs", "backup", "--json").stdout.splitlines()[0])
    assert runs


@pytest.mark.req("R13", "R16")
def test_a_planned_switch_leaves_nothing_behind(pair):
    record(pair.a.place.root, "a-1", "200", 5)
    message(pair.a.place.root, 1, "alone", b"sound on a")
    assert pair.a.wait_replicated() == ()
    pair.a.set_role("standby", 1)
    pair.b.set_role("active", 2)
    pair.until_streaming(active=pair.b)
    assert pair.b.wait_replicated() == ()
    assert divergences(pair.a) == {}
    assert not any("diverg" in line for line in pair.a.command("logs", "events").stdout.splitlines())


@pytest.mark.req("R13")
def test_of_two_actives_the_one_that_yields_loses_nothing(pair):
    """Both served, in epochs of their own; then the lower one becomes the other's Standby, and later the reverse."""
    pair.b.kill()
    pair.b.serve("active", 2)  # both are Active now; each writes
    write_alone(pair.a)
    write_as_the_new_active(pair.b)
    pair.a.set_role("standby", 2)
    until(lambda: all_merged(pair.a), "merging", timeout_s=60)
    require_union(pair.b)
    assert pair.b.wait_replicated() == ()
    # The other direction.
    pair.a.kill()
    record(pair.b.place.root, "b-alone", "400", 9)
    pair.b.kill()
    pair.a.serve("active", 3)
    pair.b.serve("standby", 3)
    until(lambda: all_merged(pair.b), "merging the other way", timeout_s=60)
    assert ("b-alone", "400", 9, None) in records(pair.a)
    assert len(records(pair.a)) == len(UNION) + 1


@pytest.mark.req("R13", "R25")
def test_a_database_that_a_program_without_a_stated_timeout_has_open_waits(tmp_path):
    with DivergedPair(str(tmp_path), cdr_timeout=None) as pair:
        pair.start()
        assert pair.a.wait_replicated() == ()
        pair.b.kill()
        record(pair.a.place.root, "a-1", "200", 5)
        pair.a.kill()
        pair.b.serve("active", 2)
        with pair.beside(pair.b, "cdr.db"):
            pair.a.serve("standby", 2)
            until(lambda: "busy timeout" in str(divergences(pair.a).get("cdr", {}).get("waiting")), "waiting")
            refused = pair.a.command("divergence", "merge", "1", "--dataset", "cdr", check=False)
            assert refused.returncode == 3
            assert "busy timeout is not stated" in refused.stderr
            assert records(pair.b) == [OLD]
            forced = pair.a.command("divergence", "merge", "1", "--dataset", "cdr", "--force")
            assert "merged" in forced.stdout
        assert sorted(records(pair.b)) == sorted([OLD, ("a-1", "200", 5, None)], key=str)


@pytest.mark.req("R13", "R25")
def test_what_waited_for_the_program_is_merged_before_it_starts_at_the_next_promotion(tmp_path):
    with DivergedPair(str(tmp_path), cdr_timeout=None) as pair:
        pair.start()
        assert pair.a.wait_replicated() == ()
        pair.b.kill()
        record(pair.a.place.root, "a-1", "200", 5)
        pair.a.kill()
        pair.b.serve("active", 2)
        with pair.beside(pair.b, "cdr.db"):
            pair.a.serve("standby", 2)
            until(lambda: "busy timeout" in str(divergences(pair.a).get("cdr", {}).get("waiting")), "waiting")
            assert pair.b.wait_replicated() == ()
            pair.b.set_role("standby", 2)
            pair.a.set_role("active", 3)  # returns before the PBX may start
            assert sorted(records(pair.a), key=str) == sorted([OLD, ("a-1", "200", 5, None)], key=str)


@pytest.mark.req("R13")
def test_what_the_guard_takes_for_a_mass_delete_is_merged_all_the_same(pair):
    """Most files are the old Active's alone: its copy is kept until a person agrees, and the new Active gets them."""
    pair.b.kill()
    for number in range(25):
        Path(pair.a.place.root, "recordings", f"call{number}.wav").write_bytes(f"{number}".encode())
    pair.a.kill()
    pair.b.serve("active", 2)
    pair.a.serve("standby", 2)
    until(lambda: divergences(pair.a).get("recordings", {}).get("state") == "merged", "merging", timeout_s=60)
    assert len(recordings(pair.b)) == 26
    if pair.b.dataset("recordings").state == "halted":
        pair.b.command("resume", "recordings", "--accept-deletes")
    pair.until_streaming(active=pair.b)
    assert pair.b.wait_replicated() == ()
    assert recordings(pair.a) == recordings(pair.b)


WRITER = (
    "import sqlite3, sys\n"
    "connection = sqlite3.connect(sys.argv[1], timeout=float(sys.argv[2]), isolation_level=None)\n"
    "print('open', flush=True)\n"
    "written, lost = 0, []\n"
    "import select\n"
    "while not select.select([sys.stdin], [], [], 0.002)[0]:\n"
    "    try:\n"
    "        connection.execute(\"INSERT INTO cdr (uniqueid, src, billsec) VALUES ('w', 'w', ?)\", (written,))\n"
    "        written += 1\n"
    "    except sqlite3.Error as error:\n"
    "        lost.append(str(error))\n"
    "print(written, len(lost), lost[:3], flush=True)\n"
)


@pytest.mark.req("R25", "R13")
def test_a_program_that_writes_all_the_time_loses_nothing_to_a_merge(tmp_path):
    """Rollback journal, a transaction a row, its own busy timeout of a second: as call records are written."""
    with DivergedPair(str(tmp_path), cdr_timeout=1000) as pair:
        pair.start()
        assert pair.a.wait_replicated() == ()
        pair.b.kill()
        with sqlite3.connect(f"{pair.a.place.root}/cdr.db") as connection:
            rows = [(f"a-{number}", "200", number) for number in range(3000)]
            connection.executemany("INSERT INTO cdr (uniqueid, src, billsec) VALUES (?, ?, ?)", rows)
        connection.close()
        pair.a.kill()
        pair.b.serve("active", 2)
        command = [sys.executable, "-c", WRITER, f"{pair.b.place.root}/cdr.db", "1.0"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "open\n"
            pair.a.serve("standby", 2)
            until(lambda: divergences(pair.a).get("cdr", {}).get("state") == "merged", "merging", timeout_s=120)
            told, _ = writer.communicate("end\n", timeout=30)
        written, lost = told.split()[:2]
        assert lost == "0", told
        found = records(pair.b)
        assert sum(row[0] == "w" for row in found) == int(written)
        assert len(found) == 1 + 3000 + int(written)


@pytest.mark.req("R13")
def test_by_hand_nothing_is_merged_by_itself(tmp_path):
    with DivergedPair(str(tmp_path), merge="manual") as pair:
        pair.start()
        assert pair.a.wait_replicated() == ()
        fail_over(pair)
        assert pair.b.wait_replicated() == ()
        assert records(pair.b) == [HERE, OLD]
        assert divergences(pair.a)["cdr"]["waiting"] == "`ha-sync divergence merge 1`"
        shown = json.loads(pair.a.command("divergence", "show", "1", "--dataset", "cdr", "--json").stdout)
        assert [line["what"] for line in shown["differences"]] == ["record"] * 3
        until(lambda: not pair.a.command("divergence", "merge", "1", check=False).returncode, "merging")
        require_union(pair.b)


@pytest.mark.req("R33")
@pytest.mark.parametrize(
    ("arguments", "code", "named"),
    [
        (("show", "77"), 2, "'77'"),
        (("show", "1", "--dataset", "nothing"), 2, "'nothing'"),
        (("merge", "1", "--dataset", "config"), 6, "configuration is left to a person"),
        (("discard", "1"), 2, "--yes"),
        (("show", "../1"), 2, "'../1'"),
    ],
)
def test_bad_input_is_named_with_its_remedy(diverged, arguments, code, named):
    answer = diverged.a.command("divergence", *arguments, check=False)
    assert answer.returncode == code, answer.stderr
    assert named in answer.stderr


@pytest.fixture(scope="module")
def diverged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DivergedPair]:
    with DivergedPair(str(tmp_path_factory.mktemp("diverged")), merge="manual") as made:
        made.start()
        assert made.a.wait_replicated() == ()
        fail_over(made)
        until(lambda: "config" in divergences(made.a), "saving")
        yield made


def test_the_archive_is_readable_without_us(diverged):
    folder = Path(str(divergences(diverged.a)["voicemail"]["folder"]))
    assert "never got" in (folder / "summary.txt").read_text()
    with sqlite3.connect(f"{folder}/files.db") as index:
        paths = {os.fsdecode(path) for (path,) in index.execute("SELECT path FROM object WHERE kept")}
    index.close()
    assert f"{INBOX.removeprefix('voicemail/')}/msg0001.wav" in paths


@pytest.mark.req("R33")
def test_the_commands_tell_a_person_what_is_to_be_done(diverged):
    listed = diverged.a.command("divergence", "list").stdout
    assert "ha-sync divergence merge 1" in listed
    assert "yours: ha-sync divergence show 1 --dataset config" in listed
    shown = diverged.a.command("divergence", "show", "1", "--dataset", "config").stdout
    assert "number='100'" in shown
    assert "'Anna'" in shown
    assert "nothing" in diverged.b.command("divergence", "list").stdout
