"""Agents as processes that tell a mail server and a receiver: down, killed in between, duplicating; and no secrets."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from ha_agent.alarms.outbox import FILE_NAME, path_of
from ha_agent.alarms.reports import TYPES
from ha_proto.agent.v1 import agent_pb2 as pb
from tests.integration.test_agent_pair import running, settled
from tests.support.agent_engine import FakeEngine
from tests.support.agent_process import WITHIN_S, Client, Process, is_active, is_ready_standby
from tests.support.agent_settings import mac_of, new_site, pair_up, write_toml
from tests.support.alarm_receivers import Authority, Mailbox, Receiver, free_port, receiving, taking_mail

SECRET = "a-secret-that-must-not-be-seen"
FAST = "[alarms]\ngroup_s = 0.1\nclear_after_s = 0\nmessages_per_hour_max = 100\n"


def secret_in(root: Path) -> Path:
    path = root / "secret"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


def hook(root: Path, port: int) -> str:
    return f"""
[[alarm]]
name = "noc"
kind = "webhook"
url = "http://127.0.0.1:{port}/"
secret_file = "{secret_in(root)}"
"""


def report(root: Path, port: int) -> str:
    return f"""
[report]
url = "http://127.0.0.1:{port}/"
secret_file = "{secret_in(root)}"
cloud_im = true
custom_domain = "pbx.example.org"
"""


def lone(root: Path, rest: str) -> Process:
    """An agent whose peer does not exist."""
    config = write_toml(new_site(), "primary", root, rest=rest)
    pair_up(root, "primary")
    return Process(config)


def stands(engine: FakeEngine, *names: str) -> None:
    """What stands on the engine's side from the next report on."""
    del engine.report.troubles[:]
    engine.report.troubles.extend(pb.Trouble(severity="error", what="dataset halted", subject=name) for name in names)


def waiting(status: pb.AgentStatus, name: str) -> int:
    return next((target.waiting for target in status.alarm_targets if target.name == name), 0)


async def on_disk(root: Path, station: str, target: str, wanted: Callable[[list[dict[str, Any]]], bool]) -> None:
    """The messages to the target that are durable, until they are as wanted."""
    path = path_of(str(root / station / "state"))

    def documents() -> list[dict[str, Any]]:
        try:
            with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                found = database.execute("SELECT document FROM message WHERE target = ? ORDER BY place", (target,))
                return [json.loads(text) for (text,) in found]
        except sqlite3.Error:  # not made yet
            return []

    async with asyncio.timeout(WITHIN_S):
        while not wanted(await asyncio.to_thread(documents)):
            await asyncio.sleep(0.02)


def told(documents: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Of the alarms about datasets: what a receiver read, in its order."""
    return [
        (entry["change"], entry["subject"])
        for document in documents
        if document["kind"] == "alarms"
        for entry in document["entries"]
        if entry["what"] == "dataset halted"
    ]


@pytest.mark.req("R32")
async def test_what_was_queued_before_a_kill_is_delivered_after_the_restart_in_order(run_dir: Path) -> None:
    port = free_port()
    agent = lone(run_dir, FAST + hook(run_dir, port))
    try:
        async with Client(agent.socket_path) as client, FakeEngine(str(agent.socket_path)) as engine:
            stands(engine, "config")
            await on_disk(run_dir, "primary", "noc", lambda documents: len(told(documents)) == 1)
            stands(engine, "config", "cdr")
            await on_disk(run_dir, "primary", "noc", lambda documents: len(told(documents)) == 2)
            down = await client.until(lambda status: bool(status.alarm_targets[0].reason))
            assert (down.alarm_targets[0].sent, down.alarm_targets[0].waiting >= 2) == (0, True)
            agent.kill()
            stands(engine, "cdr")  # the other one ended while nobody looked
            with receiving(Receiver(secret=SECRET.encode()), port=port) as receiver:
                agent.start()
                await asyncio.to_thread(receiver.documents.until, lambda documents: len(told(documents)) == 2)
                # What comes after it waits behind it, and what was told before the kill is not told again.
                await client.until(lambda status: status.engine_attached)
                stands(engine, "cdr", "voicemail")
                await asyncio.to_thread(receiver.documents.until, lambda documents: len(told(documents)) == 3)
                await client.until(lambda status: not waiting(status, "noc"))
            assert told(receiver.documents.taken) == [("raised", "config"), ("raised", "cdr"), ("raised", "voicemail")]
            assert not receiver.refused
    finally:
        agent.close()


@pytest.mark.req("R32")
async def test_a_receiver_that_hangs_up_gets_a_message_again_with_the_same_id(run_dir: Path) -> None:
    with receiving(Receiver(secret=SECRET.encode(), answers=["drop", 503])) as receiver:
        agent = lone(run_dir, FAST + hook(run_dir, receiver.port))
        try:
            async with Client(agent.socket_path) as client, FakeEngine(str(agent.socket_path)) as engine:
                stands(engine, "config")
                await asyncio.to_thread(receiver.requests.until, lambda requests: len(requests) >= 3)
                done = await client.until(lambda status: bool(status.alarm_targets[0].sent))
                assert done.alarm_targets[0].reason == ""
                ids = [json.loads(body)["id"] for _, body in receiver.requests.taken[:3]]
                assert len(set(ids)) == 1
                assert told(receiver.documents.taken) == [("raised", "config")]
        finally:
            agent.close()


@pytest.mark.req("R32")
async def test_an_alarm_is_mailed_over_tls_and_the_agent_itself_loads_no_tls(run_dir: Path) -> None:
    authority = Authority.new(run_dir / "ca")
    served = Mailbox(username="pbx", password=SECRET)
    with taking_mail(served, certificate=authority.issue("localhost")) as mailbox:
        rest = f"""{FAST}
[[alarm]]
name = "admins"
kind = "mail"
severity = "error"
server = "localhost:{mailbox.port}"
username = "pbx"
password_file = "{secret_in(run_dir)}"
ca_file = "{authority.file}"
from = "pbx@example.org"
to = ["admin@example.org"]
"""
        agent = lone(run_dir, rest)
        try:
            async with Client(agent.socket_path) as client, FakeEngine(str(agent.socket_path)) as engine:
                answer = await client.stub.TestAlarm(pb.TestAlarmRequest(), wait_for_ready=True)
                assert [(one.target, one.sent, one.reason) for one in answer.results] == [("admins", True, "")]
                stands(engine, "config")
                mails = await asyncio.to_thread(
                    mailbox.mails.until, lambda mails: "dataset halted: config" in mails[-1][1].get_content()
                )
                assert mails[0][1]["Subject"].strip() == "[ha-sync primary] test message"
                assert set(mailbox.encrypted) == {True}
                assert not [name for name in ("_ssl", "libssl") if name in maps_of(agent)]
                listed = await client.stub.ListAlarms(pb.ListAlarmsRequest())
                (halted,) = [one for one in listed.alarms if one.what == "dataset halted"]
                assert (halted.subject, halted.state, halted.count) == ("config", "stands", 1)
                assert halted.HasField("told_unix_s")
                unknown = await failed(client.stub.TestAlarm(pb.TestAlarmRequest(target="nobody")))
                assert unknown == (grpc.StatusCode.INVALID_ARGUMENT, "2")
        finally:
            agent.close()


def maps_of(agent: Process) -> str:
    return Path(f"/proc/{agent.process.pid}/maps").read_text()


def holders_of_the_secret(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


async def failed(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    metadata = dict(caught.value.trailing_metadata() or ())
    return caught.value.code(), str(metadata.get("ha-sync-exit-code", ""))


@pytest.mark.req("R32")
async def test_where_nobody_is_told_alarms_are_listed_and_nothing_is_written(run_dir: Path) -> None:
    agent = lone(run_dir, "")
    try:
        async with Client(agent.socket_path) as client, FakeEngine(str(agent.socket_path)) as engine:
            stands(engine, "config")
            await client.until(lambda status: "dataset halted: config" in status.alarms)
            found = await client.stub.ListAlarms(pb.ListAlarmsRequest())
            assert ("dataset halted", "config") in [(one.what, one.subject) for one in found.alarms]
            assert not found.targets
            assert (await failed(client.stub.TestAlarm(pb.TestAlarmRequest())))[1] == "3"
            assert FILE_NAME not in os.listdir(run_dir / "primary" / "state")
    finally:
        agent.close()


@pytest.mark.req("R17")
async def test_each_new_active_reports_once_in_order_also_over_a_kill_and_shows_no_secret(run_dir: Path) -> None:
    port = free_port()
    service = Receiver(secret=SECRET.encode())
    rest = dict.fromkeys(("primary", "secondary"), FAST + report(run_dir, port) + hook(run_dir, port))
    async with running(run_dir, rest=rest) as pair:
        with receiving(service, port=port):
            await settled(pair)
            first = await pair.a.client.until(is_active)
            await asyncio.to_thread(service.documents.until, lambda _: len(service.reports) == 1)
            await pair.a.client.stub.Switch(pb.SwitchRequest(timeout_s=30))
            second = await pair.b.client.until(is_active)
            await asyncio.to_thread(service.documents.until, lambda _: len(service.reports) == 2)
        site = pair.site
        macs = {station: mac_of(site.local(station)) for station in ("primary", "secondary")}
        assert [one["epoch"] for one in service.reports] == [first.epoch, second.epoch]
        assert [one["active_mac"] for one in service.reports] == [macs["primary"], macs["secondary"]]
        assert [one["cloud_im"]["mac"] for one in service.reports] == [macs["primary"], macs["secondary"]]
        assert [one["custom_domain"] for one in service.reports] == [
            {"name": "pbx.example.org", "mac": macs["primary"]}
        ] * 2  # fmt: skip
        assert service.pair["nodes"] == [
            {
                "mac": macs[station],
                "address": site.local(station),
                "station_type": station,
                "type": TYPES[station],
                "role": "active" if station == "secondary" else "standby",
            }
            for station in ("primary", "secondary")
        ]

        # Nobody listens: two role changes, and the one who was Active in between is killed before it could say so.
        await pair.a.client.until(is_ready_standby)
        await pair.b.client.stub.Switch(pb.SwitchRequest(timeout_s=30))
        third = await pair.a.client.until(is_active)
        await pair.a.client.until(lambda status: waiting(status, "report") == 1)
        await on_disk(
            run_dir, "primary", "report", lambda documents: [one["epoch"] for one in documents] == [third.epoch]
        )
        pair.a.process.kill()
        fourth = await pair.b.client.until(lambda status: is_active(status) and status.epoch > third.epoch)
        await pair.b.client.until(lambda status: waiting(status, "report") == 1)
        pair.a.process.start()
        with receiving(service, port=port):
            await asyncio.to_thread(service.documents.until, lambda _: len(service.reports) == 4)
            await pair.a.client.until(is_ready_standby)
        assert {one["epoch"] for one in service.reports[2:]} == {third.epoch, fourth.epoch}
        assert service.pair["epoch"] == fourth.epoch
        assert service.pair["active_mac"] == macs["secondary"]
        for mac in macs.values():
            sequences = [one["sequence"] for one in service.reports if one["reporter"]["mac"] == mac]
            assert sequences == [1, 2]
        assert not service.refused
        shown = (await pair.a.client.stub.GetStatus(pb.GetStatusRequest())).SerializeToString()
        assert SECRET.encode() not in shown
    assert holders_of_the_secret(run_dir) == [run_dir / "secret"], "neither in a log nor in a database"
