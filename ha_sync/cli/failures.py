"""How a failure is told: one sentence on standard error for a person, its facts for a program."""

from __future__ import annotations

import click

from ha_sync.errors import ConfigFault, HaSyncError


def facts_of(error: HaSyncError) -> dict[str, object]:
    """The error as JSON: a stable contract."""
    facts: dict[str, object] = {
        "kind": type(error).__name__,
        "exit_code": error.exit_code,
        "message": error.sentence(),
        "attempted": error.attempted,
        "subject": error.subject,
        "reason": error.reason,
        "hint": error.hint,
    }
    if isinstance(error, ConfigFault):
        facts["faults"] = list(error.faults)
    return facts


def say(error: HaSyncError) -> None:
    """Tells a person of a failure; also of one that does not end the command."""
    click.echo(f"ha-sync: {error.sentence()}", err=True)
