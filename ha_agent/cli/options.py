"""``--config FILE`` of every verb."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

DEFAULT_CONFIG = "/etc/ha-sync/ha.toml"

_F = TypeVar("_F", bound=Callable[..., object])


def config_option(function: _F) -> _F:
    """The verb gets ``config: str``."""
    option = click.option(
        "--config",
        default=DEFAULT_CONFIG,
        show_default=True,
        envvar="HA_AGENT_CONFIG",
        show_envvar=True,
        metavar="FILE",
        help="The HA settings of this node.",
    )
    return option(function)
