"""The API on a TCP port: for whom, what it hands on and how, and that a client needs no generated code (R33)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from ha_agent.service.process import Stopping
from ha_agent.service.process import run as run_agent
from ha_proto.agent.v1 import agent_pb2, agent_pb2_grpc, settings_pb2, settings_pb2_grpc
from ha_proto.sync.v1 import control_pb2 as pb
from ha_proto.sync.v1 import control_pb2_grpc
from ha_sync.config import ApiSettings
from ha_sync.core.dataset import Role
from ha_sync.core.position import Epoch
from ha_sync.errors import OperatorNeeded
from ha_sync.pairing.gate import Refusals
from ha_sync.service.api_port import AGENT_SERVICES, ENGINE_SERVICES, SERVICES, api_port
from tests.support.agent_service import fake_agent
from tests.support.agent_settings import lone_settings
from tests.support.alarm_receivers import free_port
from tests.support.api_certificates import Authority, Issued, credentials, write_files
from tests.support.client import start_ha_sync
from tests.support.control_service import STATUS, fake_engine

HOST = "127.0.0.1"
WITHIN_S = 60
Told = list[dict[str, object]]


class Site:
    """What an administrator has made, and what the event log was told."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority()
        self.files = write_files(folder, self.authority, self.authority.issue("pbx-a", address=HOST))
        self.told: Told = []

    def settings(self, *clients: str) -> ApiSettings:
        return ApiSettings(listen=(f"{HOST}:0",), clients=clients, **self.files)

    @contextlib.asynccontextmanager
    async def opened(self, *clients: str) -> AsyncIterator[int]:
        refusals = Refusals(lambda _severity, _what, fields: self.told.append(fields))
        engine_path, agent_path = str(self.folder / "sync.sock"), str(self.folder / "agent.sock")
        opened = api_port(self.settings(*clients), engine_path=engine_path, agent_path=agent_path, refusals=refusals)
        async with opened as (port,):
            yield port

    def dial(self, port: int, client: Issued | None, trusted: Authority | None = None) -> grpc.aio.Channel:
        shown = credentials(trusted or self.authority, client)
        return grpc.aio.secure_channel(f"{HOST}:{port}", shown, options=(("grpc.use_local_subchannel_pool", 1),))


@pytest.fixture
def site(run_dir: Path) -> Site:
    return Site(run_dir)


@pytest.mark.req("R33")
async def test_calls_of_every_kind_are_handed_on_to_the_daemon_that_has_them(site: Site) -> None:
    events = [pb.Event(id=number, what="x") for number in (1, 2, 3)]
    with fake_engine(str(site.folder / "sync.sock")) as engine, fake_agent(str(site.folder / "agent.sock")) as agent:
        engine.answers["ListEvents"] = events
        async with site.opened() as port, site.dial(port, site.authority.issue("ops")) as channel:
            control = control_pb2_grpc.ControlServiceStub(channel)
            assert await control.GetStatus(pb.GetStatusRequest(), timeout=WITHIN_S) == STATUS
            assert [event async for event in control.ListEvents(pb.ListEventsRequest(limit=7))] == events
            assert engine.asked[-1].limit == 7
            node = agent_pb2_grpc.AgentServiceStub(channel)
            await node.SetMaintenance(agent_pb2.SetMaintenanceRequest(seconds=12), timeout=WITHIN_S)
            assert agent.asked[-1].seconds == 12


@pytest.mark.req("R33")
async def test_an_error_arrives_as_the_daemon_meant_it(site: Site) -> None:
    with fake_engine(str(site.folder / "sync.sock")) as engine:
        engine.fails = (grpc.StatusCode.FAILED_PRECONDITION, "not the Active", 3)
        async with site.opened() as port, site.dial(port, site.authority.issue("ops")) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await control_pb2_grpc.ControlServiceStub(channel).SetRole(pb.SetRoleRequest(), timeout=WITHIN_S)
    error = caught.value
    assert (error.code(), error.details()) == (grpc.StatusCode.FAILED_PRECONDITION, "not the Active")
    assert dict(error.trailing_metadata())["ha-sync-exit-code"] == "3"


async def test_a_daemon_that_is_silent_is_unavailable_and_the_other_answers(site: Site) -> None:
    with fake_engine(str(site.folder / "sync.sock")):
        async with site.opened() as port, site.dial(port, site.authority.issue("ops")) as channel:
            await control_pb2_grpc.ControlServiceStub(channel).GetStatus(pb.GetStatusRequest(), timeout=WITHIN_S)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await agent_pb2_grpc.AgentServiceStub(channel).GetStatus(agent_pb2.GetStatusRequest(), timeout=WITHIN_S)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def code_of(channel: grpc.aio.Channel) -> grpc.StatusCode:
    async with channel:
        stub = control_pb2_grpc.ControlServiceStub(channel)
        try:
            await stub.GetStatus(pb.GetStatusRequest(), timeout=WITHIN_S)
        except grpc.aio.AioRpcError as error:
            return error.code()
    return grpc.StatusCode.OK


@pytest.mark.req("R33")
async def test_only_who_has_a_certificate_of_the_authority_comes_in(site: Site) -> None:
    with fake_engine(str(site.folder / "sync.sock")) as engine:
        async with site.opened() as port:
            stranger = Authority("strangers").issue("ops")
            assert await code_of(site.dial(port, None)) is grpc.StatusCode.UNAVAILABLE
            assert await code_of(site.dial(port, stranger)) is grpc.StatusCode.UNAVAILABLE
            assert not engine.asked
            assert await code_of(site.dial(port, site.authority.issue("ops"))) is grpc.StatusCode.OK
            async with grpc.aio.insecure_channel(f"{HOST}:{port}") as plain:
                assert await code_of(plain) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.req("R33")
async def test_a_list_of_clients_narrows_it_to_them_for_every_service(site: Site) -> None:
    with fake_engine(str(site.folder / "sync.sock")) as engine:
        async with site.opened("ops", "console") as port:
            assert await code_of(site.dial(port, site.authority.issue("ops"))) is grpc.StatusCode.OK
            engine.asked.clear()
            intern = site.authority.issue("intern")
            assert await code_of(site.dial(port, intern)) is grpc.StatusCode.PERMISSION_DENIED
            assert not engine.asked
            async with site.dial(port, intern) as channel:
                health = health_pb2_grpc.HealthStub(channel)
                for call in (health.Check, lambda *a, **k: health.Watch(*a, **k).read()):
                    with pytest.raises(grpc.aio.AioRpcError) as caught:
                        await call(health_pb2.HealthCheckRequest(), timeout=WITHIN_S)
                    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "intern" in str(site.told[0]["reason"])


@pytest.mark.req("R33")
async def test_what_the_daemons_have_for_one_another_is_not_there(site: Site) -> None:
    with fake_agent(str(site.folder / "agent.sock")):
        async with site.opened() as port, site.dial(port, site.authority.issue("ops")) as channel:
            settings = settings_pb2_grpc.SettingsServiceStub(channel)
            calls = [
                settings.GetShared(settings_pb2.GetSharedRequest(), timeout=WITHIN_S),
                settings.TakeShared(settings_pb2.TakeSharedRequest(), timeout=WITHIN_S),
                agent_pb2_grpc.AgentServiceStub(channel).Attach(iter(()), timeout=WITHIN_S).read(),
            ]
            for call in calls:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call
                assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.req("R33")
async def test_a_renewed_certificate_holds_for_the_next_connection(site: Site) -> None:
    with fake_engine(str(site.folder / "sync.sock")):
        async with site.opened() as port:
            assert await code_of(site.dial(port, site.authority.issue("ops"))) is grpc.StatusCode.OK
            later = Authority("operators of next year")
            write_files(site.folder, later, later.issue("pbx-a", address=HOST))
            assert await code_of(site.dial(port, later.issue("ops"), later)) is grpc.StatusCode.OK
            assert await code_of(site.dial(port, site.authority.issue("ops"))) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (lambda site: Path(site.files["key"]).chmod(0o644), "everybody on this machine may read the key"),
        (lambda site: Path(site.files["key"]).unlink(), "No such file"),
        (lambda site: Path(site.files["client_authority"]).unlink(), "No such file"),
    ],
)
async def test_files_that_cannot_be_used_stop_the_start(site: Site, harm: Any, why: str) -> None:
    harm(site)
    with pytest.raises(OperatorNeeded, match=why):
        async with site.opened():
            pass


# ---- the daemons themselves


def listed(channel: grpc.Channel) -> set[str]:
    return set(ProtoReflectionDescriptorDatabase(channel).get_services())


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith("ha_proto.")}


@pytest.mark.req("R33")
async def test_the_port_has_every_service_of_the_agents_socket(run_dir: Path) -> None:
    settings = lone_settings(run_dir)
    stopping = Stopping(asked=asyncio.Event())
    agent = asyncio.create_task(run_agent(settings, stopping, path="ha.toml", on_tick=lambda: None))
    try:
        async with grpc.aio.insecure_channel(f"unix:{settings.node.socket_path}") as channel:
            await health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), wait_for_ready=True, timeout=WITHIN_S
            )
        assert ours(await asyncio.to_thread(at_socket, settings.node.socket_path)) == set(AGENT_SERVICES)
    finally:
        stopping.ask()
        await agent


def at_socket(path: str) -> set[str]:
    with grpc.insecure_channel(f"unix:{path}") as channel:
        return listed(channel)


@pytest.mark.req("R30", "R33")
def test_an_engine_serves_both_ports_and_a_client_without_generated_code_can_use_them(site: Site) -> None:
    port, metrics = free_port(), free_port()
    folder = site.folder
    config = folder / "sync.toml"
    files = "".join(f"{key} = {json.dumps(path)}\n" for key, path in site.files.items())
    config.write_text(
        f'[node]\nstate_dir = "{folder}/state"\nrun_dir = "{folder}"\nlisten = "{HOST}:0"\n'
        f'[metrics]\nlisten = "{HOST}:{metrics}"\n[api]\nlisten = "{HOST}:{port}"\n{files}'
    )
    process = start_ha_sync("serve", "--config", config, "--role", Role.ACTIVE.value, "--epoch", str(Epoch(5)))
    try:
        shown = credentials(site.authority, site.authority.issue("ops"))
        with grpc.secure_channel(f"{HOST}:{port}", shown) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            ask = health_pb2.HealthCheckRequest
            answer = health.Check(ask(service=ENGINE_SERVICES[0]), wait_for_ready=True, timeout=WITHIN_S)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            # No agent runs on this node.
            silent = health.Check(ask(service=AGENT_SERVICES[0]), timeout=WITHIN_S)
            assert silent.status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert ours(listed(channel)) == set(SERVICES)
            assert ours(at_socket(str(folder / "sync.sock"))) == set(ENGINE_SERVICES)
            assert status_by_reflection(channel).epoch == 5
        text = scraped(metrics)
        assert 'ha_sync_pair{state="off"} 1.0' in text
        assert "ha_sync_agent_up 0.0" in text
        assert "ha_sync_engine_epoch 5.0" in text
    finally:
        process.terminate()
        process.communicate(timeout=WITHIN_S)
    assert process.returncode == 0


def status_by_reflection(channel: grpc.Channel) -> Any:
    """As grpcurl does: the messages are made of what the server tells of itself."""
    pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    method = pool.FindServiceByName(ENGINE_SERVICES[0]).FindMethodByName("GetStatus")
    call = channel.unary_unary(
        f"/{ENGINE_SERVICES[0]}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    return call(GetMessageClass(method.input_type)(), timeout=WITHIN_S)


def scraped(port: int) -> str:
    import urllib.request

    with urllib.request.urlopen(f"http://{HOST}:{port}/metrics", timeout=WITHIN_S) as answer:
        return str(answer.read().decode())
