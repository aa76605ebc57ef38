"""Kills engines at random moments while a sample PBX works, and proves that nothing acknowledged is missing.

``python -m tests.support.crash_campaign --rounds 200 --seed 1`` (or ``scripts/crash-campaign``). One round kills one of
the two engines with SIGKILL after a random while and starts it again after another. Every ``CHECK_EVERY`` rounds the
PBX stops cleanly, the barrier is asked, and the Standby's copy is held against the ledger; no temporary file may
remain. The last check is a fail-over: everything dies in mid-work and the Standby is promoted.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ha_sync.sample import SampleSettings, check, start_command, sync_toml
from ha_sync.sample.pair import LocalNode, LocalPair, Place

CHECK_EVERY = 10
OURS = (".ha-dataset", ".ha-trash", ".ha-held", ".ha-partial", ".ha-stage")


def toml(place: Place) -> str:
    return sync_toml(
        root=place.root,
        state_dir=place.state_dir,
        run_dir=place.run_dir,
        listen=place.listen,
        peer=place.peer,
        name=place.name,
    )


class Campaign:
    """One pair, one PBX, many deaths."""

    def __init__(self, directory: str, *, seed: int, calls: int = 20) -> None:
        self.directory = directory
        self.ledger = os.path.join(directory, "ledger")
        self.rng = random.Random(seed)
        self.seed = seed
        self.calls = calls
        self.runs = 0
        self.pair = LocalPair(directory, toml)
        self.pbx: subprocess.Popen[bytes] | None = None

    def run(self, rounds: int) -> None:
        print(f"crash campaign: seed {self.seed}, {rounds} rounds", flush=True)
        try:
            self.start_pbx(seconds=1.5)
            self.wait_pbx()
            self.pair.start()
            self.start_pbx()
            for number in range(1, rounds + 1):
                self.round(number)
                if number % CHECK_EVERY == 0:
                    self.check_quiet(number)
            self.fail_over()
        finally:
            if self.pbx is not None:
                self.pbx.kill()
                self.pbx.wait()
            self.pair.close()

    def round(self, number: int) -> None:
        victim, role = self.rng.choice([(self.pair.a, "active"), (self.pair.b, "standby")])
        time.sleep(self.rng.uniform(0.0, 1.2))
        victim.kill()
        time.sleep(self.rng.choice([0.0, self.rng.uniform(0.0, 0.8)]))
        self._serve(victim, role)
        print(f"round {number}: killed {victim.place.name}", flush=True)

    def _serve(self, node: LocalNode, role: str) -> None:
        """Started, and half of the time not waited for: the next kill may hit its start."""
        node.serve(role, 1)
        if self.rng.random() < 0.5:
            self.pair.until_streaming()

    def check_quiet(self, number: int) -> None:
        self.stop_pbx()
        self.pair.until_streaming()
        self.barrier()
        self.judge(f"after round {number}", time.monotonic())
        self.start_pbx()

    def fail_over(self) -> None:
        self.pair.until_streaming()
        called = time.monotonic()
        self.barrier()
        time.sleep(self.rng.uniform(0.0, 0.5))
        assert self.pbx is not None
        self.pbx.kill()
        self.pair.a.kill()
        self.pair.b.set_role("active", 2)
        self.judge("after the fail-over", called)

    def barrier(self) -> None:
        missing = self.pair.a.wait_replicated(timeout_s=45)
        assert missing == (), f"seed {self.seed}: {missing}\n{self.pair.a.log_tail()}\n{self.pair.b.log_tail()}"

    def judge(self, when: str, acknowledged_until: float) -> None:
        verdict = check(self.ledger, self.pair.b.place.root, acknowledged_until)
        print(
            f"{when}: {verdict.present} present, {verdict.unacknowledged_lost} never acknowledged and lost", flush=True
        )
        problems = [*verdict.acknowledged_missing, *verdict.faults, *verdict.rejected, *self.leftovers()]
        assert not problems, f"seed {self.seed}, {when}: " + "\n".join(problems[:20])

    def leftovers(self) -> list[str]:
        """Our temporary files. Ours at a root stay; partials belong to recordings that still grow."""
        found = []
        for place in (self.pair.a.place, self.pair.b.place):
            for path in Path(place.root).rglob("*"):
                ours = [part for part in path.parts if part.startswith(".ha-")]
                if ours and (ours[0] not in OURS or (ours[0] == ".ha-stage" and path.name != ".ha-stage")):
                    found.append(f"left behind: {path}")
        return found

    def start_pbx(self, *, seconds: float | None = None) -> None:
        self.runs += 1
        settings = SampleSettings(
            root=self.pair.a.place.root,
            ledger=self.ledger,
            seed=self.seed,
            run=self.runs,
            calls=self.calls,
            seconds=seconds,
        )
        with open(os.path.join(self.directory, "pbx.log"), "ab") as log:
            self.pbx = subprocess.Popen(start_command(settings), stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def wait_pbx(self) -> None:
        assert self.pbx is not None
        assert self.pbx.wait(60) == 0
        self.pbx = None

    def stop_pbx(self) -> None:
        assert self.pbx is not None
        self.pbx.terminate()
        self.wait_pbx()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--keep", action="store_true", help="leave everything in place when it fails")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.SystemRandom().randrange(2**32)
    directory = tempfile.mkdtemp(prefix="ha-sync-crash-")
    campaign = Campaign(directory, seed=seed, calls=arguments.calls)
    try:
        campaign.run(arguments.rounds)
    except AssertionError:
        if arguments.keep:
            print(f"left in {directory}", flush=True)
            raise
        shutil.rmtree(directory)
        raise
    shutil.rmtree(directory)
    print(f"{arguments.rounds} rounds: nothing acknowledged is missing", flush=True)


if __name__ == "__main__":
    sys.exit(main())
