"""``ha-sync logs``: what happened on this node."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict
from typing import TypeVar

import click

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_proto.sync.v1 import control_pb2
from ha_sync.cli import run_lines
from ha_sync.cli.client import QUICK_S, agent, control
from ha_sync.cli.event_feed import Told, past, sources
from ha_sync.cli.event_feed import follow as follow_events
from ha_sync.cli.options import agent_option, agent_socket_path, json_option, socket_option, socket_path
from ha_sync.cli.output import message_to_dict, print_json
from ha_sync.cli.switch_lines import RESULTS, heading, lines_of
from ha_sync.cli.times import Since

LIMIT_MAX = 1_000_000

_F = TypeVar("_F", bound=Callable[..., object])

_since = click.option("--since", type=Since(), default=None, help="An age (10m, 2h, 3d) or a time (ISO 8601).")
_follow = click.option("--follow", is_flag=True, help="Go on with what happens, until interrupted.")


def _run_options(function: _F) -> _F:
    """What the backup log and the storage log can be asked."""
    limit = click.IntRange(1, LIMIT_MAX)
    for option in (
        click.option("--run", "run_id", metavar="ID", default=None, help="This run alone, and what it found."),
        _follow,
        click.option("--limit", type=limit, default=None, help="The newest so many. [default: 100]"),
        click.option("--kind", type=click.Choice(run_lines.KINDS), default=None, help="Only those of this kind."),
        click.option("--result", type=click.Choice(run_lines.RESULTS), default=None, help="Only those that ended so."),
        _since,
        json_option,
        socket_option,
    ):
        function = option(function)
    return function


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


@logs.command()
@_run_options
def backup(*, config: str, socket: str | None, as_json: bool, run_id: str | None, **wanted: object) -> None:
    """List full backups, full syncs, packages and merges of this node, oldest first; with --json one object a line.

    With --follow a run comes when it begins and again when it has ended. With --run its findings stand below it.
    """
    _runs("backup", socket_path(config, socket), as_json=as_json, run_id=run_id, wanted=wanted)


@logs.command()
@_run_options
def storage(*, config: str, socket: str | None, as_json: bool, run_id: str | None, **wanted: object) -> None:
    """List the synchronisations with external storage of this node, oldest first; with --json one object a line.

    With --follow a run comes when it begins and again when it has ended. With --run its findings stand below it.
    """
    _runs("storage", socket_path(config, socket), as_json=as_json, run_id=run_id, wanted=wanted)


def _runs(log: str, path: str, *, as_json: bool, run_id: str | None, wanted: dict[str, object]) -> None:
    given = {name: value for name, value in wanted.items() if value not in {None, False}}
    if run_id is not None:
        if given:
            raise click.UsageError(f"--run tells of one run: leave out --{', --'.join(sorted(given))}")
        _one_run(log, path, run_id, as_json=as_json)
        return
    if "since" in given:
        given["since_unix_s"] = given.pop("since")
    request = control_pb2.ListRunsRequest(log=log, **given)  # type: ignore[arg-type]
    with control(path) as stub:
        found = stub.ListRuns(request, timeout=None if request.follow else QUICK_S)
        try:
            _show_runs(found, as_json=as_json)
        except KeyboardInterrupt:
            found.cancel()


def _show_runs(found: Iterable[control_pb2.RunRecord], *, as_json: bool) -> None:
    headed = as_json
    for record in found:
        if as_json:
            print_json(message_to_dict(record))
            continue
        lines = run_lines.lines_of(record)
        click.echo("\n".join(lines if headed else [run_lines.heading(), *lines]))
        headed = True


def _one_run(log: str, path: str, run_id: str, *, as_json: bool) -> None:
    if not run_id:
        raise click.UsageError(f"--run: give the id of a run, as `ha-sync logs {log}` shows it")
    with control(path) as stub:
        (record,) = stub.ListRuns(control_pb2.ListRunsRequest(log=log, id=run_id), timeout=QUICK_S)
        request = control_pb2.ListFindingsRequest(log=log, id=run_id)
        findings = list(stub.ListFindings(request, timeout=QUICK_S))
    if as_json:
        print_json(message_to_dict(record) | {"found": [message_to_dict(item) for item in findings]})
        return
    click.echo("\n".join([run_lines.heading(), *run_lines.lines_of(record), *run_lines.finding_lines(findings)]))
