"""``ha-sync detach``: removes every trace of the engine from the replicated databases."""

from __future__ import annotations

import click

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.client import LONG_S, control
from ha_sync.cli.options import json_option, socket_option, socket_path
from ha_sync.cli.output import message_to_dict, print_json


@click.command()
@click.argument("dataset", required=False, default="")
@socket_option
@json_option
def detach(*, dataset: str, config: str, socket: str | None, as_json: bool) -> None:
    """Remove triggers, logs and guards from DATASET, or from all datasets."""
    with control(socket_path(config, socket)) as engine:
        answer = engine.Detach(pb.DetachRequest(dataset=dataset), timeout=LONG_S)
    if as_json:
        print_json(message_to_dict(answer))
        return
    click.echo("\n".join(answer.removed) or "nothing to remove")
