"""The sample PBX as a service of an agent, the settings of the demo's nodes, and the client that measures an outage."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import tomllib
from contextlib import closing
from pathlib import Path

import pytest

from ha_agent.settings.parse import settings_of
from ha_sync.sample import client as clients
from ha_sync.sample.hatoml import Service, ha_toml
from ha_sync.sample.ledger import read_ledger
from ha_sync.sample.service import PbxPlace, copy_tree, service_command
from ha_sync.sample.service import stop as stop_service
from ha_sync.sample.stage import loopback


@pytest.fixture
def pbx(tmp_path: Path):
    place = PbxPlace(
        root=str(tmp_path / "data"),
        ledger=str(tmp_path / "ledger"),
        log=str(tmp_path / "pbx.log"),
        pid_file=str(tmp_path / "pbx.pid"),
        copy_to=str(tmp_path / "arrived"),
    )
    (tmp_path / "data").mkdir()
    yield place
    stop_service(place, signal.SIGKILL)


def run(place: PbxPlace, verb: str) -> subprocess.CompletedProcess[str]:
    line = service_command(verb, place, seed=1, calls=2, first_run=1000)
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)


def starts(place: PbxPlace) -> list[int]:
    return [line["run"] for line in read_ledger(place.ledger) if line["k"] == "start"]


def test_the_service_starts_once_and_stops_cleanly_and_each_start_has_its_own_number(pbx: PbxPlace) -> None:
    (Path(pbx.root) / "etc").mkdir()
    (Path(pbx.root) / "etc" / "arrived.conf").write_text("before the first start")
    assert run(pbx, "start").returncode == 0
    pid = pbx.pid
    assert pid is not None
    assert run(pbx, "start").returncode == 0, "it runs already"
    assert pbx.pid == pid
    assert run(pbx, "stop").returncode == 0
    assert pbx.pid is None
    assert [line["k"] for line in read_ledger(pbx.ledger)][-1] == "stop", "a clean stop, not a crash"
    assert run(pbx, "stop").returncode == 0, "it is stopped already"
    assert run(pbx, "start").returncode == 0
    assert starts(pbx) == [1000, 1001]
    assert os.listdir(pbx.copy_to) == ["etc"], "the copy is of the tree before the first start"


def test_a_pbx_that_cannot_start_fails_the_command_and_names_its_log(pbx: PbxPlace) -> None:
    (Path(pbx.root) / "voicemail").write_text("a file where it needs a folder")
    done = run(pbx, "start")
    assert done.returncode == 1
    assert pbx.log in done.stderr


def test_a_number_that_belongs_to_another_process_now_is_no_pbx(pbx: PbxPlace) -> None:
    Path(pbx.pid_file).write_text(str(os.getpid()))
    assert pbx.pid is None
    assert run(pbx, "stop").returncode == 0


def test_a_copy_holds_what_still_lies_in_the_log_of_an_open_database(tmp_path: Path) -> None:
    root = tmp_path / "data"
    (root / "monitor").mkdir(parents=True)
    (root / "monitor" / "config.db-wal").write_text("a file of the tree, whatever its name")
    with closing(sqlite3.connect(root / "config.db")) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("CREATE TABLE t (x)")
        connection.execute("INSERT INTO t VALUES (7)")
        connection.commit()
        copy_tree(str(root), str(tmp_path / "copy"))
    with closing(sqlite3.connect(tmp_path / "copy" / "config.db")) as copy:
        assert copy.execute("SELECT x FROM t").fetchall() == [(7,)]
    assert sorted(os.listdir(tmp_path / "copy")) == ["config.db", "monitor"]
    assert os.listdir(tmp_path / "copy" / "monitor") == ["config.db-wal"]


def test_the_agent_accepts_the_settings_of_both_nodes() -> None:
    services = (Service(name="pbx", start=("/bin/true", "--go"), stop=("/bin/true",)),)
    found = [
        settings_of(
            tomllib.loads(ha_toml(name=name, state_dir="/s", run_dir="/r", place=scene.ha, services=services)),
            source="",
        )
        for name, scene in zip("ab", loopback(3.0).scenes, strict=True)
    ]
    a, b = (settings.pair for settings in found)
    assert a is not None
    assert b is not None
    assert (a.station.value, b.station.value) == ("primary", "secondary")
    assert (a.cluster_addresses, a.heartbeat_port) == (b.cluster_addresses, b.heartbeat_port)
    assert (a.heartbeat_timeout_s, a.lease_s) == (3.0, 1.0)
    assert [path.local for path in a.paths] == [path.peer for path in b.paths]
    assert found[0].services[0].start == ("/bin/true", "--go")


class Scripted:
    """A question that is answered by the script: one entry for each look."""

    name = "scripted"

    def __init__(self, script: list[int]) -> None:
        self.script = script
        self.over = threading.Event()

    def ask(self) -> None:
        """Nobody is there."""

    def answers(self) -> int:
        if self.script:
            return self.script.pop(0)
        self.over.set()
        return 0

    def close(self) -> None:
        """Nothing to let go of."""


def test_a_client_tells_the_longest_silence_that_was_ended_after_a_moment() -> None:
    began = time.monotonic()
    question = Scripted([1, 1, 1, *[0] * 20, 1, 1, *[0] * 5, 1])
    client = clients.Client([question])
    client.start()
    assert question.over.wait(60)
    client.close()
    outage = client.outages(began)["scripted"]
    assert outage.answers == 6
    assert outage.seconds >= 21 * clients.ASK_EVERY_S
    assert client.outages(time.monotonic()) == {}, "no answer since: it is not over"
    assert client.answered_since("scripted", outage.first_answer)
    assert not client.answered_since("scripted", time.monotonic())


def test_an_echo_answers_from_the_address_that_it_was_given() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.77", 0))
        port = free.getsockname()[1]
    echo = subprocess.Popen([sys.executable, "-m", "ha_sync.sample.echo", "127.0.0.77", str(port)])
    question = clients.UdpEcho("127.0.0.77", port)
    try:
        deadline = time.monotonic() + 60
        question.ask()
        while not question.answers():
            assert time.monotonic() < deadline
            assert echo.poll() is None
            question.ask()
    finally:
        question.close()
        echo.kill()
        echo.wait()
