"""``python -m ha_sync.sample.service``: the sample PBX as a service that an agent starts and stops.

``start`` returns when its databases exist and leaves it running by itself; ``stop`` returns when it has ended cleanly.
Both do nothing where nothing is to be done. ``start --copy-to DIR`` first copies the tree as the promotion left it, so
that one can count later what had arrived before the PBX went on; a copy that is there stays. Times in seconds.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Final

from ha_sync.sample.check import DATABASES
from ha_sync.sample.ledger import read_ledger
from ha_sync.sample.settings import SampleSettings, start_command

READY_S: Final = 15.0
STOP_S: Final = 12.0
LOOK_EVERY_S: Final = 0.02
READY_LINE: Final = b"sample: running"
COMPANIONS: Final = ("-wal", "-shm", "-journal")


@dataclass(frozen=True, slots=True, kw_only=True)
class PbxPlace:
    """Where the sample of one node has its things."""

    root: str
    ledger: str
    log: str
    pid_file: str
    copy_to: str = ""  # empty: no copy

    @property
    def pid(self) -> int | None:
        """Of the running PBX. None: it does not run."""
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            with open(self.pid_file, encoding="ascii") as file:
                pid = int(file.read())
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                # A number may be another's by now; a zombie has no command line.
                return pid if os.fsencode(self.root) in file.read().split(b"\0") else None
        return None


def service_command(verb: str, place: PbxPlace, *, seed: int, calls: int, first_run: int) -> tuple[str, ...]:
    """What an agent runs."""
    command = [sys.executable, "-m", "ha_sync.sample.service", verb, "--root", place.root, "--ledger", place.ledger]
    command += ["--log", place.log, "--pid-file", place.pid_file]
    if verb == "start":
        command += ["--seed", str(seed), "--calls", str(calls), "--first-run", str(first_run)]
        command += ["--copy-to", place.copy_to] if place.copy_to else []
    return tuple(command)


def start(place: PbxPlace, *, seed: int, calls: int, first_run: int) -> None:
    """Raises RuntimeError when it does not come up."""
    if place.pid is not None:
        return
    if place.copy_to and not os.path.exists(place.copy_to):
        copy_tree(place.root, f"{place.copy_to}.new")
        os.rename(f"{place.copy_to}.new", place.copy_to)
    settings = SampleSettings(
        root=place.root, ledger=place.ledger, seed=seed, run=first_run + _runs(place.ledger), calls=calls
    )
    with open(place.log, "ab") as log:
        begin = log.seek(0, os.SEEK_END)
        process = subprocess.Popen(
            start_command(settings), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    with open(f"{place.pid_file}.new", "w", encoding="ascii") as file:
        file.write(str(process.pid))
    os.rename(f"{place.pid_file}.new", place.pid_file)
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and process.poll() is None:
        with open(place.log, "rb") as said:
            said.seek(begin)
            if READY_LINE in said.read().splitlines():  # a traceback shows the text too, within a line
                return
        time.sleep(LOOK_EVERY_S)
    raise RuntimeError(f"the sample PBX did not come up in {READY_S:g} s; see {place.log}")


def stop(place: PbxPlace, number: int = signal.SIGTERM) -> None:
    """Returns when it is gone. Raises RuntimeError when it does not end."""
    pid = place.pid
    if pid is None:
        return
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if place.pid == pid:  # not another's: it had not ended before it was opened
            signal.pidfd_send_signal(process, number)
        if not select.select([process], [], [], STOP_S)[0]:
            raise RuntimeError(f"the sample PBX (pid {pid}) did not stop in {STOP_S:g} s")
    finally:
        os.close(process)


def copy_tree(root: str, target: str) -> None:
    """A quiet tree, its databases through SQLite, as an engine may have them open. ``target`` must not exist."""

    def leave_out(directory: str, names: list[str]) -> list[str]:
        if os.path.abspath(directory) != os.path.abspath(root):
            return []
        return [name for name in names if name in {base + end for base in DATABASES for end in ("", *COMPANIONS)}]

    shutil.copytree(root, target, ignore=leave_out)
    for database in DATABASES:
        source = os.path.join(root, database)
        if os.path.exists(source):
            with (
                closing(sqlite3.connect(source, timeout=5)) as reader,
                closing(sqlite3.connect(os.path.join(target, database))) as writer,
            ):
                reader.backup(writer)


def _runs(ledger: str) -> int:
    """How often it was started with this ledger: unique ids must not repeat."""
    if not os.path.exists(ledger):
        return 0
    return sum(1 for line in read_ledger(ledger) if line["k"] == "start")


def main(arguments: Sequence[str]) -> int:
    """One verb."""
    parser = argparse.ArgumentParser(prog="python -m ha_sync.sample.service", description="The sample as a service.")
    parser.add_argument("verb", choices=("start", "stop"))
    for name in ("root", "ledger", "log", "pid-file"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--copy-to", default="", help="first copy the tree to this new directory")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--calls", type=int, default=40)
    parser.add_argument("--first-run", type=int, default=0, help="number of the first start with this ledger")
    given = parser.parse_args(arguments)
    place = PbxPlace(
        root=given.root, ledger=given.ledger, log=given.log, pid_file=given.pid_file, copy_to=given.copy_to
    )
    try:
        if given.verb == "start":
            start(place, seed=given.seed, calls=given.calls, first_run=given.first_run)
        else:
            stop(place)
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
