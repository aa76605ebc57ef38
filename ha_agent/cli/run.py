"""``ha-agent run``: the agent of this node until SIGTERM or SIGINT.

Under systemd (``Type=notify``, ``WatchdogSec``) it says that it is ready when its socket answers, and that it is alive
while its loop turns: a frozen agent is killed, and with it the services that must not go on over a lapsed address. What
is logged goes to standard error.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator

import click

from ha_agent.cli.log_lines import LEVELS, log_to_stderr
from ha_agent.cli.options import config_option
from ha_agent.errors import AgentError
from ha_agent.service.process import Stopping
from ha_agent.service.process import run as run_agent
from ha_agent.settings import Settings, load

READY_LOOK_S = 0.05
ALIVE_EVERY_S = 0.5

log = logging.getLogger("ha_agent")


@click.command()
@config_option
@click.option(
    "--log-level", type=click.Choice(list(LEVELS)), default="info", show_default=True, help="The least that is logged."
)
def run(*, config: str, log_level: str) -> None:
    """Run the agent of this node."""
    settings = load(config)
    log_to_stderr(log_level)
    try:
        asyncio.run(_run(settings, os.path.abspath(config)))
    except BaseExceptionGroup as group:
        # The first error that names a remedy is what the operator needs; the others followed from it.
        raise next(_known(group), group) from group


async def _run(settings: Settings, path: str) -> None:
    loop = asyncio.get_running_loop()
    stopping = Stopping(asked=asyncio.Event())
    for stop in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(stop, _stop, stopping)
    if settings.pair is not None and "WATCHDOG_USEC" in os.environ:
        # The unit cannot know the timeout of this pair. A frozen agent is killed when its address has lapsed.
        notify_systemd(f"WATCHDOG_USEC={round(settings.pair.lease_s * 1_000_000)}")
    ready = loop.create_task(_announce_ready(settings.node.socket_path))
    try:
        await run_agent(settings, stopping, path=path, on_tick=_alive())
    finally:
        ready.cancel()


def _stop(stopping: Stopping) -> None:
    log.info("stopping")
    notify_systemd("STOPPING=1")
    stopping.ask()


def _alive() -> Callable[[], None]:
    said = float("-inf")

    def tick() -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= ALIVE_EVERY_S:
            said = now
            notify_systemd("WATCHDOG=1")

    return tick


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


def notify_systemd(state: str) -> None:
    """Tells the service manager, where there is one (sd_notify(3)); its absence is no fault."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as datagram:
        try:
            datagram.sendto(state.encode(), address)
        except OSError as error:
            log.warning("the service manager does not take notifications", extra={"error": str(error)})


def _known(group: BaseExceptionGroup[BaseException]) -> Iterator[AgentError]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _known(error)
        elif isinstance(error, AgentError):
            yield error
