"""``ha-sync single``: an administrator declares the peer gone."""

from __future__ import annotations

import click

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.cli.client import QUICK_S, agent
from ha_sync.cli.options import agent_option, agent_socket_path, json_option
from ha_sync.cli.output import print_json


@click.command()
@agent_option
@json_option
def single(*, config: str, socket: str | None, agent_socket: str | None, as_json: bool) -> None:
    """Declare the peer gone: the Active keeps the cluster IP as long as its own cable is up.

    Only on the Active, and only while the peer is not heard. It ends with the peer's first beat.
    """
    with agent(agent_socket_path(config, socket, agent_socket)) as stub:
        stub.DeclareSingle(pb.DeclareSingleRequest(), timeout=QUICK_S)
    if as_json:
        print_json({"single": True})
    else:
        click.echo("single: this node serves without its peer")
