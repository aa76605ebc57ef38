"""How soon a pair streams again after a lost connection, and after a restart of the Active's engine.

The tree of first-sync, nothing changed. A relay between the nodes resets every connection and takes new ones at once;
at that moment one small file is made, and `seconds` ends when it appears on the Standby: only a new stream can have
brought it. The same on a tree of one folder shows whether the size matters (`seconds_small`); after an outage of some
seconds, in which connections are refused, it counts from the moment they are possible again (`seconds_after_outage`:
it holds the pause between two attempts). `restart_scan_s` runs from the start of the Active's new process (interpreter
included) until a file made while it was down is durable on the Standby and the barrier returned: its catalogue is
checked by one metadata scan. Its peer is `rsync -a` over the same unchanged tree.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable

from benchmarks.harness import trees
from benchmarks.harness.relay import Relay
from benchmarks.harness.result import median
from benchmarks.harness.run import BenchFailure, Run, drain, main, toml_of
from ha_sync.sample.pair import LocalPair, Place

OUTAGE_S = 3.0
LOOK_S = 0.001
APPEARS_S = 60.0


def toml_through(relays: list[Relay]) -> Callable[[Place], str]:
    """Two trees; the Standby reaches the Active through a relay."""

    def toml(place: Place) -> str:
        node = place
        if place.name == "b":
            relays.append(Relay(place.peer))
            node = Place(
                name=place.name,
                root=place.root,
                state_dir=place.state_dir,
                run_dir=place.run_dir,
                listen=place.listen,
                peer=relays[-1].address,
            )
        names = ("tree", "small")
        return toml_of(
            node, *({"name": name, "kind": "tree", "path": name, "priority": "recordings"} for name in names)
        )

    return toml


def measure(run: Run) -> None:
    """See the module."""
    size, rounds, restarts = (trees.TENTH, 5, 3) if run.quick else (trees.WHOLE, 15, 7)
    relays: list[Relay] = []
    with run.pair(toml_through(relays)) as pair:
        source = os.path.join(pair.a.place.root, "tree")
        os.makedirs(os.path.join(pair.a.place.root, "small"))
        run.say(f"making {size.files:,} files")
        trees.make_tree(source, size)
        pair.pair_up()
        pair.b.serve("standby", 1)
        pair.until_streaming(timeout_s=600)
        drain(pair.a, timeout_s=600)
        run.say("in sync; resets")
        for name, key in (("tree", "seconds"), ("small", "seconds_small")):
            run.figures[key] = median([reset_once(pair, relays[0], name, number) for number in range(rounds)], "s")
        run.say("outages")
        outages = [outage_once(pair, relays[0], number) for number in range(2 if run.quick else 5)]
        run.figures["seconds_after_outage"] = median(outages, "s")
        run.say("restarts")
        restart(run, pair, source, restarts)


def reset_once(pair: LocalPair, relay: Relay, name: str, number: int) -> float:
    """Seconds from the reset to the file."""
    path = os.path.join(name, f"canary-reset-{number}")
    relay.reset()
    since = time.monotonic()
    seen = appears(pair, path)
    drain(pair.a)
    time.sleep(1.5)
    return seen - since


def outage_once(pair: LocalPair, relay: Relay, number: int) -> float:
    """Seconds from the end of an outage to a file that was made in it."""
    path = os.path.join("tree", f"canary-outage-{number}")
    relay.cut()
    write(pair, path)
    time.sleep(OUTAGE_S + 0.37 * number)  # not in step with the attempts
    relay.open()
    since = time.monotonic()
    seen = appears(pair, path, made=True)
    drain(pair.a)
    time.sleep(1.5)
    return seen - since


def restart(run: Run, pair: LocalPair, source: str, rounds: int) -> None:
    """The Active's engine ends and starts, rsync looks at the same tree, in turn."""
    run.programs.append("rsync")
    run.commands.append("rsync -a rsync://127.0.0.1/tree/ copy/ (nothing changed)")
    copy = run.place("copy")
    ours, theirs, ready = [], [], []
    with trees.rsync_daemon(source, run.place("rsync")) as address:
        trees.rsync_seconds(address, copy)
        for number in range(rounds):
            run.note_peak(pair.a, "active")
            pair.a.stop()
            write(pair, os.path.join("tree", f"canary-restart-{number}"))
            since = time.monotonic()
            pair.a.serve("active", 1)
            ready.append(time.monotonic() - since)
            seen = appears(pair, os.path.join("tree", f"canary-restart-{number}"), made=True)
            ours.append(max(seen, drain(pair.a, "tree")) - since)
            trees.rsync_seconds(address, copy)
            theirs.append(trees.rsync_seconds(address, copy))
    run.figures["restart_scan_s"] = median(ours, "s", peer=theirs)
    run.figures["restart_ready_s"] = median(ready, "s")


def write(pair: LocalPair, path: str) -> None:
    """A small new file on the Active."""
    with open(os.path.join(pair.a.place.root, path), "w", encoding="ascii") as file:
        file.write(f"{path}\n")


def appears(pair: LocalPair, path: str, *, made: bool = False) -> float:
    """Makes the file, unless it is made, and returns when it was seen on the Standby."""
    if not made:
        write(pair, path)
    there = os.path.join(pair.b.place.root, path)
    deadline = time.monotonic() + APPEARS_S
    while not os.path.exists(there):
        if time.monotonic() > deadline:
            raise BenchFailure(f"{path} did not come in {APPEARS_S:g} s\n{pair.a.log_tail()}\n{pair.b.log_tail()}")
        time.sleep(LOOK_S)
    return time.monotonic()


if __name__ == "__main__":
    sys.exit(main("reconnect", measure))
