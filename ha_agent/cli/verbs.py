"""One verb per file. Every failure that the program knows leaves as one sentence and its exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from ha_agent.cli.check_config import check_config
from ha_agent.cli.facts import facts
from ha_agent.cli.release import release
from ha_agent.cli.run import run
from ha_agent.cli.take_shared import take_shared
from ha_agent.errors import AgentError, ConfigFault


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """The agent of a node: heartbeats, the role, the cluster IP. Operated with `ha-sync`."""


cli.add_command(run)
cli.add_command(check_config)
cli.add_command(facts)
cli.add_command(release)
cli.add_command(take_shared)


def obey(arguments: Sequence[str] | None) -> None:
    """Does what the arguments (None: the process's) say; always leaves by ``SystemExit``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        code = cli.main(args=given, prog_name="ha-agent", standalone_mode=False)
    except AgentError as error:
        _tell(error)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = 130
    raise SystemExit(code if isinstance(code, int) else 0)


def _tell(error: AgentError) -> None:
    if isinstance(error, ConfigFault):
        click.echo(f"ha-agent: {error.attempted} {error.subject}:", err=True)
        for fault in error.faults:
            click.echo(f"  {fault}", err=True)
    else:
        click.echo(f"ha-agent: {error.sentence()}", err=True)
