"""A restore over ``Attach``: it asks its agent for stopped services, is answered, and is interrupted by a role."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest

from ha_sync.errors import Refused
from tests.integration.test_agent_attach import WITHIN_S, FakeNode, attached, listening


@pytest.mark.req("R24")
async def test_a_restore_asks_for_the_services_and_is_answered(run_dir: Path) -> None:
    path = str(run_dir / "agent.sock")
    async with listening(path) as ends, attached(path, FakeNode()) as engine:
        ends.link.direct("active", 4, active_at="")
        await ends.until(lambda: engine.attached)
        asking = asyncio.create_task(engine.restoring.stop_services())
        report = await ends.until_reported(lambda report: report.restore != 0)
        assert report.backup, "nothing is switched away from a restore"
        assert ends.link.restoring
        ends.link.answer_restore(report.restore + 1, stopped=True)  # an answer to another one
        ends.link.answer_restore(report.restore, stopped=False, reason="asterisk (pid 7) writes")
        with pytest.raises(Refused, match="asterisk"):
            await asking
        engine.restoring.over()
        await ends.until(lambda: not ends.link.restoring)
        async with asyncio.timeout(WITHIN_S):
            await ends.link.restored()


@pytest.mark.req("R24")
async def test_an_engine_that_is_lost_within_a_restore_leaves_it_open_until_another_one_says_otherwise(
    run_dir: Path,
) -> None:
    path = str(run_dir / "agent.sock")
    async with listening(path) as ends:
        async with attached(path, FakeNode()) as engine:
            await ends.until(lambda: ends.link.report is not None)
            with contextlib.suppress(asyncio.CancelledError):
                asking = asyncio.create_task(engine.restoring.stop_services())
                await ends.until_reported(lambda report: report.restore != 0)
                asking.cancel()
        await ends.until(lambda: ends.link.report is None)
        assert ends.link.restoring, "nobody knows whether the data is whole"
        async with attached(path, FakeNode()):
            await ends.until(lambda: not ends.link.restoring)


@pytest.mark.req("R24")
@pytest.mark.parametrize("change", ["standby", "quiesce", "the agent goes"])
async def test_what_changes_the_role_interrupts_a_restore(run_dir: Path, change: str) -> None:
    path = str(run_dir / "agent.sock")
    interrupted: list[str] = []
    async with attached(path, FakeNode()) as engine:
        engine.restoring.on_interrupt = interrupted.append
        async with listening(path) as ends:
            ends.link.direct("active", 4, active_at="")
            await ends.until(lambda: engine.attached)
            ends.link.direct("active", 6, active_at="")
            await ends.until_reported(lambda report: report.promoted == 6)
            assert interrupted == [], "a higher epoch of the same role is none"
            if change == "standby":
                ends.link.direct("standby", 7, active_at="")
            elif change == "quiesce":
                await ends.link.quiesce(within_s=5, end_backup=True)
            if change != "the agent goes":
                await ends.until(lambda: bool(interrupted))
        await ends.until(lambda: bool(interrupted))
