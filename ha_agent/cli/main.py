"""``ha-agent``: the entry point. The verbs are loaded when it is decided what this process does without."""

from __future__ import annotations

from collections.abc import Sequence

from ha_agent.cli.spared import spare


def main(arguments: Sequence[str] | None = None) -> None:
    """Always leaves by ``SystemExit``."""
    spare()
    from ha_agent.cli.verbs import obey  # not before: it brings asyncio

    obey(arguments)
