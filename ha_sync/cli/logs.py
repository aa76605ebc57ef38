"""``ha-sync logs``: what happened on this node."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import Final

import click

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.client import QUICK_S, control
from ha_sync.cli.options import json_option, socket_option, socket_path
from ha_sync.cli.output import message_to_dict, print_json

LIMIT_MAX = 1_000_000
_AGO: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd])\Z")
_UNIT_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Since(click.ParamType[float]):
    """``10m`` ago, or a date and time in ISO 8601 (local time where it names no zone); becomes unix seconds."""

    name = "when"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Unix seconds."""
        if isinstance(value, float):
            return value
        text = str(value)
        try:
            if match := _AGO.match(text):
                ago = timedelta(seconds=float(match.group(1)) * _UNIT_S[match.group(2)])
                return max(0.0, (datetime.now(UTC) - ago).timestamp())
            return datetime.fromisoformat(text).astimezone().timestamp()
        except (ValueError, OverflowError):
            self.fail(f'{text!r}: give an age like 10m, 2h or 3d, or a time like "2026-11-22 10:00"', param, ctx)


@click.group()
def logs() -> None:
    """Read the logs of this node."""


@logs.command()
@socket_option
@json_option
@click.option("--since", type=Since(), default=None, help="An age (10m, 2h, 3d) or a time (ISO 8601).")
@click.option("--limit", type=click.IntRange(1, LIMIT_MAX), default=1000, show_default=True, help="The newest so many.")
@click.option("--follow", is_flag=True, help="Go on with what happens, until interrupted.")
def events(*, config: str, socket: str | None, as_json: bool, since: float | None, limit: int, follow: bool) -> None:
    """List events, oldest first; with --json one object a line."""
    request = pb.ListEventsRequest(since_unix_s=since or 0.0, limit=limit, follow=follow)
    with control(socket_path(config, socket)) as engine:
        found = engine.ListEvents(request, timeout=None if follow else QUICK_S)
        try:
            for event in found:
                if as_json:
                    print_json(message_to_dict(event))
                else:
                    click.echo(line_of(event))
        except KeyboardInterrupt:
            found.cancel()


def line_of(event: pb.Event) -> str:
    """One event for a person, in local time."""
    assert math.isfinite(event.unix_s), event
    when = datetime.fromtimestamp(event.unix_s, UTC).astimezone().isoformat(sep=" ", timespec="milliseconds")
    fields = " ".join(f"{name}={event.fields[name]}" for name in sorted(event.fields))
    return f"{when} {event.severity:<7} {event.what} {fields}".rstrip()
