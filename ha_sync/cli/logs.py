"""``ha-sync logs``: what happened on this node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import click

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.cli.client import QUICK_S, agent
from ha_sync.cli.event_feed import Told, past, sources
from ha_sync.cli.event_feed import follow as follow_events
from ha_sync.cli.options import agent_option, agent_socket_path, json_option, socket_path
from ha_sync.cli.output import message_to_dict, print_json
from ha_sync.cli.switch_lines import RESULTS, heading, lines_of
from ha_sync.cli.times import Since

LIMIT_MAX = 1_000_000

_since = click.option("--since", type=Since(), default=None, help="An age (10m, 2h, 3d) or a time (ISO 8601).")
_follow = click.option("--follow", is_flag=True, help="Go on with what happens, until interrupted.")


@click.group()
def logs() -> None:
    """Read the logs of this node."""


@logs.command()
@agent_option
@json_option
@_since
@click.option("--limit", type=click.IntRange(1, LIMIT_MAX), default=1000, show_default=True, help="The newest so many.")
@_follow
@click.option("--source", type=click.Choice(["engine", "agent"]), default=None, help="Only this one. [default: both]")
def events(
    *,
    config: str,
    socket: str | None,
    agent_socket: str | None,
    as_json: bool,
    since: float | None,
    limit: int,
    follow: bool,
    source: str | None,
) -> None:
    """List events of the engine and of the agent by time, oldest first; with --json one object a line."""
    paths = (socket_path(config, socket), agent_socket_path(config, socket, agent_socket))

    def show(event: Told) -> None:
        if as_json:
            print_json(asdict(event))
        else:
            click.echo(event.line())

    try:
        known = past(sources(*paths, source or ""), since or 0.0, limit)
        for event in known.events:
            show(event)
        if follow:
            follow_events(known, since or 0.0, show)
    except KeyboardInterrupt:
        return


@logs.command()
@agent_option
@json_option
@_since
@click.option("--limit", type=click.IntRange(1, LIMIT_MAX), default=100, show_default=True, help="The newest so many.")
@_follow
@click.option("--result", type=click.Choice(RESULTS), default=None, help="Only those that ended so.")
def switch(
    *,
    config: str,
    socket: str | None,
    agent_socket: str | None,
    as_json: bool,
    since: float | None,
    limit: int,
    follow: bool,
    result: str | None,
) -> None:
    """List the switches of this node, oldest first; with --json one object a line, with health and positions.

    With --follow an entry comes again whenever it has changed.
    """
    request = pb.ListSwitchesRequest(since_unix_s=since or 0.0, limit=limit, follow=follow, result=result or "")
    with agent(agent_socket_path(config, socket, agent_socket)) as stub:
        found = stub.ListSwitches(request, timeout=None if follow else QUICK_S)
        try:
            _show_switches(found, as_json=as_json)
        except KeyboardInterrupt:
            found.cancel()


def _show_switches(found: Iterable[pb.SwitchRecord], *, as_json: bool) -> None:
    headed = as_json
    for record in found:
        if as_json:
            print_json(message_to_dict(record))
            continue
        lines = lines_of(record) if headed else [heading(), *lines_of(record)]
        headed = True
        click.echo("\n".join(lines))
