"""``ha-sync version``."""

from __future__ import annotations

import platform
from importlib import metadata

import apsw
import click
import grpc

from ha_sync.cli.options import json_option
from ha_sync.cli.output import print_json


@click.command()
@json_option
def version(*, as_json: bool) -> None:
    """Tell the versions of this program and of what it stands on."""
    found = versions()
    if as_json:
        print_json(found)
    else:
        rest = ", ".join(f"{name} {number}" for name, number in found.items() if name != "ha_sync")
        click.echo(f"ha-sync {found['ha_sync']} ({rest})")


def versions() -> dict[str, str]:
    """Each by its name."""
    return {
        "ha_sync": metadata.version("ha-sync"),
        "python": platform.python_version(),
        "sqlite": apsw.sqlite_lib_version(),
        "grpc": grpc.__version__,
    }
