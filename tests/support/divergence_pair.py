"""A pair whose datasets diverge: configuration and call records by rows, call events by pages, three trees."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from ha_sync.sample.pair import LocalNode, LocalPair, Place
from tests.support.small_pair import read_rows, write_rows

TOML = """
[node]
name = "{name}"
state_dir = "{state_dir}"
run_dir = "{run_dir}"
listen = "{listen}"
peer = "{peer}"
active_at = "192.0.2.53"

[divergence]
merge = "{merge}"

[[dataset]]
name = "config"
kind = "sqlite"
path = "{root}/config.db"
capture = "rows"
live_triggers = true

[[dataset]]
name = "cdr"
kind = "sqlite"
path = "{root}/cdr.db"
capture = "rows"
live_triggers = true
{cdr_timeout}

[[dataset]]
name = "cel"
kind = "sqlite"
path = "{root}/cel.db"
capture = "pages"
priority = "cdr"
writer_busy_timeout_ms = 5000

[[dataset]]
name = "files"
kind = "tree"
path = "{root}/files"
priority = "config"

[[dataset]]
name = "voicemail"
kind = "tree"
path = "{root}/voicemail"
priority = "voicemail"

[[dataset]]
name = "recordings"
kind = "tree"
path = "{root}/recordings"
priority = "recordings"
growing = true
"""

CDR = "CREATE TABLE cdr (id INTEGER PRIMARY KEY AUTOINCREMENT, uniqueid TEXT, src TEXT, billsec INTEGER, extra)"
RECORDS = "SELECT uniqueid, src, billsec, extra FROM cdr ORDER BY 1, 2, 3, 4"
INBOX = "voicemail/default/100/INBOX"


class DivergedPair(LocalPair):
    """Two engines; ``a`` is Active of epoch 1 and ``b`` its Standby."""

    def __init__(self, directory: str, *, merge: str = "auto", cdr_timeout: int | None = 5000) -> None:
        timeout = "" if cdr_timeout is None else f"writer_busy_timeout_ms = {cdr_timeout}"

        def toml(place: Place) -> str:
            facts = {key: getattr(place, key) for key in ("name", "state_dir", "run_dir", "listen", "peer", "root")}
            return TOML.format(merge=merge, cdr_timeout=timeout, **facts)

        super().__init__(directory, toml)
        furnish(self.a.place.root)

    @contextlib.contextmanager
    def beside(self, node: LocalNode, database: str) -> Iterator[None]:
        """A program has the database open, as the PBX would."""
        program = (
            "import sqlite3, sys\n"
            "connection = sqlite3.connect(sys.argv[1])\n"
            "connection.execute('SELECT count(*) FROM sqlite_schema').fetchall()\n"
            "print('open', flush=True)\n"
            "sys.stdin.read()\n"
        )
        command = [sys.executable, "-c", program, f"{node.place.root}/{database}"]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            try:
                yield
            finally:
                process.stdin.close()
                process.wait()


def furnish(root: str) -> None:
    """What both nodes have in the beginning."""
    for name in ("files", INBOX, "recordings"):
        os.makedirs(os.path.join(root, name))
    for name, wal in (("config.db", True), ("cdr.db", False), ("cel.db", False)):
        with sqlite3.connect(f"{root}/{name}") as connection:
            if wal:
                connection.execute("PRAGMA journal_mode=WAL")
            statement = CDR if name != "config.db" else "CREATE TABLE extension (number TEXT PRIMARY KEY, name, fax)"
            connection.execute(statement)
        connection.close()
    write_rows(f"{root}/config.db", "INSERT INTO extension VALUES ('100', 'Ann', NULL), ('101', 'Bob', NULL)")
    for name in ("cdr.db", "cel.db"):
        record(root, "old", "100", 1, database=name)
    Path(root, "files", "sip.conf").write_text("[general]\n")
    message(root, 0, "first", b"sound of the first")
    Path(root, "recordings", "old.wav").write_bytes(b"an old call")


def record(root: str, uniqueid: str, src: str, billsec: int, extra: object = None, *, database: str = "cdr.db") -> None:
    """One call record, as the PBX writes it."""
    statement = "INSERT INTO cdr (uniqueid, src, billsec, extra) VALUES (?, ?, ?, ?)"
    write_rows(f"{root}/{database}", statement, uniqueid, src, billsec, extra)


def records(node: LocalNode, database: str = "cdr.db") -> list[tuple[object, ...]]:
    """All of them, without their keys."""
    return read_rows(f"{node.place.root}/{database}", RECORDS)


def message(root: str, number: int, name: str, sound: bytes, *, folder: str = INBOX) -> None:
    """A voicemail message, its .txt last."""
    place = Path(root, folder)
    place.mkdir(parents=True, exist_ok=True)
    (place / f"msg{number:04d}.wav").write_bytes(sound)
    text = f"[message]\ncallerid={name}\norigtime=17{len(name)}\nmsg_id={name}-1\n"
    (place / f"msg{number:04d}.txt").write_text(text)


def messages(node: LocalNode, folder: str = INBOX) -> dict[str, tuple[bytes, str]]:
    """Sound and caller of each message by its name."""
    place = Path(node.place.root, folder)
    return {
        path.stem: (path.with_suffix(".wav").read_bytes(), path.read_text().split("callerid=")[1].split()[0])
        for path in sorted(place.glob("msg*.txt"))
    }


def divergences(node: LocalNode) -> dict[str, dict[str, object]]:
    """What ``ha-sync divergence list`` says, by dataset."""
    listed = json.loads(node.command("divergence", "list", "--json").stdout)
    return {item["dataset"]: item for item in listed["archives"]}
