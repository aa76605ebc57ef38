"""``ha-sync attach``: installs what capture by rows needs, at a moment of the administrator's choice."""

from __future__ import annotations

import click

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.client import LONG_S, control
from ha_sync.cli.options import json_option, socket_option, socket_path
from ha_sync.cli.output import message_to_dict, print_json


@click.command()
@click.argument("dataset")
@socket_option
@json_option
def attach(*, dataset: str, config: str, socket: str | None, as_json: bool) -> None:
    """Install capture in the database of DATASET now.

    Best while its program is stopped: some programs do not take a schema change while they run (docs/writer-notes.md).
    """
    with control(socket_path(config, socket)) as engine:
        answer = engine.Attach(pb.AttachRequest(dataset=dataset), timeout=LONG_S)
    if as_json:
        print_json(message_to_dict(answer))
        return
    click.echo("\n".join(answer.installed) or f"{dataset}: nothing was missing")
