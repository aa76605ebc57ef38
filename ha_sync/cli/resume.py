"""``ha-sync resume``: a person lets a halted dataset go on."""

from __future__ import annotations

import click

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.client import LONG_S, control
from ha_sync.cli.options import json_option, socket_option, socket_path
from ha_sync.cli.output import print_json


@click.command()
@click.argument("dataset")
@click.option(
    "--accept-deletes", is_flag=True, help="The files that are gone are meant to be gone: delete them there too."
)
@socket_option
@json_option
def resume(*, dataset: str, accept_deletes: bool, config: str, socket: str | None, as_json: bool) -> None:
    """Let DATASET go on after a guard has halted it."""
    with control(socket_path(config, socket)) as engine:
        engine.Resume(pb.ResumeRequest(dataset=dataset, accept_deletes=accept_deletes), timeout=LONG_S)
    if as_json:
        print_json({"dataset": dataset, "resumed": True})
    else:
        click.echo(f"{dataset}: resumed")
