"""``ha-agent facts``: for the preflight of a node whose agent does not run; `ha-sync pair join` calls it."""

from __future__ import annotations

import asyncio
import os

import click

from ha_agent.cli.options import config_option


@click.command()
@config_option
def facts(*, config: str) -> None:
    """Print what the preflight wants to know of this node, as JSON."""
    from google.protobuf.json_format import MessageToJson

    from ha_agent.agent.facts import facts_of

    found = asyncio.run(facts_of(os.path.abspath(config)))
    click.echo(MessageToJson(found, indent=None, preserving_proto_field_name=True))
