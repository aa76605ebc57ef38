"""Random faults of a whole pair: real agents and engines in namespaces, a busy sample PBX as their service.

``python -m tests.support.pair_campaign --rounds 20 --seed 1`` (or ``scripts/pair-campaign``). In a round one or two
things go wrong: power, processes that die or stand still, wires, loss of datagrams, planned switches. Then all is
mended and the pair must stand again by itself. At every moment at most one kernel has the cluster IP; what a barrier
had covered is on the Active, whoever that is by then; a planned switch loses nothing at all; and when the PBX rests,
both copies are equal.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import grpc

from ha_sync.sample import check
from ha_sync.sample import settings as names
from ha_sync.sample.astdb import UUID_KEY
from ha_sync.sample.configdb import LOCAL_SETTINGS, LOCAL_TABLES
from ha_sync.sample.pair import Place
from ha_sync.sample.synctoml import sync_toml
from tests.support.netns_pair import AGENT, ENGINE, NetNode, NetPair, Silent
from tests.support.netns_watch import Holders
from tests.support.tree_storm import tree_differences

CALLS = 15
LOAD_S = 1.0
DATABASES = (names.CONFIG_DB, names.CDR_DB, names.CEL_DB, names.ASTDB)
TREES = (names.ETC_DIR, names.CSV_DIR, names.VOICEMAIL_DIR, names.MONITOR_DIR)
SHOWN = 12


class Campaign:
    """One pair, one PBX at a time, many faults."""

    def __init__(self, directory: str, *, seed: int) -> None:
        self.seed = seed
        self.random = random.Random(seed)
        self.ledger = os.path.join(directory, "ledger")
        self._runs = os.path.join(directory, "runs")
        self.pair = NetPair(directory, sections=self._service, sync_toml=_toml, furnish=lambda _root: None)
        self.covered_until = 0.0  # when the newest barrier was called that returned
        self._unharmed = True  # no fault in this round yet but planned switches
        self._gone: frozenset[str] = frozenset()  # lost by earlier faults before any barrier covered it

    def run(self, rounds: int) -> None:
        """Raises AssertionError with the seed and the faults."""
        print(f"pair campaign: seed {self.seed}, {rounds} rounds", flush=True)
        with self.pair, Holders(self.pair.net, self.pair.addresses) as holders:
            self.pair.start()
            for number in range(1, rounds + 1):
                began = time.monotonic()
                # Before the first only: what a fault has cost already is not covered by a later barrier.
                self._cover()
                names_of = [self._fault() for _ in range(self.random.choice((1, 1, 2)))]
                told = f"seed {self.seed}, round {number}: {', '.join(names_of)}"
                try:
                    time.sleep(self.random.uniform(0.0, 5.0))
                    self.pair.settle()
                    self._judge(told)
                except AssertionError as wrong:
                    raise AssertionError(f"{told}: {wrong}") from wrong
                twice = holders.seconds(2, since=began)
                assert twice == 0, f"{told}: two had the cluster IP for {twice:.3f} s"
                print(f"{told}: good after {time.monotonic() - began:.1f} s", flush=True)

    # ---- faults

    def _fault(self) -> str:
        time.sleep(self.random.uniform(0.2, LOAD_S))
        node = self.random.choice(list(self.pair.nodes.values()))
        name = self.random.choice(sorted(FAULTS))
        detail = "?"
        self._unharmed = self._unharmed and name == "switch"
        with contextlib.suppress(Silent, grpc.RpcError):
            detail = FAULTS[name](self, node)
        return f"{name} {node.name}{detail} at {time.monotonic():.3f}"

    def _cover(self) -> None:
        """A barrier, if there is an Active that can answer one now."""
        self._unharmed = True
        at = time.monotonic()
        with contextlib.suppress(Silent, ValueError, AssertionError, subprocess.TimeoutExpired):
            if self.pair.active.tool("wait", "--timeout", "3", check=False).returncode == 0:
                self.covered_until = at

    def power(self, node: NetNode) -> str:
        if node.powered:
            node.power_off()
            if self.random.random() < 0.5:
                time.sleep(self.random.uniform(0.5, 4.5))
                node.power_on()
                return " off and on"
        return ""

    def kill(self, node: NetNode) -> str:
        part = self.random.choice((AGENT, ENGINE, ENGINE))
        if node.powered and node.runs(part):
            node.signal(signal.SIGKILL, part)
            # No systemd stops the PBX of a dead agent here: two of them at work would be no fault of the pair.
            if part == AGENT or self.random.random() < 0.8:
                time.sleep(self.random.uniform(0.0, 1.5))
                node.start(part)
                return f" {part} and start"
        return f" {part}"

    def freeze(self, node: NetNode) -> str:
        part = self.random.choice((AGENT, ENGINE))
        longest_s = 6.0 if part == ENGINE else 2.0  # as with `kill`
        seconds = self.random.choice((self.random.uniform(0.1, 1.0), self.random.uniform(1.0, longest_s)))
        if node.powered and node.runs(part):
            node.signal(signal.SIGSTOP, part)
            time.sleep(seconds)
            node.signal(signal.SIGCONT, part)
        return f" {part} for {seconds:.2f} s"

    def cable(self, node: NetNode) -> str:
        self.pair.net.cut(node.name, "cable0")
        return ""

    def lan(self, node: NetNode) -> str:
        self.pair.net.cut(node.name)
        return ""

    def gateway(self, _node: NetNode) -> str:
        self.pair.net.cut("gw")
        return ""

    def loss(self, node: NetNode) -> str:
        for device in ("eth0", "cable0"):
            self.pair.net.lose_incoming(node.name, 30, device)
        return ""

    def switch(self, _node: NetNode) -> str:
        """Whoever asked is told that it was done, or why not; done after no other fault means that nothing was lost."""
        try:
            active = self.pair.active
        except ValueError:
            return " impossible"
        asked = time.monotonic()
        if not active.switch().switched:
            return " refused"
        if self._unharmed:
            self.covered_until = asked
        return " done"

    # ---- what must be true

    def _judge(self, told: str) -> None:
        active, standby = self.pair.roles
        self._pbx(active, "stop")
        active.tool("wait", "--timeout", "60")
        verdict = check(self.ledger, active.data, self.covered_until)
        whole = check(self.ledger, active.data, time.monotonic())
        lost = frozenset(map(str, whole.acknowledged_missing)) - self._gone
        # Of a transaction that was lost whole some rows were written again since: it looks like half of one.
        keys = {found[0] for text in self._gone | lost if (found := re.search(r"\[.*?\]", text))}
        faults = [
            one for one in map(str, verdict.faults) if not ("is split" in one and any(key in one for key in keys))
        ]
        wrong = [one for one in [*map(str, verdict.acknowledged_missing), *faults] if one not in self._gone]
        on = f"on {active.name}, covered until {self.covered_until:.3f}"
        assert not wrong, f"{len(wrong)} against the ledger {on}\n" + "\n".join(wrong[:SHOWN])
        self._gone |= lost | frozenset(map(str, verdict.faults))
        differing = copies_differ(active.data, standby.data)
        assert not differing, f"{len(differing)} differences\n" + "\n".join(differing[:SHOWN])
        self.covered_until = time.monotonic()
        self._pbx(active, "start")

    # ---- the PBX

    def _service(self, node: NetNode) -> str:
        line = [sys.executable, "-m", "ha_sync.sample", "--root", node.data, "--ledger", self.ledger]
        pid, log, runs = (shlex.quote(path) for path in (node.file("pbx.pid"), node.file("pbx.log"), self._runs))
        node.write(
            "pbx",
            f"""cd {shlex.quote(os.getcwd())}
case $1 in
  start)
    kill -0 "$(cat {pid} 2>/dev/null)" 2>/dev/null && exit 0
    n=$(($(cat {runs} 2>/dev/null || echo 0) + 1)); echo $n >{runs}
    setsid {shlex.join(line)} --calls {CALLS} --run "$n" >>{log} 2>&1 </dev/null &
    echo $! >{pid} ;;
  stop)
    p=$(cat {pid} 2>/dev/null) || exit 0
    kill "$p" 2>/dev/null
    while kill -0 "$p" 2>/dev/null; do sleep 0.01; done ;;
esac
""",
        )
        start, stop = (json.dumps(["/bin/sh", node.file("pbx"), verb]) for verb in ("start", "stop"))
        return f'[[service]]\nname = "sample"\nstart = {start}\nstop = {stop}\n'

    def _pbx(self, node: NetNode, verb: str) -> None:
        subprocess.run(self.pair.net.command(node.name, "/bin/sh", node.file("pbx"), verb), check=True, timeout=60)


FAULTS: dict[str, Callable[[Campaign, NetNode], str]] = {
    name: getattr(Campaign, name) for name in ("power", "kill", "freeze", "cable", "lan", "gateway", "loss", "switch")
}


def copies_differ(one: str, other: str) -> list[str]:
    """What is not equal on both nodes and should be."""
    found = []
    for name in DATABASES:
        a, b = (_rows(os.path.join(root, name)) for root in (one, other))
        found += [f"{name}: {row} only in {one if row in a else other}" for row in sorted(a ^ b)]
    for name in TREES:
        differing = tree_differences(os.path.join(one, name), os.path.join(other, name))
        # Messages that are being recorded lie in `tmp`, which is each node's own.
        own = "/tmp" if name == names.VOICEMAIL_DIR else "\0"
        found += [f"{name}: {text}" for text in differing if own not in text.split("'")[1]]
    return found


def _rows(path: str) -> set[str]:
    """All of a database but what is ours or the node's own."""
    found = set()
    with tempfile.TemporaryDirectory() as aside:
        for suffix in ("", "-wal", "-journal"):
            if os.path.exists(path + suffix):
                shutil.copy(path + suffix, os.path.join(aside, "copy" + suffix))
        if not os.path.exists(os.path.join(aside, "copy")):
            return set()
        with contextlib.closing(sqlite3.connect(os.path.join(aside, "copy"))) as db:
            tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            for table in tables:
                if table.startswith(("_ha", "sqlite_")) or table in LOCAL_TABLES:
                    continue
                for row in db.execute(f'SELECT * FROM "{table}"'):
                    if not (row[0] == UUID_KEY or (table == "sip_settings" and set(row) & set(LOCAL_SETTINGS))):
                        found.add(f"{table} {row!r}")
    return found


def _toml(place: Place) -> str:
    return sync_toml(
        root=place.root,
        state_dir=place.state_dir,
        run_dir=place.run_dir,
        listen=place.listen,
        peer=place.peer,
        name=place.name,
    )


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(prog="pair-campaign", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=None, metavar="S", help="at random, and printed first")
    parser.add_argument("--keep", action="store_true", help="leave the nodes' files where they are")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.randrange(1 << 30)
    directory = tempfile.mkdtemp(prefix="pair-campaign-")
    print(directory if options.keep else "", flush=True)
    try:
        Campaign(directory, seed=seed).run(options.rounds)
    finally:
        if not options.keep:
            shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
