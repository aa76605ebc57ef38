"""The engine's two ports that are closed unless the settings say where they listen: metrics and the API.

What they need is loaded only where one is open. Each asks and serves through the daemons' unix sockets alone.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncIterator

from ha_sync.config import Settings
from ha_sync.pairing.gate import Refusals
from ha_sync.service.attach import SOCKET_NAME

log = logging.getLogger(__name__)


@contextlib.asynccontextmanager
async def open_ports(settings: Settings, refusals: Refusals) -> AsyncIterator[None]:
    """Opens what is switched on. Raises OperatorNeeded where it cannot."""
    metrics, api = settings.metrics, settings.api
    engine_path = settings.node.socket_path
    agent_path = os.path.join(settings.node.run_dir, SOCKET_NAME)
    async with contextlib.AsyncExitStack() as stack:
        if metrics.listen:
            from ha_sync.service.metrics_port import Asker, metrics_port

            asker = Asker(engine_path, agent_path)
            stack.push_async_callback(asker.close)
            await stack.enter_async_context(metrics_port(metrics.listen, asker))
            log.info("metrics are served", extra={"addresses": ", ".join(metrics.listen)})
        if api.listen:
            from ha_sync.service.api_port import api_port

            opened = api_port(api, engine_path=engine_path, agent_path=agent_path, refusals=refusals)
            await stack.enter_async_context(opened)
            log.info("API port open", extra={"addresses": ", ".join(api.listen)})
        yield
