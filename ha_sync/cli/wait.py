"""``ha-sync wait``: a barrier for scripts."""

from __future__ import annotations

import click

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.client import QUICK_S, control
from ha_sync.cli.options import json_option, socket_option, socket_path
from ha_sync.cli.output import message_to_dict, print_json

EXIT_NOT_REPLICATED = 4


@click.command()
@socket_option
@json_option
@click.option(
    "--timeout",
    type=click.FloatRange(0, 86_400),
    default=0.0,
    metavar="S",
    show_default=True,
    help="Seconds; 0: as long as it takes.",
)
@click.option("--dataset", "datasets", multiple=True, metavar="NAME", help="Only this one; may be given again.")
@click.pass_context
def wait(
    ctx: click.Context, *, config: str, socket: str | None, as_json: bool, timeout: float, datasets: tuple[str, ...]
) -> None:
    """Return when all that was durable on the Active before the call is durable on the Standby.

    Ends with 0 when it is, with 4 when it was not within the timeout, with 3 on a node that is not the Active.
    """
    request = pb.WaitReplicatedRequest(timeout_s=timeout, datasets=datasets)
    with control(socket_path(config, socket)) as engine:
        answer = engine.WaitReplicated(request, timeout=timeout + QUICK_S if timeout else None)
    if as_json:
        print_json(message_to_dict(answer))
    elif answer.replicated:
        click.echo("replicated")
    else:
        click.echo(f"ha-sync: not replicated within {timeout:g} s", err=True)
        for missing in answer.waiting_for:
            click.echo(f"  {missing}", err=True)
    if not answer.replicated:
        ctx.exit(EXIT_NOT_REPLICATED)
