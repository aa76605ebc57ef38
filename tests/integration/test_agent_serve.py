"""``ha-sync serve`` without a role: the engine's process and the agent that gives it one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ha_sync.catalogue.engine import EngineState, admit
from ha_sync.core.dataset import Role
from ha_sync.core.position import Epoch
from ha_sync.errors import Fenced
from tests.integration.test_agent_attach import Ends, listening
from tests.support.client import ha_sync, start_ha_sync
from tests.support.small_pair import until

TOML = """
[node]
name = "alone"
state_dir = "{root}/state"
run_dir = "{root}/run"
listen = "127.0.0.1:0"
peer = "127.0.0.1:9"

[[dataset]]
name = "files"
kind = "tree"
path = "{root}/files"
"""


def node(root: Path, *, was: Role | None, epoch: int = 4, reserved: int = 0) -> Path:
    """A node that ran before; its settings."""
    for name in ("files", "run", "state"):
        (root / name).mkdir()
    config = root / "sync.toml"
    config.write_text(TOML.format(root=root))
    if was is not None:
        state = EngineState(str(root / "state" / "engine.db"))
        state.take(was, Epoch(epoch))
        if reserved:
            state.reserve(Epoch(reserved))
        state.close()
    return config


@contextlib.asynccontextmanager
async def served(config: Path) -> AsyncIterator[str]:
    """The engine's process; its control socket."""
    engine = start_ha_sync("serve", "--config", config, "--log-level", "error")
    socket = config.parent / "run" / "sync.sock"
    try:
        await asyncio.to_thread(until, lambda: _answers(str(socket)), "the engine's socket")
        yield str(socket)
    finally:
        engine.terminate()
        await asyncio.to_thread(engine.communicate)


def _answers(socket: str) -> bool:
    return ha_sync("status", "--json", "--socket", socket).code == 0


def _dataset(socket: str) -> dict[str, object]:
    """What the engine says of its only dataset."""
    [dataset] = ha_sync("status", "--json", "--socket", socket).json["datasets"]
    return dict(dataset)


async def role_of(socket: str) -> str:
    outcome = await asyncio.to_thread(ha_sync, "status", "--json", "--socket", socket)
    return str(outcome.json["role"])


@contextlib.asynccontextmanager
async def agent(config: Path) -> AsyncIterator[Ends]:
    async with listening(str(config.parent / "run" / "agent.sock")) as ends:
        yield ends


@pytest.mark.req("R15")
async def test_a_standby_goes_on_as_such_at_once_and_takes_no_role_by_hand(run_dir: Path) -> None:
    config = node(run_dir, was=Role.STANDBY)
    async with served(config) as socket:
        assert await role_of(socket) == "standby"
        refused = await asyncio.to_thread(ha_sync, "role", "active", "--epoch", 9, "--socket", socket)
        assert refused.code == 3
        assert "the agent of this node decides it" in refused.err


@pytest.mark.req("R12", "R13")
async def test_a_former_active_waits_for_its_agent_and_goes_on_in_its_epoch(run_dir: Path) -> None:
    config = node(run_dir, was=Role.ACTIVE, epoch=4)
    async with served(config) as socket:
        assert await role_of(socket) == "starting"
        async with agent(config) as ends:
            report = await ends.until_reported(lambda report: True)
            assert (report.role, report.promised, report.data, report.sound) == ("starting", 4, 4, True)
            ends.link.direct("active", 4, active_at="192.0.2.53")
            await ends.until_reported(lambda report: report.promoted == 4)
        # The agent is gone: what it said last stands.
        assert await role_of(socket) == "active"


@pytest.mark.req("R12", "R13")
async def test_a_promotion_that_a_crash_cut_short_is_done_again_in_its_epoch(run_dir: Path) -> None:
    config = node(run_dir, was=Role.STANDBY, epoch=4, reserved=5)
    async with served(config), agent(config) as ends:
        ends.link.direct("active", 5, active_at="192.0.2.53")
        report = await ends.until_reported(lambda report: report.promoted == 5)
        assert report.role == "active"


@pytest.mark.req("R13")
def test_an_epoch_of_another_node_is_not_served_because_it_was_seen(tmp_path: Path) -> None:
    state = EngineState(str(tmp_path / "engine.db"))
    state.take(Role.STANDBY, Epoch(4))
    state.promise(Epoch(5))
    with pytest.raises(Fenced):
        admit(state.stored, role=Role.ACTIVE, epoch=Epoch(5))
    state.reserve(Epoch(7))
    admit(state.stored, role=Role.ACTIVE, epoch=Epoch(7))
    state.promise(Epoch(8))
    with pytest.raises(Fenced):
        admit(state.stored, role=Role.ACTIVE, epoch=Epoch(7))
    state.close()
    again = EngineState(str(tmp_path / "engine.db"))
    assert (again.stored.role, again.stored.promised, again.stored.served) == (Role.STANDBY, 8, 7)
    again.close()


@pytest.mark.req("R32")
async def test_an_engine_whose_dataset_stands_still_says_so_to_its_agent(run_dir: Path) -> None:
    config = node(run_dir, was=Role.ACTIVE, epoch=4)
    async with served(config) as socket, agent(config) as ends:
        ends.link.direct("active", 4, active_at="192.0.2.53")
        sound = await ends.until_reported(lambda report: report.promoted == 4)
        assert [one.what for one in sound.troubles] == []
        # Before its capture has found the folder, a folder that is not there was never there.
        await asyncio.to_thread(until, lambda: _dataset(socket)["reason"] == "no standby", "the capture")
        # Somebody took the folder away: a guard halts the dataset rather than delete everything on the Standby.
        (run_dir / "files").rename(run_dir / "elsewhere")
        report = await ends.until_reported(lambda report: len(report.troubles) > 0)
        assert [(one.severity, one.what, one.subject) for one in report.troubles] == [
            ("error", "dataset halted", "files")
        ]
        assert report.troubles[0].fields["reason"]
        assert report.run
        (run_dir / "elsewhere").rename(run_dir / "files")
        resumed = await asyncio.to_thread(ha_sync, "resume", "files", "--socket", socket)
        assert resumed.code == 0, resumed.err
        await ends.until_reported(lambda report: not report.troubles)
