"""Kills an engine, or whoever asked it, at random moments of exports and restores: the data is before or after.

``python -m tests.support.package_campaign --rounds 200 --seed 1`` (or ``scripts/package-campaign``). A round changes
the data of a node and restores a package over it; somewhere on the way the engine, the command or both get SIGKILL: at
a random moment, or as soon as the restore has come to a phase that is over too soon to be hit by chance. Every other
round does the same to an export over an older package. Afterwards the engine starts again, and what a program finds
must be one of the two, whole; of a package one of the two, whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from ha_sync.backup.package.reader import Package
from ha_sync.backup.package.swap import INTENT_NAME
from ha_sync.sample.pair import LocalPair
from tests.support.package_site import Looks, Site, grow, nothing, shake
from tests.support.small_pair import small_toml, until

PHASES = ("staging", "swapping", "committed", "sweeping")
LONGEST_S = 3.0


class Campaign:
    """One node without a peer, its role given by hand."""

    def __init__(self, directory: str, *, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.node = LocalPair(directory, small_toml).a
        self.site = Site(self.node.place.root)
        self.package = os.path.join(directory, "package")
        self.epoch = 0
        self.outcomes: dict[str, int] = {}

    def run(self, rounds: int) -> None:
        print(f"package campaign: seed {self.seed}, {rounds} rounds", flush=True)
        try:
            self.site.furnish(self.rng.randrange(2**32))
            self.serve()
            self.export()
            exported = self.looks()
            for number in range(1, rounds + 1):
                if number % 2:
                    exported = self.round_of_export(exported)
                else:
                    self.round_of_restore(exported)
            print(f"{rounds} rounds: {self.outcomes}", flush=True)
        finally:
            self.node.close()

    # ---- rounds

    def round_of_restore(self, exported: Looks) -> None:
        self.change()
        before = self.looks()
        own = self.own()
        with self.asking("restore", self.package) as asked:
            self.kill_somewhere(asked)
        self.settle("restore")
        found = self.looks()
        which = "before" if found == before else "after" if found == exported else "between"
        assert which != "between", self.told(found, before, exported)
        assert self.own() == own, f"seed {self.seed}: the node's own rows changed"
        self.count(f"restore: {which}")

    def round_of_export(self, exported: Looks) -> Looks:
        self.change()
        now = self.looks()
        older = Path(self.package).read_bytes()
        with self.asking("export", self.package) as asked:
            self.kill_somewhere(asked)
        self.settle("export")
        with Package(self.package) as package:
            package.verify(nothing)
        replaced = Path(self.package).read_bytes() != older
        self.count(f"export: {'after' if replaced else 'before'}")
        self.export()  # over whatever was left
        assert not [name for name in os.listdir(os.path.dirname(self.package)) if name.endswith(".part")]
        return now

    def kill_somewhere(self, asked: subprocess.Popen[bytes]) -> None:
        victims = self.rng.choice(["engine", "command", "both"])
        if self.rng.random() < 0.6:
            self.await_phase(self.rng.choice(PHASES), asked)
        else:
            with contextlib.suppress(subprocess.TimeoutExpired):
                asked.wait(self.rng.uniform(0.0, LONGEST_S))
        if victims != "command":
            self.node.kill()
        if victims != "engine":
            asked.kill()
        asked.wait(60)

    def await_phase(self, wanted: str, asked: subprocess.Popen[bytes]) -> None:
        intent = os.path.join(self.node.place.state_dir, INTENT_NAME)
        while asked.poll() is None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                if json.loads(Path(intent).read_bytes())["phase"] == wanted:
                    return

    def settle(self, kind: str) -> None:
        """The engine runs again, and what was asked of it is over."""
        if self.node.process is None or self.node.process.poll() is not None:
            self.serve()
        until(lambda: self.last_run(kind) not in {None, "running"}, "the end of the run", timeout_s=60)
        intent = os.path.join(self.node.place.state_dir, INTENT_NAME)
        until(lambda: not os.path.exists(intent), "the end of the restore", timeout_s=60)
        left = list(Path(self.node.place.root).rglob(".ha-restore*"))
        assert not left, f"seed {self.seed}: {left}"
        assert self.node.status().role == "active"

    # ---- the node

    def serve(self) -> None:
        self.epoch += 1000
        if self.node.process is not None:
            self.node.kill()
        self.node.serve("active", self.epoch)

    def change(self) -> None:
        """As programs do beside a running engine."""
        for name in ("files", "recordings"):
            shake(self.rng, self.site.path(name))
            grow(self.rng, self.site.path(name), self.rng.randrange(8))
        for name in ("config.db", "astdb.sqlite3"):
            connection = sqlite3.connect(self.site.path(name), timeout=20)
            connection.execute("DELETE FROM rows WHERE id % 3 = ?", (self.rng.randrange(3),))
            connection.execute("INSERT INTO rows(value, other) VALUES (?, ?)", (self.rng.random(), self.rng.random()))
            connection.execute("UPDATE settings SET value = ? WHERE name = 'name'", (self.rng.random(),))
            if name == "config.db":
                own = (self.rng.random(),)
                connection.execute("UPDATE settings SET value = ? WHERE name = 'externhost'", own)
            connection.commit()
            connection.close()

    def export(self) -> None:
        self.node.command("package", "export", self.package)

    def last_run(self, kind: str) -> str | None:
        lines = self.node.command("logs", "backup", "--json").stdout.splitlines()
        runs = [run["result"] for run in map(json.loads, lines) if run["kind"] == kind]
        return runs[-1] if runs else "none"

    @contextlib.contextmanager
    def asking(self, verb: str, *arguments: str):  # type: ignore[no-untyped-def]
        line = [sys.executable, "-m", "ha_sync.cli", "package", verb, *arguments, "--config", self.node.config]
        with subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as asked:
            yield asked

    def looks(self) -> Looks:
        """What a program finds, without what is ours and what is the node's own."""
        return {path: shared(path, facts) for path, facts in self.site.looks().items()}

    def own(self) -> object:
        return [row[1:] for row in self.site.looks()["config.db/settings"] if row[1] == "externhost"]

    def count(self, outcome: str) -> None:
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def told(self, found: Looks, before: Looks, after: Looks) -> str:
        odd = [path for path in {*found, *before} if found.get(path) != before.get(path)][:5]
        other = [path for path in {*found, *after} if found.get(path) != after.get(path)][:5]
        return f"seed {self.seed}: between; not as before: {odd}; not as after: {other}\n{self.node.log_tail()}"


def shared(path: str, facts: tuple[Any, ...]) -> tuple[object, ...]:
    """Of a table or a schema, without our triggers and tables, and without the node's own rows."""
    if path == "config.db/settings":
        return tuple(row for row in facts if row[1] != "externhost")
    if path.endswith("/sqlite_sequence"):
        return tuple(sorted(row[1:] for row in facts if not row[1].startswith("_ha_")))
    if path.endswith((".db/", ".sqlite3/")):
        schema, version, mode = facts
        return tuple(row for row in schema if not row[1].startswith("_ha_")), version, mode
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    directory = tempfile.mkdtemp(prefix="ha-package-")
    try:
        Campaign(directory, seed=seed).run(arguments.rounds)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
