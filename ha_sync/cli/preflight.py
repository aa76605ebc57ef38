"""``ha-sync preflight``: whether the two nodes of the pair fit, one line a check; ends with 6 where one fails."""

from __future__ import annotations

from collections.abc import Iterable

import click

from ha_proto.sync.v1 import life_pb2 as pb
from ha_proto.sync.v1 import life_pb2_grpc
from ha_sync.cli.client import ENGINE, LONG_S, Daemon, talk
from ha_sync.cli.options import json_option, socket_option, socket_path
from ha_sync.cli.output import message_to_dict, plain, print_json, table
from ha_sync.errors import Refused

LIFE = Daemon(name=ENGINE.name, command=ENGINE.command, stub=life_pb2_grpc.LifeServiceStub)
COLOURS = {"pass": "green", "warn": "yellow", "fail": "red"}
FAILS_EXIT = Refused.exit_code


@click.command()
@socket_option
@json_option
@click.pass_context
def preflight(ctx: click.Context, *, config: str, socket: str | None, as_json: bool) -> None:
    """Check whether the two nodes fit: model, firmware, addresses, storages, clocks, ports, rights and more.

    Each line is pass, warn or fail, with what was found on this node and on the other. What no program can see is to be
    confirmed by hand, or is told by the vendor's command: see [vendor] in docs/ha-toml.md. A node that joins is checked
    by `ha-sync pair join` too.
    """
    with talk(LIFE, socket_path(config, socket)) as stub:
        answer = stub.Preflight(pb.PreflightRequest(), timeout=LONG_S)
    if as_json:
        print_json(message_to_dict(answer))
    else:
        for line in lines_of(answer.checks):
            click.echo(line)
    if answer.verdict == "fail":
        ctx.exit(FAILS_EXIT)


def lines_of(checks: Iterable[pb.Check]) -> list[str]:
    """A table, and below it what to do."""
    found = list(checks)
    rows = [(one.verdict, plain(one.name), plain(one.mine), plain(one.theirs)) for one in found]
    lines = table(("", "CHECK", "THIS NODE", "THE OTHER"), rows)
    coloured = [lines[0]]
    for line, one in zip(lines[1:], found, strict=True):
        coloured.append(click.style(line[:4], fg=COLOURS[one.verdict]) + line[4:])
    remedies = [f"{one.verdict} {plain(one.name)}: {plain(one.remedy)}" for one in found if one.remedy]
    return [*coloured, *(["", *remedies] if remedies else [])]
