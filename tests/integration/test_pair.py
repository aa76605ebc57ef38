"""Two real engines over TLS on loopback: what happens on the Active is on the Standby, whatever dies in between."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_sync.sample.pair import LocalPair
from tests.support.small_pair import furnish, read_rows, small_toml, until, write_rows

EXTENSIONS = "SELECT number, name FROM extension ORDER BY number"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[LocalPair]:
    with LocalPair(str(tmp_path), small_toml) as made:
        furnish(made.a.place.root)
        made.start()
        yield made


def add_extension(pair: LocalPair, number: str, *, node: str = "a") -> None:
    place = (pair.a if node == "a" else pair.b).place
    write_rows(f"{place.root}/config.db", "INSERT INTO extension (number, name) VALUES (?, ?)", number, "x" * 10)


@pytest.mark.req("R20", "R4", "R30")
def test_everything_that_happens_on_the_active_is_on_the_standby(pair):
    a, b = Path(pair.a.place.root), Path(pair.b.place.root)
    add_extension(pair, "100")
    write_rows(str(a / "astdb.sqlite3"), "INSERT INTO astdb VALUES (?, ?)", "/cidname/100", "Ann")
    (a / "files" / "conf").mkdir()
    (a / "files" / "conf" / "sip.conf").write_text("[general]\n")
    os.symlink("sip.conf", a / "files" / "conf" / "link")
    (a / "recordings" / "call.wav").write_bytes(os.urandom(300_000))
    assert pair.a.wait_replicated() == ()
    assert read_rows(str(b / "config.db"), EXTENSIONS) == [("100", "x" * 10)]
    assert read_rows(str(b / "astdb.sqlite3"), "SELECT * FROM astdb") == [("/cidname/100", "Ann")]
    assert (b / "files/conf/sip.conf").read_text() == "[general]\n"
    assert os.readlink(b / "files/conf/link") == "sip.conf"
    assert (b / "recordings/call.wav").read_bytes() == (a / "recordings/call.wav").read_bytes()
    os.unlink(a / "files" / "conf" / "link")
    assert pair.a.wait_replicated() == ()
    assert not os.path.lexists(b / "files/conf/link")
    status = json.loads(pair.a.command("status", "--json").stdout)
    assert [item["name"] for item in status["datasets"]] == ["astdb", "config", "files", "recordings"]
    assert all(item["backlog"] == 0 for item in status["datasets"])


@pytest.mark.req("R15")
def test_the_standby_refuses_writes_and_names_the_active(pair):
    add_extension(pair, "100")
    assert pair.a.wait_replicated() == ()
    with sqlite3.connect(f"{pair.b.place.root}/config.db") as connection:
        with pytest.raises(sqlite3.IntegrityError, match=r"standby: write to the active at 192\.0\.2\.53"):
            connection.execute("UPDATE extension SET name = 'mine'")
        connection.execute("INSERT INTO settings VALUES ('externhost', 'b.example')")  # node-local
    connection.close()
    assert read_rows(f"{pair.b.place.root}/config.db", EXTENSIONS) == [("100", "x" * 10)]


@pytest.mark.req("R15")
def test_a_tampered_file_is_put_back_and_logged(pair):
    a, b = Path(pair.a.place.root, "files/f"), Path(pair.b.place.root, "files/f")
    a.write_text("right")
    assert pair.a.wait_replicated() == ()
    b.write_text("wrong")
    Path(pair.b.place.root, "files/extra").write_text("extra")
    until(lambda: b.read_text() == "right", "putting back")
    until(lambda: not Path(pair.b.place.root, "files/extra").exists(), "removal of the extra file")
    events = pair.b.command("logs", "events", "--json").stdout
    assert "files" in events


@pytest.mark.req("R22")
@pytest.mark.parametrize("victim", ["a", "b"])
def test_a_killed_engine_resumes_without_a_compare(pair, victim):
    add_extension(pair, "100")
    assert pair.a.wait_replicated() == ()
    node, role = (pair.a, "active") if victim == "a" else (pair.b, "standby")
    node.kill()
    add_extension(pair, "101")
    Path(pair.a.place.root, "files", "while-down").write_text("x")
    before = pair.a.status() if victim == "b" else None
    node.serve(role, 1)
    pair.until_streaming()
    assert pair.a.wait_replicated() == ()
    assert [row[0] for row in read_rows(f"{pair.b.place.root}/config.db", EXTENSIONS)] == ["100", "101"]
    assert Path(pair.b.place.root, "files", "while-down").read_text() == "x"
    if before is not None:
        incarnations = {item.name: item.position.incarnation for item in before.datasets}
        assert {item.name: item.position.incarnation for item in pair.a.status().datasets} == incarnations


@pytest.mark.req("R22")
def test_a_frozen_standby_holds_nothing_up_and_catches_up(pair):
    pair.b.kill(signal.SIGSTOP)
    for number in range(20):
        Path(pair.a.place.root, "files", f"f{number}").write_bytes(os.urandom(500_000))
    missing = pair.a.wait_replicated(timeout_s=1.0)
    assert any(text.startswith("files") for text in missing)
    pair.b.kill(signal.SIGCONT)
    assert pair.a.wait_replicated() == ()
    for number in range(20):
        name = f"files/f{number}"
        assert Path(pair.b.place.root, name).read_bytes() == Path(pair.a.place.root, name).read_bytes()


@pytest.mark.req("R26", "R22")
def test_a_promoted_standby_serves_and_the_old_active_follows_it(pair):
    add_extension(pair, "100")
    growing = Path(pair.a.place.root, "recordings", "growing.wav").open("wb")  # noqa: SIM115 - stays open over the crash
    growing.write(b"RIFF" + bytes(4) + b"WAVEfmt " + bytes(20) + b"data" + bytes(4) + os.urandom(32768))
    growing.flush()
    assert pair.a.wait_replicated() == ()
    partials = Path(pair.b.place.root, "recordings", ".ha-partial")
    until(lambda: any(path.stat().st_size > 32768 for path in partials.iterdir()), "streaming of the recording")
    pair.a.kill()
    growing.close()
    answer = pair.b.set_role("active", 2)
    assert any("growing.wav" in item.subject for item in answer.finished)
    assert Path(pair.b.place.root, "recordings", "growing.wav").stat().st_size == 32768 + 44
    add_extension(pair, "200", node="b")
    pair.a.serve("standby", 2)
    pair.until_streaming(active=pair.b)
    assert pair.b.wait_replicated() == ()
    assert [row[0] for row in read_rows(f"{pair.a.place.root}/config.db", EXTENSIONS)] == ["100", "200"]


@pytest.mark.req("R22", "R13")
def test_an_old_active_that_comes_back_is_fenced(pair):
    add_extension(pair, "100")
    assert pair.a.wait_replicated() == ()
    pair.b.set_role("active", 2)
    status = pair.b.status()
    assert (status.role, status.epoch) == ("active", 2)
    refused = pair.b.command("role", "standby", "--epoch", "1", check=False)
    assert refused.returncode == 6
    assert "epoch" in refused.stderr
    pair.b.set_role("standby", 2)
    until(lambda: "epoch" in pair.b.dataset("config").reason, "refusal of the old epoch")
    pair.a.set_role("active", 3)
    pair.until_streaming()
    assert pair.a.wait_replicated() == ()


@pytest.mark.req("R30", "R33")
def test_status_wait_and_detach_as_a_user_types_them(pair):
    assert "streaming" in pair.a.command("status").stdout
    assert pair.a.command("wait", "--timeout", "20").returncode == 0
    on_standby = pair.b.command("wait", check=False)
    assert on_standby.returncode == 3
    assert "not the Active" in on_standby.stderr
    pair.a.command("detach")
    names = read_rows(f"{pair.a.place.root}/config.db", "SELECT name FROM sqlite_master WHERE name LIKE '%ha%'")
    assert names == []
