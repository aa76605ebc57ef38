"""``ha-sync switch``: changes the roles of the pair, planned on the Active, forced on a Standby."""

from __future__ import annotations

import time
from dataclasses import dataclass

import click

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.cli.client import LONG_S, QUICK_S, agent, class_of, stated_exit_code
from ha_sync.cli.failures import facts_of, say
from ha_sync.cli.options import agent_option, agent_socket_path, json_option
from ha_sync.cli.output import message_to_dict, print_json
from ha_sync.cli.reasons import refusal, words
from ha_sync.errors import HaSyncError

RISKS = {
    "force": "--force: a peer that is not ready is accepted; on a Standby, what its Active did not get across is lost",
    "accept_data_loss": "--accept-data-loss: changes that are not on the peer at the deadline are lost",
    "accept_dual": "--accept-dual: for as long as the peer still serves, two nodes hold the cluster IP",
}
"""What each flag may cost, said before it is done."""


@click.command()
@click.option("--force", is_flag=True, help="Go past a peer that is not ready; on a Standby: take over.")
@click.option("--accept-data-loss", is_flag=True, help="Go on past the deadline, or with unsound data.")
@click.option(
    "--accept-dual", is_flag=True, help="With --force on a Standby: also while somebody may hold the address."
)
@click.option(
    "--timeout",
    type=click.FloatRange(0, 3600),
    default=0.0,
    metavar="S",
    show_default=True,
    help="Seconds for stopping and draining; 0: as the settings say.",
)
@click.option("--cancel", is_flag=True, help="Give up a switch that is under way, while the address has not moved.")
@agent_option
@json_option
@click.pass_context
def switch(
    ctx: click.Context,
    *,
    force: bool,
    accept_data_loss: bool,
    accept_dual: bool,
    timeout: float,
    cancel: bool,
    config: str,
    socket: str | None,
    agent_socket: str | None,
    as_json: bool,
) -> None:
    """Change the roles of the pair.

    On the Active: its services are stopped, every dataset is drained to the Standby, positions are compared, then the
    cluster IP moves. Nothing is lost. If that is not done before the deadline, the services are started again and the
    Active goes on.

    On a Standby whose Active is dead: --force takes over. What the Active had not got across to this node is lost: it
    is replaced when that node comes back as Standby.

    \b
    What may be lost:
      --force             on the Active nothing that can be drained: it goes past a peer that is not ready and ends
                          a running full backup; on a Standby all that the Active did not get across
      --accept-data-loss  what is not on the peer when the deadline passes; and a copy in the middle of a full sync
                          may come into service as it is
      --accept-dual       while the old Active still serves, two nodes hold the cluster IP and calls fail; what the
                          old one takes in meanwhile is lost

    Ends with 0 when the roles have changed, 3 when that is not possible in this role or state, 5 when the peer is not
    heard, 6 when it is refused for safety, 1 when it was begun and given up.
    """
    request = pb.SwitchRequest(
        force=force, accept_data_loss=accept_data_loss, accept_dual=accept_dual, timeout_s=timeout
    )
    if accept_dual and not force:
        raise click.UsageError("--accept-dual goes only with --force")
    if cancel and request != pb.SwitchRequest():
        raise click.UsageError("--cancel goes with no other flag")
    path = agent_socket_path(config, socket, agent_socket)
    if cancel:
        _cancel(path, as_json=as_json)
        return
    if not as_json:
        for flag, risk in RISKS.items():
            if getattr(request, flag):
                click.echo(risk, err=True)
    outcome = _ask(path, request)
    _tell(outcome, as_json=as_json)
    if outcome.error is not None:
        ctx.exit(outcome.error.exit_code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of it."""

    answer: pb.SwitchResponse
    took_s: float
    error: HaSyncError | None  # None: the roles have changed


def _ask(path: str, request: pb.SwitchRequest) -> Outcome:
    began = time.monotonic()
    try:
        with agent(path) as stub:
            answer, call = stub.Switch.with_call(request, timeout=request.timeout_s + LONG_S)
    except KeyboardInterrupt:
        click.echo("ha-sync: interrupted; a switch that has begun goes on: `ha-sync switch --cancel`", err=True)
        raise
    stated = stated_exit_code(call)
    kind = None if stated is None else class_of(stated)
    return Outcome(
        answer=answer,
        took_s=time.monotonic() - began,
        error=None if answer.switched else refusal("the roles were not changed", answer.reason, kind),
    )


def _tell(outcome: Outcome, *, as_json: bool) -> None:
    answer, error = outcome.answer, outcome.error
    if as_json:
        facts = message_to_dict(answer) | {"took_s": outcome.took_s}
        print_json(facts if error is None else facts | {"error": facts_of(error)})
    elif error is None:
        click.echo(f"switched in {outcome.took_s:.1f} s, epoch {answer.epoch}")
    else:
        say(error)
        if answer.detail:
            click.echo(f"  {answer.detail}", err=True)
        for reason in answer.peer_reasons:
            click.echo(f"  peer: {words(reason)}", err=True)


def _cancel(path: str, *, as_json: bool) -> None:
    with agent(path) as stub:
        stub.CancelSwitch(pb.CancelSwitchRequest(), timeout=QUICK_S)
    if as_json:
        print_json({"cancelled": True})
    else:
        click.echo("cancelled: the Active goes on")
