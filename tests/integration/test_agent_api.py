"""The agent's gRPC API on a real socket: what it refuses and how, its logs, health and reflection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ha_agent.cluster_ip.links import Links
from ha_agent.errors import OperatorNeeded
from ha_agent.logs import FILE_NAME, Result, read_switches
from ha_agent.memory import BookStore
from ha_agent.service.process import Stopping, run
from ha_agent.settings import Settings, load
from ha_proto.agent.v1 import agent_pb2 as pb
from tests.support.agent_engine import FakeEngine
from tests.support.agent_process import Client, is_sound
from tests.support.agent_settings import lone_settings, pair_up

SERVICE = "ha_proto.agent.v1.AgentService"


@contextlib.asynccontextmanager
async def serving(settings: Settings, on_tick: Callable[[], None] = lambda: None) -> AsyncIterator[Client]:
    """An agent in this process, from its start to its clean end."""
    stopping = Stopping(asked=asyncio.Event())
    agent = asyncio.create_task(run(settings, stopping, path="ha.toml", on_tick=on_tick))
    try:
        async with Client(settings.node.socket_path) as client:
            await client.stub.GetStatus(pb.GetStatusRequest(), wait_for_ready=True, timeout=20)
            yield client
    finally:
        stopping.ask()
        await agent


@contextlib.asynccontextmanager
async def standby(root: Path) -> AsyncIterator[Client]:
    """One that waits for its peer."""
    async with serving(lone_settings(root)) as client:
        await client.until(lambda status: status.phase == "starting" and bool(status.paths))
        yield client


async def failure(call: object) -> tuple[grpc.StatusCode, str, str]:
    """Status, words and the exit code that travels with it."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call  # type: ignore[misc]
    error = caught.value
    return error.code(), error.details() or "", dict(error.trailing_metadata())["ha-sync-exit-code"]


@pytest.mark.req("R1.1", "R33")
async def test_with_ha_off_the_agent_idles_and_says_so(run_dir: Path) -> None:
    settings = lone_settings(run_dir)
    off = _switched_off(run_dir)
    ticks = asyncio.Event()
    async with serving(load(str(off)), on_tick=ticks.set) as client:
        status = await client.stub.GetStatus(pb.GetStatusRequest())
        assert (status.role, status.phase) == ("disabled", "off")
        code, words, exit_code = await failure(client.stub.Switch(pb.SwitchRequest()))
        assert (code, exit_code) == (grpc.StatusCode.FAILED_PRECONDITION, "3")
        assert "HA is off" in words
        # An idle agent shows that it lives too: its service manager must not kill it.
        ticks.clear()
        await asyncio.wait_for(ticks.wait(), 20)
    assert _book(settings) is None, "nobody has started"


@pytest.mark.req("R2", "R33")
async def test_a_node_that_is_not_paired_waits_and_begins_when_it_is(run_dir: Path) -> None:
    ticks = asyncio.Event()
    settings = lone_settings(run_dir, paired=False)
    async with serving(settings, on_tick=ticks.set) as client:
        assert (await client.stub.GetStatus(pb.GetStatusRequest())).phase == "not paired"
        code, words, exit_code = await failure(client.stub.CancelSwitch(pb.CancelSwitchRequest()))
        assert (code, exit_code) == (grpc.StatusCode.FAILED_PRECONDITION, "3")
        assert "not paired" in words
        ticks.clear()
        await asyncio.wait_for(ticks.wait(), 20)
        pair_up(run_dir, "primary")
        await client.until(lambda status: status.phase == "starting" and bool(status.paths))


async def test_an_agent_that_waits_for_its_pairing_ends_when_it_is_told_to(run_dir: Path) -> None:
    async with serving(lone_settings(run_dir, paired=False)):
        pass


@pytest.mark.req("R6")
async def test_a_switch_on_a_node_that_is_not_active_is_refused_and_stands_in_the_log(run_dir: Path) -> None:
    async with standby(run_dir) as client:
        answer = await client.stub.Switch(pb.SwitchRequest())
        assert (answer.switched, answer.reason) == (False, "not_active")
        refused = await client.switches(result="refused")
        assert [(one.error, one.from_role, one.to_role) for one in refused] == [("not_active", "starting", "starting")]
        events = await client.events(severity="warning")
        assert "a request was refused" in [event.what for event in events]


@pytest.mark.req("R6", "R12")
async def test_a_forced_take_over_on_a_lone_node_is_done_when_it_serves(run_dir: Path) -> None:
    async with standby(run_dir) as client, FakeEngine(_socket(run_dir)):
        await client.until(lambda status: status.engine_attached)
        answer = await client.stub.Switch(pb.SwitchRequest(force=True, accept_data_loss=True, accept_dual=True))
        assert (answer.switched, answer.reason, answer.epoch) == (True, "", 2)
        status = await client.until(lambda status: status.role == "active" and status.last_switch.result == "done")
        assert (status.epoch, status.single, status.last_switch.trigger) == (2, True, "forced")
        # The peer is gone for good, says the administrator: it is so already.
        await client.stub.DeclareSingle(pb.DeclareSingleRequest())


async def test_a_forced_take_over_without_sound_data_says_so(run_dir: Path) -> None:
    async with standby(run_dir) as client:
        answer = await client.stub.Switch(pb.SwitchRequest(force=True, accept_dual=True))
        assert (answer.switched, answer.reason) == (False, "unsound")


@pytest.mark.req("R6")
async def test_there_is_nothing_to_cancel_where_no_switch_is_under_way(run_dir: Path) -> None:
    async with standby(run_dir) as client:
        code, words, exit_code = await failure(client.stub.CancelSwitch(pb.CancelSwitchRequest()))
        assert (code, exit_code) == (grpc.StatusCode.FAILED_PRECONDITION, "3")
        assert "cannot cancel" in words


async def test_who_does_not_serve_cannot_be_declared_single(run_dir: Path) -> None:
    async with standby(run_dir) as client:
        code, _, exit_code = await failure(client.stub.DeclareSingle(pb.DeclareSingleRequest()))
        assert (code, exit_code) == (grpc.StatusCode.FAILED_PRECONDITION, "3")


@pytest.mark.req("R33")
async def test_numbers_and_words_out_of_range_are_refused_with_the_range(run_dir: Path) -> None:
    async with standby(run_dir) as client:
        stub = client.stub
        calls = [
            stub.SetMaintenance(pb.SetMaintenanceRequest(seconds=14401)),
            stub.SetMaintenance(pb.SetMaintenanceRequest(seconds=-1)),
            stub.SetMaintenance(pb.SetMaintenanceRequest(seconds=float("nan"))),
            stub.Switch(pb.SwitchRequest(timeout_s=-1)),
            _first(stub.ListSwitches(pb.ListSwitchesRequest(result="splendid"))),
            _first(stub.ListSwitches(pb.ListSwitchesRequest(limit=1_000_001))),
            _first(stub.ListEvents(pb.ListEventsRequest(severity="loud"))),
            _first(stub.WatchStatus(pb.WatchStatusRequest(interval_s=0.01))),
        ]
        for call in calls:
            code, words, exit_code = await failure(call)
            assert (code, exit_code) == (grpc.StatusCode.INVALID_ARGUMENT, "2"), words
            assert "is not between" in words or "none of" in words


@pytest.mark.req("R31", "R32")
async def test_who_follows_the_logs_gets_what_comes_and_nothing_older_than_asked(run_dir: Path) -> None:
    async with standby(run_dir) as client:
        await client.stub.Switch(pb.SwitchRequest())
        (first,) = await client.switches()
        before = await client.events()
        later = max(before[-1].unix_s, first.begin_unix_s) + 1e-6
        switches = client.stub.ListSwitches(pb.ListSwitchesRequest(since_unix_s=later, follow=True))
        events = client.stub.ListEvents(pb.ListEventsRequest(since_unix_s=later, follow=True))
        try:
            async with asyncio.timeout(20):
                first_switch, first_event = asyncio.create_task(switches.read()), asyncio.create_task(events.read())
                while not (first_switch.done() and first_event.done()):
                    await client.stub.Switch(pb.SwitchRequest())
                    await asyncio.wait((first_switch, first_event), timeout=0.2)
                assert (await first_switch).id != first.id
                assert (await first_event).id > before[-1].id
        finally:
            switches.cancel()
            events.cancel()


@pytest.mark.req("R33")
async def test_health_and_reflection_answer(run_dir: Path) -> None:
    async with standby(run_dir) as client:
        health = health_pb2_grpc.HealthStub(client.channel)
        for service in ("", SERVICE):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(client.channel).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        answer = await _first(call)
        assert SERVICE in [service.name for service in answer.list_services_response.service]


async def test_the_socket_is_for_this_nodes_group_only(run_dir: Path) -> None:
    async with standby(run_dir):
        assert os.stat(_socket(run_dir)).st_mode & 0o777 == 0o660


async def test_a_second_agent_on_one_state_directory_is_refused(run_dir: Path) -> None:
    settings = lone_settings(run_dir)
    async with serving(settings):
        with pytest.raises(OperatorNeeded, match="another agent"):
            await run(settings, Stopping(asked=asyncio.Event()), path="ha.toml", on_tick=lambda: None)


async def test_a_damaged_book_is_a_matter_for_a_person(run_dir: Path) -> None:
    settings = lone_settings(run_dir)
    _damage(settings)
    with pytest.raises(OperatorNeeded, match="epochs of this node"):
        await run(settings, Stopping(asked=asyncio.Event()), path="ha.toml", on_tick=lambda: None)


async def test_a_clean_end_is_remembered(run_dir: Path) -> None:
    settings = lone_settings(run_dir)
    async with standby_of(settings):
        assert _book(settings)["clean"] is False
    assert _book(settings)["clean"] is True


@pytest.mark.req("R12")
async def test_who_is_stopped_while_its_services_start_ends_the_start_and_stops_them(run_dir: Path) -> None:
    told = run_dir / "hooks"
    rest = f"""
[[service]]
name = "pbx"
start = ["/bin/sh", "-c", "echo starts >> {told}; sleep 600; echo started >> {told}"]
stop = ["/bin/sh", "-c", "echo stop >> {told}"]
"""
    settings = lone_settings(run_dir, rest=rest)
    async with serving(settings) as client, FakeEngine(_socket(run_dir)):
        await client.until(is_sound)
        await client.stub.Switch(pb.SwitchRequest(force=True, accept_dual=True))
        await client.until(lambda status: _words(told)[-1:] == ["starts"])
        answering = await client.until(lambda status: status.holds)
        assert answering.role == "active"
    assert _words(told) == ["stop", "starts", "stop"]
    (switch,) = read_switches(str(Path(settings.node.state_dir, "logs", FILE_NAME)), result=Result.FAILED)
    assert "the services were not all started" in switch.error


async def test_a_kernel_that_does_not_answer_for_a_while_ends_nothing(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with standby(run_dir) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Links, "look", _busy)
            await _until_event(client, "the interface could not be looked at")
        assert (await client.until(lambda status: True)).phase == "starting"


async def test_a_full_disk_does_not_keep_an_agent_from_ending(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ha_agent.agent.driver.LEAVE_S", 0.3)
    async with standby(run_dir) as client:
        monkeypatch.setattr(BookStore, "store", _full)
        await client.stub.SetMaintenance(pb.SetMaintenanceRequest(seconds=60))
    # It has ended: whoever waits for its promise that this end was clean does not get it.
    assert _book(lone_again(run_dir))["clean"] is False


def _busy(*_arguments: object) -> None:
    raise TimeoutError(110, "Connection timed out")


def _full(*_arguments: object) -> None:
    raise OSError(28, "No space left on device")


async def _until_event(client: Client, what: str) -> None:
    async with asyncio.timeout(20):
        async for event in client.stub.ListEvents(pb.ListEventsRequest(follow=True)):
            if event.what == what:
                return


def lone_again(root: Path) -> Settings:
    return load(str(root / "primary" / "ha.toml"))


def _words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


@contextlib.asynccontextmanager
async def standby_of(settings: Settings) -> AsyncIterator[Client]:
    async with serving(settings) as client:
        await client.until(lambda status: bool(status.paths))
        yield client


def _switched_off(root: Path) -> Path:
    path = Path(root, "primary", "ha.toml")
    path.write_text(path.read_text().replace("enabled = true", "enabled = false"))
    return path


def _book(settings: Settings) -> Any:
    path = Path(settings.node.state_dir, "agent.json")
    return json.loads(path.read_text())["book"] if path.exists() else None


def _damage(settings: Settings) -> None:
    Path(settings.node.state_dir, "agent.json").write_text("{")


def _socket(root: Path) -> str:
    return str(root / "primary" / "run" / "agent.sock")


async def _first(call: object) -> object:
    async for message in call:  # type: ignore[attr-defined]
        return message
    return None
