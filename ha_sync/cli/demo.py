"""``ha-sync demo``: a pair of whole nodes on this machine; kills the Active and counts what was lost.

Two engines, two agents and a busy sample PBX. After a while the Active's processes are killed in mid-work; the other
node's agent notices and takes over by itself; the sample's ledger then proves what had arrived. Needs no root, ends by
itself within a minute, leaves nothing behind. Exit 1 when something acknowledged is missing; exit 3 when ``--netns``
is not possible here.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import click

from ha_sync.cli.demo_run import Demo
from ha_sync.cli.demo_told import facts_of, lines_of
from ha_sync.cli.output import print_json
from ha_sync.errors import HaSyncError, WrongState
from ha_sync.sample import netns
from ha_sync.sample.pair import PairFailure
from ha_sync.sample.stage import Stage, loopback, namespaces

ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@click.option(
    "--seconds", type=click.FloatRange(3, 30), default=15.0, show_default=True, help="Seconds of work before the kill."
)
@click.option("--calls", type=click.IntRange(1, 200), default=40, show_default=True, help="At once, in the sample PBX.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(3, 10),
    default=5.0,
    show_default=True,
    help="Of the heartbeat: seconds of silence before the Standby takes over.",
)
@click.option(
    "--seed", type=int, default=1, show_default=True, help="Of what the sample PBX does: another one, other work."
)
@click.option(
    "--netns", "in_namespaces", is_flag=True, help="With a real cluster IP, in network namespaces. Needs root."
)
@click.option("--keep", is_flag=True, help="Leave the two nodes' files, and say where.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON: a stable contract.")
def demo(
    *, seconds: float, calls: int, timeout_s: float, seed: int, in_namespaces: bool, keep: bool, as_json: bool
) -> None:
    """Show a live pair, kill the Active, prove that nothing acknowledged was lost."""
    if in_namespaces and (found := netns.hindrance()) is not None:
        raise WrongState("cannot build the demo's network", reason=found[0], hint=found[1])
    with ExitStack() as cleanup:
        cleanup.enter_context(_interruptible())
        directory = tempfile.mkdtemp(prefix="ha-sync-demo-")
        cleanup.callback(_leave, directory, keep=keep, quiet=as_json)
        try:
            stage: Stage = namespaces(cleanup, timeout_s) if in_namespaces else loopback(timeout_s)
            say = (lambda _text: None) if as_json else click.echo
            outcome = Demo(directory, stage, seconds=seconds, calls=calls, seed=seed, say=say).run()
        except (PairFailure, netns.NetworkFailure) as failure:
            raise HaSyncError("the demo failed", reason=str(failure)) from failure
    if as_json:
        print_json(facts_of(outcome))
    else:
        for line in lines_of(outcome):
            click.echo(line)
    if not outcome.verdict.ok:
        raise SystemExit(1)


def _leave(directory: str, *, keep: bool, quiet: bool) -> None:
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)
    elif not quiet:
        click.echo(f"files left in {directory}")


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end the demo as Ctrl-C does. A second signal does not interrupt what removes the rest."""

    def end(_number: int, _frame: FrameType | None) -> None:
        for number in ENDINGS:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, end) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
