"""Two real agents with scripted engines on the loopback's stand-in: who serves, who follows, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import subprocess
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from ha_proto.agent.v1 import agent_pb2 as pb
from tests.support.agent_engine import FakeEngine
from tests.support.agent_process import Client, Process, answers, is_active, is_ready_standby
from tests.support.agent_settings import Site, new_site, pair_up, write_toml


@dataclass(slots=True, kw_only=True)
class Node:
    """An agent's process, its engine, and who asks it."""

    process: Process
    client: Client
    engine: FakeEngine


@dataclass(slots=True, kw_only=True)
class Pair:
    site: Site
    a: Node
    b: Node


@contextlib.asynccontextmanager
async def running(root: Path, *, ha: str = "", rest: dict[str, str] | None = None) -> AsyncIterator[Pair]:
    """Both nodes, from power on."""
    site = new_site()
    nodes = []
    async with contextlib.AsyncExitStack() as stack:
        for station in ("primary", "secondary"):
            config = write_toml(site, station, root, ha=ha, rest=(rest or {}).get(station, ""))
            pair_up(root, station)
            process = Process(config)
            stack.callback(process.close)
            client = await stack.enter_async_context(Client(process.socket_path))
            engine = await stack.enter_async_context(FakeEngine(str(process.socket_path)))
            nodes.append(Node(process=process, client=client, engine=engine))
        yield Pair(site=site, a=nodes[0], b=nodes[1])


async def settled(pair: Pair) -> None:
    """The Primary serves, the Secondary is ready, and both know it."""
    await pair.b.client.until(is_ready_standby)
    await pair.a.client.until(
        lambda status: is_active(status) and status.peer_role == "standby" and not status.peer_reasons
    )


def hooks(root: Path, station: str, *, process: str = "") -> str:
    """A service whose hooks write down that they ran, and perhaps a probe that watches a process."""
    told = root / station / "hooks"
    probe = f'[[probe]]\nname = "pbx"\nkind = "process"\npid_file = "{process}"\nfall = 1\ninterval_s = 0.2\n'
    return f"""
[[service]]
name = "pbx"
start = ["/bin/sh", "-c", "echo start $HA_EPOCH >> {told}"]
stop = ["/bin/sh", "-c", "echo stop >> {told}"]
{probe if process else ""}"""


@contextlib.contextmanager
def program(pid_file: Path) -> Iterator[subprocess.Popen[bytes]]:
    """What a probe watches."""
    with subprocess.Popen(["/bin/sleep", "600"]) as running_program:
        pid_file.write_text(str(running_program.pid))
        try:
            yield running_program
        finally:
            running_program.kill()


def told(root: Path, station: str) -> list[str]:
    path = root / station / "hooks"
    return path.read_text().split("\n")[:-1] if path.exists() else []


@pytest.mark.req("R6", "R11", "R31")
async def test_a_cold_pair_elects_its_primary_and_changes_roles_on_request(run_dir: Path) -> None:
    rest = {station: hooks(run_dir, station) for station in ("primary", "secondary")}
    async with running(run_dir, rest=rest) as pair:
        await settled(pair)
        assert answers(pair.site.shared, pair.site.port)
        before = await pair.a.client.until(lambda status: status.last_switch.result == "done")
        assert before.last_switch.trigger == "election"

        answer = await pair.a.client.stub.Switch(pb.SwitchRequest(timeout_s=30))
        assert (answer.switched, answer.reason) == (True, "")

        active = await pair.b.client.until(is_active)
        standby = await pair.a.client.until(is_ready_standby)
        assert active.epoch == standby.epoch == answer.epoch > before.epoch
        # Break before make: the old one stopped its services before the new one started its own.
        done = await pair.b.client.until(lambda status: status.last_switch.result == "done")
        assert (done.last_switch.trigger, done.last_switch.to_role) == ("planned", "active")
        assert set(done.last_switch.phases_s) == {"decide", "address", "services"}
        given = (await pair.a.client.switches())[-1]
        assert (given.result, given.from_role, given.to_role) == ("done", "active", "standby")
        assert given.positions["own"] == given.positions["peer"]
        assert told(run_dir, "primary")[-1] == "stop"
        assert told(run_dir, "secondary")[-1] == f"start {active.epoch}"


@pytest.mark.req("R6", "R31")
async def test_a_switch_that_is_not_drained_is_given_up_cancelled_or_forced_through(run_dir: Path) -> None:
    rest = {"primary": hooks(run_dir, "primary")}
    async with running(run_dir, ha="drain_deadline_s = 2", rest=rest) as pair:
        await settled(pair)
        epoch = (await pair.a.client.until(lambda status: told(run_dir, "primary") != [])).epoch
        stub = pair.a.client.stub
        code, exit_code = await refused(stub.DeclareSingle(pb.DeclareSingleRequest()))
        assert (code, exit_code) == (grpc.StatusCode.PERMISSION_DENIED, "6"), "the peer is heard"

        pair.a.engine.quiets = False
        answer = await stub.Switch(pb.SwitchRequest(timeout_s=30))
        assert (answer.switched, answer.reason) == (False, "quiesce_failed")
        assert answer.detail == "not on the Standby: cdr: 3 changes not yet on the standby"
        await pair.a.client.until(lambda status: told(run_dir, "primary")[-2:] == ["stop", f"start {epoch}"])
        assert (await pair.a.client.switches())[-1].result == "aborted"

        switching = asyncio.create_task(_switch(stub, pb.SwitchRequest(timeout_s=30)))
        await pair.a.client.until(lambda status: status.phase == "quiescing")
        await stub.CancelSwitch(pb.CancelSwitchRequest())
        assert (await switching).reason == "cancelled"
        assert is_active(await pair.a.client.until(lambda status: status.phase == "active"))

        lossy = await stub.Switch(pb.SwitchRequest(force=True, accept_data_loss=True, timeout_s=30))
        assert (lossy.switched, lossy.reason) == (True, "")
        await pair.b.client.until(is_active)
        # The loss was accepted: what was stopped is never started again behind the new Active's back.
        await pair.a.client.until(lambda status: status.role == "standby" and told(run_dir, "primary")[-1] == "stop")
        assert f"start {lossy.epoch}" not in told(run_dir, "primary")


async def _switch(stub: Any, request: pb.SwitchRequest) -> pb.SwitchResponse:
    return await stub.Switch(request)


async def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), dict(caught.value.trailing_metadata())["ha-sync-exit-code"]


@pytest.mark.req("R10", "R12", "R13")
async def test_a_killed_active_is_replaced_and_comes_back_as_standby(run_dir: Path) -> None:
    async with running(run_dir) as pair:
        await settled(pair)
        pair.a.process.kill()
        taken = await pair.b.client.until(is_active)
        assert answers(pair.site.shared, pair.site.port)
        switch = (await pair.b.client.until(lambda status: status.last_switch.result == "done")).last_switch
        assert switch.trigger == "silence"
        assert switch.phases_s["detect"] >= 3.0, "a switch before the timeout"

        pair.a.process.start()
        back = await pair.a.client.until(is_ready_standby)
        assert back.epoch == taken.epoch
        assert is_active(await pair.b.client.until(lambda status: status.peer_role == "standby")), "nobody is preempted"


@pytest.mark.req("R6")
async def test_an_active_that_is_stopped_leaves_the_address_to_its_peer_at_once(run_dir: Path) -> None:
    async with running(run_dir) as pair:
        await settled(pair)
        assert await pair.a.process.terminate() == 0
        await pair.b.client.until(is_active)
        log = pair.a.process.log.read_text()
        assert "Traceback" not in log, log


@pytest.mark.req("R1.9", "R11", "R14")
async def test_a_process_that_dies_moves_the_role_once(run_dir: Path) -> None:
    pid_file = run_dir / "pbx.pid"
    rest = {"primary": hooks(run_dir, "primary", process=str(pid_file)), "secondary": ""}
    with program(pid_file) as pbx:
        async with running(run_dir, ha="software_fault_switch = true", rest=rest) as pair:
            await settled(pair)
            # A probe that was never good switches nothing.
            await pair.a.client.until(lambda status: probed(status, "process:pbx") == "good")
            pbx.kill()
            await pair.b.client.until(is_active)
            given = await pair.a.client.until(lambda status: status.last_switch.result == "done")
            assert given.last_switch.trigger == "fault"
            assert "gone" in given.last_switch.health["process:pbx"]
            await pair.a.client.until(lambda status: told(run_dir, "primary")[-1] == "stop")


@pytest.mark.req("R31")
async def test_who_only_observes_logs_what_it_would_have_done_and_touches_nothing(run_dir: Path) -> None:
    warm = f"""
[[service]]
name = "proxy"
start = ["/bin/touch", "{run_dir}/warm"]
stop = ["/bin/true"]
standby = "running"
"""
    rest = {station: hooks(run_dir, station) + warm for station in ("primary", "secondary")}
    async with running(run_dir, ha="observe_only = true", rest=rest) as pair:
        seen = await pair.a.client.until(lambda status: status.last_switch.result == "observed")
        assert seen.observe_only
        assert not answers(pair.site.shared, pair.site.port)
        deeds = [event.fields["deed"] for event in await pair.a.client.events() if "deed" in event.fields]
        assert any(deed.startswith("AddAddress") for deed in deeds)
        assert not any(deed.startswith("RenewAddress") for deed in deeds), "what is done twice a second tells nothing"
        assert told(run_dir, "primary") == []
        assert not (run_dir / "warm").exists()
        assert pair.a.engine.directives == []


@pytest.mark.req("R6")
async def test_in_maintenance_nobody_takes_over_until_it_ends(run_dir: Path) -> None:
    async with running(run_dir) as pair:
        await settled(pair)
        await pair.a.client.stub.SetMaintenance(pb.SetMaintenanceRequest(seconds=600))
        await pair.b.client.until(lambda status: status.maintenance_left_s > 0)
        pair.a.process.kill()
        # Silent for longer than the timeout, seen on the Standby's own clock.
        await pair.b.client.until(lambda status: any(path.heard_age_s > 4.0 for path in status.paths))
        assert (await pair.b.client.until(lambda status: True)).role == "standby"
        await pair.b.client.stub.SetMaintenance(pb.SetMaintenanceRequest(seconds=0))
        await pair.b.client.until(is_active)


@pytest.mark.req("R12")
async def test_a_flapping_pair_is_held_until_an_administrator_releases_it(run_dir: Path) -> None:
    pid_files = {station: run_dir / f"{station}.pid" for station in ("primary", "secondary")}
    rest = {station: hooks(run_dir, station, process=str(path)) for station, path in pid_files.items()}
    with program(pid_files["primary"]) as first, program(pid_files["secondary"]) as second:
        async with running(run_dir, ha="software_fault_switch = true", rest=rest) as pair:
            await settled(pair)
            await pair.a.client.until(lambda status: probed(status, "process:pbx") == "good")
            first.kill()
            await pair.b.client.until(is_active)
            await pair.a.client.until(is_ready_standby)
            await pair.b.client.until(lambda status: probed(status, "process:pbx") == "good" and not status.held)
            second.kill()
            await pair.a.client.until(is_active)
            await pair.a.client.until(lambda status: status.held and any("held" in alarm for alarm in status.alarms))
            await pair.b.client.stub.ReleaseHold(pb.ReleaseHoldRequest())
            await pair.a.client.until(lambda status: not status.held)


def probed(status: pb.AgentStatus, name: str) -> str:
    return next((probe.state for probe in status.probes if probe.name == name), "")


@pytest.mark.req("R12")
async def test_a_stopped_engine_is_a_fault_of_its_node(run_dir: Path) -> None:
    async with running(run_dir, ha="software_fault_switch = true") as pair:
        await settled(pair)
        await pair.a.client.until(lambda status: probed(status, "engine") == "good")
        await pair.a.engine.__aexit__(None, None, None)
        await pair.b.client.until(is_active)
        lost = await pair.a.client.until(lambda status: status.role == "standby" and not status.engine_attached)
        assert "engine_gone" in lost.reasons
        await pair.a.engine.__aenter__()
        await pair.a.client.until(is_ready_standby)


@pytest.mark.req("R10", "R22")
async def test_the_engine_is_told_by_which_paths_it_reaches_the_peer_and_when_they_fall_silent(run_dir: Path) -> None:
    net = f"127.255.{random.randint(1, 254)}"
    rest = {
        "primary": f'[[path]]\nname = "cable"\nlocal = "{net}.1"\npeer = "{net}.2"\n',
        "secondary": f'[[path]]\nname = "cable"\nlocal = "{net}.2"\npeer = "{net}.1"\n',
    }
    async with running(run_dir, rest=rest) as pair:
        await settled(pair)
        lan = pair.site.peer("secondary")
        await directed(pair.b, [("cable", f"{net}.1", "both"), ("loop", lan, "both")])
        role = pair.b.engine.directives[-1].role
        assert (role.role, role.epoch) == ("standby", pair.b.engine.report.epoch)
        pair.a.process.kill()
        await directed(pair.b, [("cable", f"{net}.1", "lost"), ("loop", lan, "lost")])


async def directed(node: Node, paths: list[tuple[str, str, str]]) -> None:
    """Until the newest directive of a role names these paths in this order."""
    async with asyncio.timeout(30):
        while True:
            roles = [one.role for one in node.engine.directives if one.WhichOneof("directive") == "role"]
            if roles and [(path.name, path.address, path.state) for path in roles[-1].paths] == paths:
                return
            await asyncio.sleep(0.05)
