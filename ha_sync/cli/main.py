"""``ha-sync``: the operator's one command.

Each verb lives in a file of its own and is imported only when it is used, so that ``ha-sync status`` does not pay for
the engine. Every failure that the program knows leaves as one sentence on standard error and the exit code of its
class; with ``--json`` as one JSON object on standard output instead.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import Final

import click

from ha_sync.cli.failures import facts_of, say
from ha_sync.errors import ConfigFault, HaSyncError

VERBS: Final = {
    "alarms": "ha_sync.cli.alarms",
    "account": "ha_sync.cli.account",
    "attach": "ha_sync.cli.attach",
    "check-config": "ha_sync.cli.check_config",
    "demo": "ha_sync.cli.demo",
    "detach": "ha_sync.cli.detach",
    "divergence": "ha_sync.cli.divergence",
    "doctor": "ha_sync.cli.doctor",
    "full-backup": "ha_sync.cli.full_backup",
    "logs": "ha_sync.cli.logs",
    "maintenance": "ha_sync.cli.maintenance",
    "package": "ha_sync.cli.package",
    "pair": "ha_sync.cli.pair",
    "preflight": "ha_sync.cli.preflight",
    "release": "ha_sync.cli.release",
    "resume": "ha_sync.cli.resume",
    "role": "ha_sync.cli.role",
    "serve": "ha_sync.cli.serve",
    "settings": "ha_sync.cli.settings",
    "single": "ha_sync.cli.single",
    "status": "ha_sync.cli.status",
    "storage": "ha_sync.cli.storage",
    "switch": "ha_sync.cli.switch",
    "upgrade": "ha_sync.cli.upgrade",
    "upgrade-plan": "ha_sync.cli.upgrade_plan",
    "version": "ha_sync.cli.version",
    "wait": "ha_sync.cli.wait",
}
"""Verb and the module that holds its command, under the verb's name with ``_`` for ``-``."""

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class Verbs(click.Group):
    """Imports a verb's module when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """In the order of the alphabet."""
        return sorted(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The verb's command, or None where there is none of that name."""
        if cmd_name not in VERBS:
            return None
        command = getattr(importlib.import_module(VERBS[cmd_name]), cmd_name.replace("-", "_"))
        assert isinstance(command, click.Command), cmd_name
        return command


@click.command(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Hot standby for an IP-PBX: what happens on the Active is on the Standby milliseconds later."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point; always leaves by ``SystemExit``."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in given
    try:
        code = cli.main(args=given, prog_name="ha-sync", standalone_mode=False)
    except HaSyncError as error:
        _tell(error, as_json=as_json)
        code = error.exit_code
    except click.ClickException as error:
        _tell_usage(error, as_json=as_json)
        code = error.exit_code
    except click.Abort:
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) went away: nothing to tell, and nobody to tell it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILED
    raise SystemExit(code if isinstance(code, int) else 0)


def _tell(error: HaSyncError, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"error": facts_of(error)}, ensure_ascii=False))
        return
    if isinstance(error, ConfigFault):
        click.echo(f"ha-sync: {error.attempted} {error.subject}:", err=True)
        for fault in error.faults:
            click.echo(f"  {fault}", err=True)
        return
    say(error)


def _tell_usage(error: click.ClickException, *, as_json: bool) -> None:
    if as_json:
        facts = {"kind": "Usage", "exit_code": error.exit_code, "message": error.format_message()}
        click.echo(json.dumps({"error": facts}, ensure_ascii=False))
    else:
        error.show()
