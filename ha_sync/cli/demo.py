"""``ha-sync demo``: a pair on this machine with a busy sample PBX; kills the Active and counts what was lost.

Two engines of this program replicate over TLS on 127.0.0.1 what the sample PBX does to its files. After a while the
Active is killed in mid-work, PBX and all; the Standby is promoted; the sample's ledger then proves what arrived. Needs
no root, ends by itself within a minute, leaves nothing behind. Exit 1 when something acknowledged is missing.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import click

from ha_sync.errors import HaSyncError
from ha_sync.sample import SampleSettings, Verdict, check, start_command, sync_toml
from ha_sync.sample.pair import LocalNode, LocalPair, PairFailure, Place

WARM_UP_S = 2.0
PBX_STOP_S = 15.0
BARRIER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the demo found."""

    verdict: Verdict
    lag: list[tuple[str, float, float, int]]  # dataset, p50 ms, p99 ms, samples
    promotion_s: float
    finished: int


@click.command()
@click.option(
    "--seconds", type=click.FloatRange(3, 40), default=15.0, show_default=True, help="Of work before the kill."
)
@click.option("--calls", type=click.IntRange(1, 200), default=40, show_default=True, help="At once, in the sample PBX.")
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--keep", is_flag=True, help="Leave the two nodes' files, and say where.")
@click.option("--json", "as_json", is_flag=True)
def demo(*, seconds: float, calls: int, seed: int, keep: bool, as_json: bool) -> None:
    """Show a live pair, kill the Active, prove that nothing acknowledged was lost."""
    directory = tempfile.mkdtemp(prefix="ha-sync-demo-")
    say = (lambda _text: None) if as_json else click.echo
    try:
        outcome = Demo(directory, seconds=seconds, calls=calls, seed=seed, say=say).run()
    except PairFailure as failure:
        raise HaSyncError("the demo failed", reason=str(failure)) from failure
    finally:
        if keep:
            say(f"files left in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    if as_json:
        click.echo(json.dumps(_as_dict(outcome)))
    else:
        _tell(outcome)
    if not outcome.verdict.ok:
        raise SystemExit(1)


class Demo:
    """One run below a directory of its own."""

    def __init__(self, directory: str, *, seconds: float, calls: int, seed: int, say: object) -> None:
        self._directory = directory
        self._seconds = seconds
        self._calls = calls
        self._seed = seed
        self._say = say if callable(say) else click.echo

    def run(self) -> Outcome:
        """Ends every process it started, whatever happens."""
        with LocalPair(self._directory, _toml) as pair:
            self._say(f"sample PBX: seed {self._seed}, {self._calls} calls at once, below {pair.a.place.root}")
            with self._pbx(pair.a, run=0, seconds=WARM_UP_S) as pbx:
                pbx.wait(WARM_UP_S + PBX_STOP_S)  # makes the databases; triggers go in while nobody has them open
            pair.start()
            self._say("pair is up: a is Active, b is Standby, every dataset streams")
            with self._pbx(pair.a, run=1, seconds=None) as pbx:
                barriers = _Barriers(pair.a)
                self._watch(pair.a)
                lag = _lag(pair.a)
                acknowledged_until = self._crash(pair.a, pbx, barriers)
            return self._take_over(pair, lag, acknowledged_until)

    @contextmanager
    def _pbx(self, node: LocalNode, *, run: int, seconds: float | None) -> Iterator[subprocess.Popen[bytes]]:
        settings = SampleSettings(
            root=node.place.root,
            ledger=os.path.join(self._directory, "ledger"),
            seed=self._seed,
            run=run,
            calls=self._calls,
            seconds=seconds,
        )
        with open(os.path.join(self._directory, "pbx.log"), "ab") as log:
            process = subprocess.Popen(start_command(settings), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()

    def _watch(self, node: LocalNode) -> None:
        end = time.monotonic() + self._seconds
        while (left := end - time.monotonic()) > 0:
            time.sleep(min(1.0, left))
            items = node.status().datasets
            worst = max((item.lag.p99_ms for item in items if item.lag.HasField("p99_ms")), default=0.0)
            parts = " ".join(f"{item.name} {item.lag.p50_ms:.1f}" for item in items if item.lag.HasField("p50_ms"))
            backlog = sum(item.backlog for item in items)
            self._say(f"{left:4.0f} s  lag p50 ms: {parts}  (worst p99 {worst:.0f} ms, {backlog} changes under way)")

    def _crash(self, node: LocalNode, pbx: subprocess.Popen[bytes], barriers: _Barriers) -> float:
        os.kill(pbx.pid, signal.SIGKILL)
        node.kill()
        acknowledged_until = barriers.stop()
        self._say("killed: the Active's engine and its PBX, both with SIGKILL in mid-work")
        return acknowledged_until

    def _take_over(
        self, pair: LocalPair, lag: list[tuple[str, float, float, int]], acknowledged_until: float
    ) -> Outcome:
        began = time.monotonic()
        answer = pair.b.set_role("active", 2)
        promotion_s = time.monotonic() - began
        self._say(f"b is Active of epoch {answer.epoch} after {promotion_s * 1000:.0f} ms")
        counted = Counter((item.dataset, item.what) for item in answer.finished)
        for (dataset, what), count in counted.items():
            self._say(f"  finished for the dead node: {dataset}: {what} ({count})")
        pair.b.stop()
        verdict = check(os.path.join(self._directory, "ledger"), pair.b.place.root, acknowledged_until)
        return Outcome(verdict=verdict, lag=lag, promotion_s=promotion_s, finished=len(answer.finished))


class _Barriers:
    """Asks for the barrier again and again; what was committed before the last answered call was acknowledged."""

    def __init__(self, node: LocalNode) -> None:
        self._node = node
        self._acknowledged_until = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, name="barriers")
        self._thread.start()

    def stop(self) -> float:
        """Monotonic seconds: everything durable on the Active before is durable on the Standby."""
        self._over.set()
        self._thread.join()
        return self._acknowledged_until

    def _ask(self) -> None:
        import grpc

        while not self._over.is_set():
            called = time.monotonic()
            try:
                missing = self._node.wait_replicated(timeout_s=BARRIER_S)
            except grpc.RpcError:
                return  # killed: the last answer stands
            if not missing:
                self._acknowledged_until = called
            self._over.wait(0.05)


def _toml(place: Place) -> str:
    return sync_toml(
        root=place.root,
        state_dir=place.state_dir,
        run_dir=place.run_dir,
        listen=place.listen,
        peer=place.peer,
        name=place.name,
    )


def _lag(node: LocalNode) -> list[tuple[str, float, float, int]]:
    return [
        (item.name, item.lag.p50_ms, item.lag.p99_ms, item.lag.samples)
        for item in node.status().datasets
        if item.lag.HasField("p50_ms")
    ]


def _tell(outcome: Outcome) -> None:
    click.echo("")
    click.echo(f"{'dataset':<14}{'lag p50 ms':>12}{'p99 ms':>10}{'changes':>9}")
    for name, p50, p99, samples in outcome.lag:
        click.echo(f"{name:<14}{p50:>12.1f}{p99:>10.1f}{samples:>9}")
    verdict = outcome.verdict
    click.echo("")
    click.echo(f"acknowledged and present:           {verdict.present}")
    click.echo(f"acknowledged and missing:           {len(verdict.acknowledged_missing)}")
    click.echo(f"never acknowledged and lost:        {verdict.unacknowledged_lost}")
    click.echo(f"refused to the PBX because of us:   {len(verdict.rejected)}")
    for line in (*verdict.acknowledged_missing[:20], *verdict.faults[:20], *verdict.rejected[:5]):
        click.echo(f"  {line}")


def _as_dict(outcome: Outcome) -> dict[str, object]:
    verdict = outcome.verdict
    return {
        "acknowledged_missing": list(verdict.acknowledged_missing),
        "unacknowledged_lost": verdict.unacknowledged_lost,
        "present": verdict.present,
        "by_kind": {kind: asdict(count) for kind, count in verdict.by_kind.items()},
        "faults": list(verdict.faults),
        "rejected": verdict.rejected,
        "promotion_s": outcome.promotion_s,
        "finished": outcome.finished,
        "lag_ms": {name: {"p50": p50, "p99": p99, "samples": n} for name, p50, p99, n in outcome.lag},
    }
