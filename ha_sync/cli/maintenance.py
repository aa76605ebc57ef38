"""``ha-sync maintenance``: no automatic switch for a while, on both nodes."""

from __future__ import annotations

import click

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.cli.client import QUICK_S, agent
from ha_sync.cli.options import agent_option, agent_socket_path, json_option
from ha_sync.cli.output import duration, print_json
from ha_sync.cli.times import Length


@click.command()
@click.option("--for", "seconds", type=Length(), metavar="30m", help="For so long: 90s, 30m, 2h.")
@click.option("--end", is_flag=True, help="Faults switch again from now on.")
@agent_option
@json_option
def maintenance(
    *, seconds: float | None, end: bool, config: str, socket: str | None, agent_socket: str | None, as_json: bool
) -> None:
    """Keep the pair from switching by itself for a while.

    Without an option it says how long that still goes on. It ends by itself; how long it may be at most is a setting
    of the agent. `ha-sync switch` works all the same.
    """
    if end and seconds is not None:
        raise click.UsageError("--for and --end exclude each other")
    with agent(agent_socket_path(config, socket, agent_socket)) as stub:
        if end or seconds is not None:
            left_s = seconds or 0.0
            stub.SetMaintenance(pb.SetMaintenanceRequest(seconds=left_s), timeout=QUICK_S)
        else:
            left_s = stub.GetStatus(pb.GetStatusRequest(), timeout=QUICK_S).maintenance_left_s
    if as_json:
        print_json({"maintenance_left_s": left_s})
    elif left_s:
        click.echo(f"maintenance for {duration(left_s)}: no automatic switch")
    else:
        click.echo("no maintenance")
