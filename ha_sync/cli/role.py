"""``ha-sync role``: gives this node its role where no agent does."""

from __future__ import annotations

import click

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.client import LONG_S, control
from ha_sync.cli.options import EPOCH_MAX, json_option, socket_option, socket_path
from ha_sync.cli.output import message_to_dict, print_json
from ha_sync.core.dataset import Role


@click.command()
@click.argument("new_role", metavar="active|standby", type=click.Choice([role.value for role in Role]))
@click.option("--epoch", type=click.IntRange(1, EPOCH_MAX), required=True, help="Higher than every epoch before it.")
@socket_option
@json_option
def role(*, new_role: str, epoch: int, config: str, socket: str | None, as_json: bool) -> None:
    """Make this node Active or Standby, in a new epoch, without a restart.

    A promotion finishes what the dead node left half done and lists it.
    """
    with control(socket_path(config, socket)) as engine:
        answer = engine.SetRole(pb.SetRoleRequest(role=new_role, epoch=epoch), timeout=LONG_S)
    if as_json:
        print_json(message_to_dict(answer))
        return
    click.echo(f"{answer.role}, epoch {answer.epoch}")
    for done in answer.finished:
        click.echo(f"  {done.dataset}: {done.what}: {done.subject}" + (f" ({done.detail})" if done.detail else ""))
