"""No secret of a node is seen: in logs, status, metrics, process arguments, nor in what doctor collects (R33)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import sqlite3
import subprocess
import tarfile
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support.agent_process import Client, Process, environment
from tests.support.agent_settings import new_site, write_toml
from tests.support.alarm_receivers import free_port
from tests.support.api_certificates import Authority, write_files
from tests.support.client import HA_SYNC, ROOT, ha_sync

HOST = "127.0.0.1"
PLANTED = {name: f"{name}-Zx7Quokka" for name in ("mail", "hook", "manager", "report", "argument", "url")}
HA_REST = """
[[alarm]]
name = "ops"
kind = "mail"
server = "{host}:{closed}"
security = "starttls"
username = "pbx"
password_file = "{mail}"
from = "pbx@example.org"
to = ["ops@example.org"]
[[alarm]]
name = "noc"
kind = "webhook"
url = "http://{host}:{closed}/"
secret_file = "{hook}"
[report]
url = "http://{host}:{closed}/"
secret_file = "{report}"
[[probe]]
name = "manager"
kind = "ami"
address = "{host}:{closed}"
username = "pbx"
secret_file = "{manager}"
interval_s = 1
[[service]]
name = "pbx"
start = ["/bin/true", "--password", "{argument}"]
stop = ["/bin/true", "--password={argument}", "https://user:{url}@example.org/"]
"""


class Seen:
    """All command lines of all processes, looked at again and again."""

    def __init__(self) -> None:
        self.lines: set[bytes] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.01):
            for name in os.listdir("/proc"):
                if name.isdigit():
                    with contextlib.suppress(OSError):
                        self.lines.add(Path("/proc", name, "cmdline").read_bytes())


class Site:
    """A node with a secret of every kind."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "primary"
        self.folder.mkdir()
        files = {name: self.folder / f"{name}.secret" for name in ("mail", "hook", "manager", "report")}
        for name, path in files.items():
            path.write_text(PLANTED[name] + "\n")
            path.chmod(0o600)
        facts = {name: str(path) for name, path in files.items()} | {"host": HOST, "closed": free_port()}
        facts |= {name: PLANTED[name] for name in ("argument", "url")}
        self.ha_toml = write_toml(new_site(), "primary", root, rest=HA_REST.format(**facts))
        self.metrics, self.listen = free_port(), free_port()
        authority = Authority()
        self.api_key = authority.issue("pbx-a", address=HOST)
        files_of_api = write_files(self.folder, authority, self.api_key)
        self.config = self.folder / "sync.toml"
        self.config.write_text(
            f'[node]\nname = "pbx-a"\nstate_dir = "{self.folder}/state"\nrun_dir = "{self.folder}/run"\n'
            f'listen = "{HOST}:{self.listen}"\n[metrics]\nlisten = "{HOST}:{self.metrics}"\n'
            f'[api]\nlisten = "{HOST}:{free_port()}"\n'
            + "".join(f"{key} = {json.dumps(path)}\n" for key, path in files_of_api.items())
            + f'[[dataset]]\nname = "config"\nkind = "sqlite"\npath = "{self.folder}/pbx.db"\n'
        )
        with contextlib.closing(sqlite3.connect(self.folder / "pbx.db")) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("CREATE TABLE x (y)")
        made = ha_sync("pair", "init", "--config", self.config, "--address", f"{HOST}:{self.listen}")
        assert made.code == 0, made.err

    def secrets(self) -> Iterator[bytes]:
        yield from (word.encode() for word in PLANTED.values())
        identity = self.folder / "state" / "identity"
        heartbeat = (identity / "heartbeat.key").read_bytes()
        yield from (heartbeat, heartbeat.hex().encode(), base64.b64encode(heartbeat))
        for pem in ((identity / "ca.key").read_bytes(), (identity / "node.key").read_bytes(), self.api_key.key):
            yield from (line for line in pem.splitlines() if b"-----" not in line and len(line) > 20)

    def start_engine(self) -> subprocess.Popen[bytes]:
        """Its log beside the agent's."""
        command = [*HA_SYNC, "serve", "--config", str(self.config), "--role", "active", "--log-level", "debug"]
        with (self.folder / "engine.log").open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment())

    def archive(self, *arguments: str) -> tuple[dict[str, str], dict[str, str]]:
        """What doctor made, and what it says is not there."""
        path = self.folder / "doctor.tar.gz"
        path.unlink(missing_ok=True)
        made = ha_sync("doctor", "--config", self.config, "--output", path, "--json", *arguments)
        assert made.code == 0, made.err
        assert path.stat().st_mode & 0o777 == 0o600
        assert not list(self.folder.glob(".ha-sync-doctor-*"))
        with tarfile.open(path) as archive:
            found = {entry.name.partition("/")[2]: archive.extractfile(entry) for entry in archive.getmembers()}
            texts = {name: file.read().decode() for name, file in found.items() if file is not None}
        return texts, made.json["missing"]


@pytest.fixture
def site(run_dir: Path) -> Site:
    return Site(run_dir)


def assert_clean(texts: dict[str, bytes | str], secrets: list[bytes]) -> None:
    for where, text in texts.items():
        content = text.encode() if isinstance(text, str) else text
        assert not [secret for secret in secrets if secret in content], where


@pytest.mark.req("R32", "R33")
async def test_no_secret_is_seen_while_a_node_works(site: Site) -> None:
    engine = site.start_engine()
    agent = Process(site.ha_toml)
    try:
        async with Client(agent.socket_path) as client:
            await client.until(lambda status: status.node == "primary")
        with Seen() as seen:
            token = await until_token(site)
            tested = await asyncio.to_thread(
                ha_sync, "alarms", "test", "--config", site.config, "--socket", site.folder / "run" / "sync.sock"
            )
            assert tested.code == 1, tested.out  # nobody takes mail there: it was tried
            said = await asyncio.to_thread(join_from_stdin, site, token)
            status = await asyncio.to_thread(ha_sync, "status", "--json", "--config", site.config)
            shown = await asyncio.to_thread(ha_sync, "settings", "show", "--config", site.config)
            text = await asyncio.to_thread(scraped, site.metrics)
            found, missing = await asyncio.to_thread(site.archive)
        assert not set(missing) & {"status/engine.json", "status/agent.json", "status/alarms.json"}
        assert "ha_sync_agent_up 1.0" in text
        assert b"deliver" in b"".join(seen.lines)  # the child that has the password was among what was looked at
    finally:
        agent.kill()
        engine.terminate()
        await asyncio.to_thread(engine.wait, 60)
    secrets = [*site.secrets(), token.encode()]
    logs = {str(path): path.read_bytes() for path in (site.folder / "state" / "logs").glob("*.db*")}
    logs |= {str(path): path.read_bytes() for path in site.folder.glob("*.log")}
    assert len(logs) >= 4
    assert_clean(logs, secrets)
    assert_clean({"metrics": text, "alarms test": tested.out + tested.err, "join": said, "status": status.out}, secrets)
    assert_clean({"arguments": b"\n".join(line for line in seen.lines if b"/bin/true" not in line)}, secrets)
    assert_clean(found, secrets)
    files = [secret for secret in secrets if secret not in (PLANTED["argument"].encode(), PLANTED["url"].encode())]
    assert_clean({"settings show": shown.out}, files)  # a command line is what its owner wrote there


async def until_token(site: Site) -> str:
    async with asyncio.timeout(60):
        while True:
            made = await asyncio.to_thread(ha_sync, "pair", "token", "--json", "--config", site.config)
            if made.code == 0:
                return str(made.json["token"])
            await asyncio.sleep(0.1)


def join_from_stdin(site: Site, token: str) -> str:
    """Of a node that is this one already: refused, after the token was read."""
    done = subprocess.run(
        [*HA_SYNC, "pair", "join", "-", "--config", str(site.config)],
        input=token,
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
        env=environment(),
    )
    assert done.returncode != 0
    assert "token" not in done.stderr.lower(), done.stderr  # it was a right one
    return done.stdout + done.stderr


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=60) as answer:
        return str(answer.read().decode())


# ---- doctor


@pytest.mark.req("R33")
def test_doctor_works_with_both_daemons_down_and_says_so(site: Site) -> None:
    found, missing = site.archive()
    assert {"status/engine.json", "status/agent.json", "status/alarms.json"} == {
        name for name in missing if name.startswith("status/")
    }
    assert "ha-sync serve" in missing["status/engine.json"]
    assert missing["status/engine.json"] in found["README.txt"]
    (dataset,) = json.loads(found["data/datasets.json"])
    assert (dataset["name"], dataset["header"]["journal_mode"]) == ("config", "wal")
    assert json.loads(found["versions.json"])["packages"]["ha-sync"]
    settings = json.loads(found["settings/ha.toml.json"])
    assert settings["service"][0]["start"] == ["/bin/true", "--password", "[removed]"]
    assert settings["alarm"][0]["password_file"].endswith("mail.secret")
    names = {Path(entry["path"]).name for entry in json.loads(found["data/state.json"])}
    assert {"heartbeat.key", "node.key", "tokens.json"} >= {"heartbeat.key"} <= names
    assert "max_user_watches" in found["system/kernel.txt"]
    assert " / " in found["system/mounts.txt"]
    assert_clean(dict(found), list(site.secrets()))


@pytest.mark.req("R33")
def test_doctor_takes_planted_secrets_out_of_logs_and_keeps_the_rest(site: Site) -> None:
    logs = site.folder / "state" / "logs"
    logs.mkdir(exist_ok=True)
    heartbeat = (site.folder / "state" / "identity" / "heartbeat.key").read_bytes()
    output = f"cannot log in with {PLANTED['mail']} and key {heartbeat.hex()}; password: plain-Vervet, 17 calls"
    with contextlib.closing(sqlite3.connect(logs / "events.db")) as database:
        database.execute("CREATE TABLE event (id INTEGER PRIMARY KEY, what TEXT, fields BLOB)")
        database.execute("INSERT INTO event VALUES (1, ?, ?)", [output, b"\x00\xff"])
        database.executemany("INSERT INTO event VALUES (?, 'older', NULL)", [(number,) for number in range(2, 2500)])
        database.execute("INSERT INTO event VALUES (9999, ?, NULL)", [output])
        database.commit()
    found, _ = site.archive()
    lines = [json.loads(line) for line in found["logs/events.jsonl"].splitlines()]
    assert len(lines) == 2000  # the newest
    assert lines[-1]["what"] == "cannot log in with [removed] and key [removed]; password: [removed], 17 calls"
    assert_clean(dict(found), [*site.secrets(), b"plain-Vervet"])


@pytest.mark.req("R33")
def test_doctor_tells_who_has_a_dataset_open_but_not_how_it_was_started(site: Site) -> None:
    program = "import sys; file = open(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        ["python3", "-c", program, str(site.folder / "pbx.db"), "--password", PLANTED["argument"]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        found, _ = site.archive()
        holder.communicate()
    (entry,) = [one for one in json.loads(found["data/open_files.json"]) if one["pid"] == holder.pid]
    assert entry["path"] == str(site.folder / "pbx.db")
    assert_clean(dict(found), list(site.secrets()))


def test_doctor_works_with_settings_that_cannot_be_read_and_never_over_a_file(site: Site) -> None:
    site.config.write_text(site.config.read_text() + "[node\n")
    site.ha_toml.write_text(f'password = "{PLANTED["mail"]}"\nnot toml')
    found, _ = site.archive()
    assert "is not TOML" in found["settings/faults.txt"]
    assert_clean(dict(found), [PLANTED["mail"].encode()])
    again = ha_sync("doctor", "--config", site.config, "--output", site.folder / "doctor.tar.gz")
    assert again.code == 1
    assert "it is there already" in again.err


@pytest.mark.req("R33")
def test_a_look_that_hangs_takes_nothing_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    from ha_sync.cli import doctor
    from ha_sync.cli.redaction import Redactor

    monkeypatch.setattr(doctor, "LOOK_WITHIN_S", 0.05)
    never = threading.Event()

    def hang() -> str:
        never.wait()
        return ""

    def fail() -> str:
        raise OSError("token=Vervet")

    found, missing = doctor.collect({"a": hang, "b": fail, "c": lambda: "there"}, Redactor())
    never.set()
    assert found == {"c": "there\n"}
    assert "no answer" in missing["a"]
    assert missing["b"] == "OSError: token=[removed]"


def test_what_is_too_much_is_cut_at_its_old_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from ha_sync.cli import doctor, doctor_looks
    from ha_sync.cli.redaction import Redactor

    monkeypatch.setattr(doctor_looks, "BYTES_MAX", 10)
    monkeypatch.setattr(doctor, "TOTAL_BYTES_MAX", 70)
    found, missing = doctor.collect({"a": lambda: "x" * 100 + "end", "b": lambda: "y" * 103}, Redactor())
    assert found["a"].endswith("xxxxxxxend\n")
    assert missing == {"b": "the archive is full"}
