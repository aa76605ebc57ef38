"""``ha-agent check-config``: everything that is wrong with ``ha.toml``, and whether this machine can carry it out."""

from __future__ import annotations

import click

from ha_agent.agent.building import LOOPBACK, STAND_IN, check_machine
from ha_agent.alarms.secret import problem_of
from ha_agent.cli.options import config_option
from ha_agent.settings import load


@click.command("check-config")
@config_option
@click.option(
    "--offline", is_flag=True, help="Only the file; not the interfaces, addresses, rights and secrets of this machine."
)
def check_config(*, config: str, offline: bool) -> None:
    """List all faults of the settings; ends with 2 if there are any."""
    settings = load(config)
    warnings = list(settings.warnings)
    if settings.pair is not None and settings.pair.interface == LOOPBACK:
        warnings.append(STAND_IN)
    elif settings.pair is not None and not offline:
        warnings += check_machine(settings.pair, proc_dir=settings.node.proc_dir).warnings
    if not offline:
        files = dict.fromkeys(target.secret_file for target in settings.alarms.everyone if target.secret_file)
        warnings += [problem for path in files if (problem := problem_of(path))]
    for warning in warnings:
        click.echo(f"warning: {warning}")
    click.echo(f"{config}: " + ("HA is off" if settings.pair is None else "no faults"))
