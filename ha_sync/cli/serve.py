"""``ha-sync serve``: runs the engine of this node until SIGTERM or SIGINT.

Under systemd (``Type=notify``, ``WatchdogSec``) it says that it is ready when its control socket answers, that it is
alive while its loop turns, and that it stops when it was told to. Everything that is logged goes to standard error.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Iterator

import click

from ha_sync.cli.log_lines import LEVELS, log_to_stderr
from ha_sync.cli.options import EPOCH_MAX, config_option
from ha_sync.config import Settings, load
from ha_sync.core.dataset import Role
from ha_sync.core.position import Epoch
from ha_sync.errors import HaSyncError

READY_LOOK_S = 0.05
WATCHDOG_SHARE = 4
"""So many signs of life within the time after which the service manager kills."""


log = logging.getLogger(__name__)


@click.command()
@config_option
@click.option(
    "--role",
    "role_name",
    type=click.Choice([role.value for role in Role]),
    default=None,
    help="Run without an agent, in this role. [default: the agent of this node decides]",
)
@click.option(
    "--epoch", type=click.IntRange(1, EPOCH_MAX), default=None, help="In which it has that role. [default: 1]"
)
@click.option(
    "--log-level", type=click.Choice(list(LEVELS)), default="info", show_default=True, help="The least that is logged."
)
def serve(*, config: str, role_name: str | None, epoch: int | None, log_level: str) -> None:
    """Run the replication engine of this node.

    Its role is what the agent says (`ha-agent run`); without an agent yet it waits, a Standby goes on as Standby.
    """
    if role_name is None and epoch is not None:
        raise click.UsageError("--epoch belongs to --role: without a role the agent decides both")
    settings = load(config)
    log_to_stderr(log_level)
    try:
        asyncio.run(_serve(settings, Role(role_name) if role_name else None, Epoch(epoch or 1)))
    except BaseExceptionGroup as group:
        # The first error that names a remedy is what the operator needs; the others followed from it.
        raise next(_known(group), group) from group


async def _serve(settings: Settings, role: Role | None, epoch: Epoch) -> None:
    from ha_sync.service.engine import run

    # What is loaded lives as long as the process: a collection need not walk through it, which takes 10 ms and more.
    gc.collect()
    gc.freeze()
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        engine = tasks.create_task(run(settings, role=role, epoch=epoch))
        ready = tasks.create_task(_announce_ready(settings.node.socket_path))
        alive = tasks.create_task(_announce_life())
        for stop in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(stop, _stop, engine)
        try:
            await asyncio.wait((engine,))
        finally:
            ready.cancel()
            alive.cancel()


def _stop(engine: asyncio.Task[None]) -> None:
    log.info("stopping")
    notify_systemd("STOPPING=1")
    engine.cancel()


async def _announce_ready(path: str) -> None:
    while "NOTIFY_SOCKET" in os.environ:
        try:
            _, writer = await asyncio.open_unix_connection(path)
        except OSError:
            await asyncio.sleep(READY_LOOK_S)
            continue
        writer.close()
        notify_systemd("READY=1")
        return


async def _announce_life() -> None:
    """As long as the loop turns, and where the service manager watches it (``WatchdogSec``)."""
    stated = os.environ.get("WATCHDOG_USEC", "")
    watched_us = int(stated) if stated.isdigit() else 0
    while watched_us > 0:
        notify_systemd("WATCHDOG=1")
        await asyncio.sleep(watched_us / 1_000_000 / WATCHDOG_SHARE)


def notify_systemd(state: str) -> None:
    """Tells the service manager, where there is one (sd_notify(3)); its absence is no fault."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as datagram:
        try:
            datagram.sendto(state.encode(), address)
        except OSError as error:
            log.warning("the service manager does not take notifications", extra={"error": str(error)})


def _known(group: BaseExceptionGroup[BaseException]) -> Iterator[HaSyncError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _known(error)
        elif isinstance(error, HaSyncError):
            yield error
