"""``python -m ha_sync.sample``: runs the sample PBX until SIGTERM or SIGINT (a clean stop) or SIGKILL (a crash).

Prints one line ``sample: running`` when its databases exist and one with the number of ledger lines when it has
stopped. Exit code 0 after a clean stop, 2 for options that make no sense, 1 for anything that broke.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence

from ha_sync.sample.ledger import Ledger
from ha_sync.sample.program import Program
from ha_sync.sample.settings import PARTS, SampleSettings

STOPS = (signal.SIGTERM, signal.SIGINT)


def parse(arguments: Sequence[str]) -> SampleSettings:
    """The command line as settings; exits with 2 and a message where they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m ha_sync.sample", description="A busy PBX without phones.")
    parser.add_argument("--root", required=True, help="directory for its databases and files")
    parser.add_argument("--ledger", required=True, help="file for what it did, outside of the replicated directories")
    parser.add_argument("--seed", type=int, default=1, help="the same seed does the same in the same order")
    parser.add_argument("--run", type=int, default=0, help="number of this start over the same files")
    parser.add_argument("--calls", type=int, default=40, help="calls at once")
    parser.add_argument("--seconds", type=float, help="stop by itself after so long")
    parser.add_argument("--rate-scale", type=float, default=1.0, help="how fast its clock runs")
    parser.add_argument("--boxes", type=int, default=12, help="mailboxes")
    parser.add_argument("--cel", action=argparse.BooleanOptionalAction, default=True, help="channel events")
    parser.add_argument(
        "--config-wal", action=argparse.BooleanOptionalAction, default=True, help="config.db in WAL mode"
    )
    parser.add_argument("--parts", default=",".join(PARTS), help=f"only these, of {','.join(PARTS)}")
    given = parser.parse_args(arguments)
    parts = tuple(part for part in given.parts.split(",") if part and (given.cel or part != "cel"))
    try:
        return SampleSettings(
            root=given.root,
            ledger=given.ledger,
            seed=given.seed,
            run=given.run,
            calls=given.calls,
            seconds=given.seconds,
            rate_scale=given.rate_scale,
            config_wal=given.config_wal,
            boxes=given.boxes,
            parts=parts,
        )
    except ValueError as error:
        parser.error(str(error))


def main(arguments: Sequence[str]) -> int:
    """One run."""
    settings = parse(arguments)
    with Ledger(settings.ledger) as ledger:
        program = Program(settings, ledger)
        # Not in a handler: it would run in the middle of the wait that it is to end, and stand at that wait's lock.
        signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
        threading.Thread(target=_stop_when_told, args=(program,), name="signals", daemon=True).start()
        program.run(lambda: _say("sample: running"))
        _say(f"sample: stopped, {ledger.count} lines in the ledger")
    return 0


def _stop_when_told(program: Program) -> None:
    while True:
        signal.sigwait(STOPS)
        program.stop()


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
