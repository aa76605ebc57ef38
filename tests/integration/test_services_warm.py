"""A service that runs in both roles is started once, with the agent, and no switch touches it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ha_agent.commands import Commands
from ha_agent.services import Services
from ha_agent.settings import OnStandby, ServiceSettings


@pytest.fixture
async def services(tmp_path: Path) -> AsyncIterator[Services]:
    said = tmp_path / "said"

    def hook(text: str) -> tuple[str, ...]:
        return ("/bin/sh", "-c", f"echo {text} >>{said}")

    commands, executor = Commands(), ThreadPoolExecutor(1)
    yield Services(
        (
            ServiceSettings(name="proxy", start=hook("proxy on"), stop=hook("proxy off"), standby=OnStandby.RUNNING),
            ServiceSettings(name="pbx", start=hook("pbx on"), stop=hook("pbx off")),
        ),
        commands,
        executor,
        lambda _severity, _what, _fields: None,
        condition_file=str(tmp_path / "active"),
    )
    commands.close()
    executor.shutdown()


@pytest.mark.req("R16")
async def test_a_warm_service_is_started_once_and_left_alone(services: Services, tmp_path: Path) -> None:
    assert (await services.warm()).ok
    assert (await services.stop()).ok
    assert (await services.start(epoch=3)).ok
    assert (await services.stop()).ok
    assert (tmp_path / "said").read_text().split("\n") == ["proxy on", "pbx off", "pbx on", "pbx off", ""]
