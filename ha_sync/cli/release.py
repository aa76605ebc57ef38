"""``ha-sync release``: lets a pair that was held after flapping switch by itself again."""

from __future__ import annotations

import click

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.cli.client import QUICK_S, agent
from ha_sync.cli.options import agent_option, agent_socket_path, json_option
from ha_sync.cli.output import print_json


@click.command()
@agent_option
@json_option
def release(*, config: str, socket: str | None, agent_socket: str | None, as_json: bool) -> None:
    """Let the pair switch by itself again after two automatic switches within 15 minutes."""
    with agent(agent_socket_path(config, socket, agent_socket)) as stub:
        stub.ReleaseHold(pb.ReleaseHoldRequest(), timeout=QUICK_S)
    if as_json:
        print_json({"released": True})
    else:
        click.echo("released: the pair switches by itself again")
