"""A small pair for tests: one database by rows, one by pages, one tree, one tree of recordings."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ha_sync.sample.pair import Place

TOML = """
[node]
name = "{name}"
state_dir = "{state_dir}"
run_dir = "{run_dir}"
listen = "{listen}"
peer = "{peer}"
active_at = "192.0.2.53"

[[dataset]]
name = "config"
kind = "sqlite"
path = "{root}/config.db"
capture = "rows"
live_triggers = true
node_local_rows = [{{ table = "settings", where = "name = 'externhost'" }}]

[[dataset]]
name = "astdb"
kind = "sqlite"
path = "{root}/astdb.sqlite3"
capture = "pages"

[[dataset]]
name = "files"
kind = "tree"
path = "{root}/files"
priority = "cdr"

[[dataset]]
name = "recordings"
kind = "tree"
path = "{root}/recordings"
priority = "recordings"
growing = true
"""


def small_toml(place: Place) -> str:
    return TOML.format(
        name=place.name,
        state_dir=place.state_dir,
        run_dir=place.run_dir,
        listen=place.listen,
        peer=place.peer,
        root=place.root,
    )


def furnish(root: str) -> None:
    """What the PBX has before the pair is formed."""
    for name in ("files", "recordings"):
        Path(root, name).mkdir(exist_ok=True)
    with sqlite3.connect(f"{root}/config.db") as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE IF NOT EXISTS extension (id INTEGER PRIMARY KEY, number TEXT UNIQUE, name)")
        connection.execute("CREATE TABLE IF NOT EXISTS settings (name TEXT PRIMARY KEY, value)")
    connection.close()
    with sqlite3.connect(f"{root}/astdb.sqlite3") as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS astdb (key PRIMARY KEY, value)")
    connection.close()


def in_another_process(program: str, *arguments: str) -> None:
    """Runs Python text in a process of its own, as the PBX would: it knows nothing of us."""
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=60)


def write_rows(path: str, statement: str, *values: object) -> None:
    """One transaction by another process."""
    program = (
        "import sqlite3, sys, ast\n"
        "connection = sqlite3.connect(sys.argv[1], timeout=10)\n"
        "connection.execute(sys.argv[2], ast.literal_eval(sys.argv[3]))\n"
        "connection.commit()\n"
    )
    in_another_process(program, path, statement, repr(values))


def read_rows(path: str, query: str) -> list[tuple[object, ...]]:
    """What a program on that node would read."""
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return []
    finally:
        connection.close()


def until(condition: Callable[[], bool], what: str, *, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen in {timeout_s:g} s"
        time.sleep(0.01)
