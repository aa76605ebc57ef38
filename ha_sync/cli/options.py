"""Options that more than one verb takes, and the places of the two sockets that follow from them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

import click

from ha_sync.config import DEFAULT_CONFIG, NodeSettings, load_node

AGENT_SOCKET_NAME = "agent.sock"

EPOCH_MAX = 2**63 - 1
"""What every part can store."""

_F = TypeVar("_F", bound=Callable[..., object])


def config_option(function: _F) -> _F:
    """``--config FILE``; the verb gets ``config: str``."""
    option = click.option(
        "--config",
        default=DEFAULT_CONFIG,
        show_default=True,
        envvar="HA_SYNC_CONFIG",
        show_envvar=True,
        metavar="FILE",
        help="The settings of this node.",
    )
    return option(function)


def socket_option(function: _F) -> _F:
    """``--config`` and ``--socket``; the verb gets ``config: str`` and ``socket: str | None``: see ``socket_path``."""
    option = click.option(
        "--socket",
        default=None,
        envvar="HA_SYNC_SOCKET",
        show_envvar=True,
        metavar="PATH",
        help="The engine's control socket. [default: run_dir of the settings]",
    )
    return config_option(option(function))


def agent_option(function: _F) -> _F:
    """``--agent-socket`` and those of ``socket_option``; the verb gets ``agent_socket: str | None`` too."""
    option = click.option(
        "--agent-socket",
        default=None,
        envvar="HA_SYNC_AGENT_SOCKET",
        show_envvar=True,
        metavar="PATH",
        help="The agent's socket. [default: agent.sock beside the engine's]",
    )
    return socket_option(option(function))


def json_option(function: _F) -> _F:
    """``--json``; the verb gets ``as_json: bool``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON: a stable contract.")(function)


def socket_path(config: str, socket: str | None) -> str:
    """Where the engine listens: what was given, else what the settings say, else the default place."""
    if socket is not None:
        return socket
    if config == DEFAULT_CONFIG and not os.path.exists(config):
        return NodeSettings().socket_path
    return load_node(config).socket_path


def agent_socket_path(config: str, socket: str | None, agent_socket: str | None) -> str:
    """Where the agent listens: what was given, else beside the engine."""
    if agent_socket is not None:
        return agent_socket
    return os.path.join(os.path.dirname(socket_path(config, socket)), AGENT_SOCKET_NAME)
