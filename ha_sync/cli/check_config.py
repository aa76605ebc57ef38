"""``ha-sync check-config``: says everything that is wrong with ``sync.toml`` before the engine is restarted."""

from __future__ import annotations

import click

from ha_sync.cli.options import config_option, json_option
from ha_sync.cli.output import print_json, table
from ha_sync.config import Settings, load


@click.command()
@config_option
@json_option
def check_config(*, config: str, as_json: bool) -> None:
    """Check the settings; all faults are listed, and the exit code is then 2."""
    settings = load(config)
    if as_json:
        print_json(_facts(config, settings))
        return
    rows = [(d.name, d.kind.value, d.priority.name.lower(), d.path) for d in settings.datasets]
    click.echo(f"{config}: no faults")
    if rows:
        click.echo("\n".join(table(("DATASET", "KIND", "PRIORITY", "PATH"), rows)))
    for notice in settings.notices:
        click.echo(f"notice: {notice}")


def _facts(config: str, settings: Settings) -> dict[str, object]:
    return {
        "config": config,
        "datasets": [
            {"name": d.name, "kind": d.kind.value, "priority": d.priority.name.lower(), "path": d.path}
            for d in settings.datasets
        ],
        "notices": list(settings.notices),
    }
