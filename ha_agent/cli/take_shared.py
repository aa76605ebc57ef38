"""``ha-agent take-shared``: puts the pair's shared settings into ha.toml; `ha-sync pair join` calls it.

A running agent gets them by itself. Refused where one runs, because it alone may change its file then.
"""

from __future__ import annotations

import os
import socket
import sys

import click

from ha_agent.cli.options import config_option
from ha_agent.errors import WrongState
from ha_agent.settings import load_node
from ha_agent.settings.saving import read
from ha_proto.agent.v1 import settings_pb2

TEXT_MAX = 1 << 21


@click.command("take-shared")
@click.argument("version")
@config_option
def take_shared(*, version: str, config: str) -> None:
    """Read shared settings (JSON) from standard input and put them into the file, whole or not at all."""
    from ha_agent.memory.shared import SharedStore
    from ha_agent.service.settings import take_shared as take

    path = os.path.abspath(config)
    read(path)
    node = load_node(path)
    if _answers(node.socket_path):
        raise WrongState(
            "cannot take shared settings", reason="the agent runs, and gets them from the Active by itself"
        )
    shared = settings_pb2.SharedSettings(version=version, text=sys.stdin.read(TEXT_MAX))
    os.makedirs(node.state_dir, mode=0o700, exist_ok=True)
    for changed in take(path, SharedStore(node.state_dir), shared):
        click.echo(changed)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
        return True
