"""``ha-sync settings`` against an agent process: what is shown, refused, asked and saved; the same over gRPC."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from ha_agent.settings import load
from ha_proto.agent.v1 import settings_pb2 as pb
from ha_proto.agent.v1 import settings_pb2_grpc
from tests.support.agent_process import Client, Process
from tests.support.agent_settings import lone_settings
from tests.support.client import HA_SYNC, ROOT, Outcome, ha_sync


@pytest.fixture
async def agent(run_dir: Path) -> AsyncIterator[Process]:
    rest = '\n[[alarm]]\nname = "noc"\nkind = "webhook"\nurl = "https://noc.example.org/pbx"  # theirs\n'
    lone_settings(run_dir, rest=rest)
    process = Process(run_dir / "primary" / "ha.toml")
    try:
        async with Client(process.socket_path) as client:
            await client.until(lambda status: status.phase == "starting")
        yield process
    finally:
        process.close()


def settings(agent: Process, *arguments: str) -> Outcome:
    return ha_sync("settings", *arguments, "--agent-socket", str(agent.socket_path))


@pytest.mark.req("R1.1", "R1.8", "R33")
async def test_a_change_is_tried_saved_and_shown_and_needs_a_restart(agent: Process) -> None:
    before = agent.config.read_text()
    tried = settings(agent, "set", "heartbeat_timeout_s=5", "--dry-run")
    assert (tried.code, agent.config.read_text()) == (0, before)
    assert "ha.heartbeat_timeout_s: 3 -> 5 (shared)" in tried.out
    assert "a restart of the agent, and with it of the services, is needed" in tried.out

    off = settings(agent, "set", "enabled=false", "--dry-run")
    assert "`ha-sync pair dissolve` ends the pair" in off.out

    unasked = settings(agent, "set", "heartbeat_timeout_s=5")
    assert (unasked.code, agent.config.read_text()) == (2, before)
    assert "--yes" in unasked.err

    saved = settings(agent, "set", "heartbeat_timeout_s=5", "alarm[noc].severity=error", "--yes")
    assert saved.code == 0, saved.err
    assert (agent.config.parent / "ha.toml.previous").read_text() == before
    assert "# theirs" in agent.config.read_text()
    assert load(str(agent.config)).pair is not None
    assert settings(agent, "get", "heartbeat_timeout_s").out == "5\n"
    shown = settings(agent, "show", "ha").out
    assert "the agent runs with other settings than these" in shown
    assert "alarm" not in shown


@pytest.mark.req("R1.1", "R1.8")
async def test_every_fault_is_named_with_its_value_and_range_and_nothing_is_written(agent: Process) -> None:
    before = agent.config.read_text()
    done = settings(agent, "set", "heartbeat_timeout_s=99", "peer_mac=nonsense", "--yes")
    assert done.code == 2
    assert "ha.heartbeat_timeout_s = 99: must be a number from 3 to 10" in done.err
    assert 'ha.peer_mac = "nonsense"' in done.err
    assert agent.config.read_text() == before
    unknown = settings(agent, "set", "ha.nothing=1", "--yes", "--json")
    assert unknown.code == 2
    assert "no such setting" in json.loads(unknown.out)["error"]["message"]


@pytest.mark.req("R1.1")
async def test_calls_in_progress_are_shown_before_a_change(agent: Process, tmp_path: Path) -> None:
    agent.config.write_text(agent.config.read_text().replace("[node]", '[node]\ncalls_command = ["/bin/echo", "7"]', 1))
    agent.close()
    agent.start()
    async with Client(agent.socket_path) as client:
        await client.until(lambda status: status.phase == "starting")
    assert "calls in progress: 7" in settings(agent, "set", "gateway=none", "drain_deadline_s=20", "--dry-run").out


@pytest.mark.req("R1.1", "R33")
async def test_what_is_shown_over_grpc_sets_the_same_again(agent: Process) -> None:
    async with grpc.aio.insecure_channel(f"unix:{agent.socket_path}") as channel:
        stub = settings_pb2_grpc.SettingsServiceStub(channel)
        shown = await stub.GetSettings(pb.GetSettingsRequest())
        changes = [pb.SettingChange(path=one.path, value=one.value) for one in shown.settings if one.stated]
        answer = await stub.SetSettings(pb.SetSettingsRequest(changes=changes, file_digest=shown.file_digest))
        assert answer.saved
        assert not answer.differences
        assert not answer.restart_needed
        stale = pb.SetSettingsRequest(changes=changes, file_digest="of another file")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.SetSettings(stale)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.req("R1.10")
async def test_the_ports_that_are_there_are_offered(agent: Process, tmp_path: Path) -> None:
    dahdi = tmp_path / "dahdi"
    dahdi.mkdir()
    (dahdi / "1").write_text('Span 1: WCTDM/0 "Wildcard" (MASTER)\n\n\t   1 WCTDM/0/0 FXSKS\n\t   2 WCTDM/0/1 FXSKS\n')
    text = agent.config.read_text().replace("[node]", f'[node]\ndahdi_dir = "{dahdi}"', 1)
    agent.config.write_text(text)
    agent.close()
    agent.start()
    async with Client(agent.socket_path) as client:
        await client.until(lambda status: status.phase == "starting")
    assert "on this machine: 1, 2" in settings(agent, "show", "ha", "--help-texts").out


def asked(agent: Process, answer: str) -> int:
    """``settings set`` at a terminal; its exit code."""
    master, terminal = pty.openpty()
    with subprocess.Popen(
        [*HA_SYNC, "settings", "set", "gateway=none", "--agent-socket", str(agent.socket_path)],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "proto")))},
    ) as process:
        os.close(terminal)
        os.write(master, answer.encode())
        process.communicate(timeout=60)
        os.close(master)
        return process.returncode


@pytest.mark.req("R1.1")
async def test_at_a_terminal_it_asks_and_saves_only_when_told_so(agent: Process) -> None:
    before = agent.config.read_text()
    assert await asyncio.to_thread(asked, agent, "n\n") != 0
    assert agent.config.read_text() == before
    assert await asyncio.to_thread(asked, agent, "y\n") == 0
    assert 'gateway = "none"' in agent.config.read_text()
