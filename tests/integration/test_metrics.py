"""Metrics: a real parser reads them, both daemons are in them, and nothing that comes to the port harms it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from ha_proto.agent.v1 import agent_pb2
from ha_proto.sync.v1 import control_pb2 as pb
from ha_proto.sync.v1 import storage_pb2
from ha_sync.errors import OperatorNeeded
from ha_sync.service.measures import Look
from ha_sync.service.metrics_port import AT_ONCE_MAX, Asker, metrics_port, page
from tests.support import agent_service, control_service

AGENT = agent_pb2.AgentStatus()
AGENT.CopyFrom(agent_service.STATUS)
AGENT.paths[0].beats = 1234
AGENT.beats_refused["stranger"] = 3
AGENT.alarm_targets.add(name="ops", waiting=2)
ENGINE = pb.Status()
ENGINE.CopyFrom(control_service.STATUS)
ENGINE.full_backup.state, ENGINE.full_backup.percent = "backing up", 25
NOW = 2_000_000_000.0
BACKUP = pb.RunRecord(kind="full-backup", result="partial", begin_unix_s=NOW - 100, end_unix_s=NOW - 60, differing=7)
SYNC = pb.RunRecord(
    kind="storage-sync",
    result="done",
    begin_unix_s=NOW - 100,
    end_unix_s=NOW - 30,
    bytes_sent=5,
    facts={"storage": "usb0"},
)
STORAGE = pb.StoragePair(
    name="usb0",
    synced=True,
    here=storage_pb2.FoundStorage(name="usb0", mounted=True, free_bytes=77),
    sync=pb.StorageProgress(name="usb0", progress=pb.FullBackupProgress(state="backing up", percent=50)),
)
ALARMS = (
    agent_pb2.AlarmRecord(severity="error", what="fault", subject='process "x"\nand more', state="stands"),
    agent_pb2.AlarmRecord(severity="info", what="gone", subject="y", state="gone"),
)
LOOK = Look(
    now_unix_s=NOW,
    engine=ENGINE,
    agent=AGENT,
    alarms=ALARMS,
    divergences=(pb.DivergenceArchive(state="kept"), pb.DivergenceArchive(state="kept")),
    backup=BACKUP,
    storages=(STORAGE,),
    syncs=(SYNC,),
)

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str, *, parse: Any = parser.text_string_to_metric_families) -> Series:
    """Every sample; none may stand there twice."""
    samples = [sample for family in parse(text) for sample in family.samples]
    found = {(sample.name, frozenset(sample.labels.items())): sample.value for sample in samples}
    assert len(found) == len(samples)
    return found


def value(series: Series, name: str, **labels: str) -> float:
    return series["ha_sync_" + name, frozenset(labels.items())]


@pytest.mark.req("R30")
def test_a_parser_reads_what_the_daemons_say() -> None:
    content, content_type = page(LOOK, "")
    assert content_type.startswith("text/plain")
    series = read(content.decode())
    assert [value(series, "role", role=role) for role in ("active", "standby")] == [1, 0]
    assert value(series, "epoch") == 8
    assert value(series, "lease_left_seconds") == 4.25
    assert value(series, "cluster_ip_held") == 1
    assert value(series, "beats_received_total", path="lan") == 1234
    assert value(series, "beat_age_seconds", path="lan") == 0.05
    assert ("ha_sync_beat_age_seconds", frozenset({("path", "cable")})) not in series  # never heard: no age
    assert value(series, "beats_refused_total", kind="stranger") == 3
    assert value(series, "probe_bad", probe="fxo:3") == 1
    assert value(series, "backlog", dataset="cdr", priority="") == 2
    assert value(series, "dataset_state", dataset="voicemail", state="halted") == 1
    assert value(series, "lag_seconds_bucket", dataset="cdr", le="0.0025") == 80
    assert value(series, "lag_seconds_bucket", dataset="cdr", le="+Inf") == 101
    assert value(series, "lag_seconds_count", dataset="cdr") == 101
    assert value(series, "lag_seconds_sum", dataset="cdr") == 0.512
    assert value(series, "full_backup_age_seconds") == 60
    assert [value(series, "full_backup_result", result=word) for word in ("done", "partial")] == [0, 1]
    assert value(series, "full_backup_progress_ratio") == 0.25
    assert value(series, "storage_sync_age_seconds", storage="usb0") == 30
    assert value(series, "storage_sync_progress_ratio", storage="usb0") == 0.5
    assert value(series, "storage_free_bytes", storage="usb0") == 77
    assert value(series, "divergences", state="kept") == 2
    assert value(series, "alarm_standing", severity="error", what="fault", subject='process "x"\nand more') == 1
    assert sum(name == "ha_sync_alarm_standing" for name, _ in series) == 1
    assert value(series, "alarm_messages_waiting", target="ops") == 2


@pytest.mark.req("R30")
def test_openmetrics_is_given_to_whoever_prefers_it() -> None:
    content, content_type = page(LOOK, "application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    series = read(content.decode(), parse=openmetrics_parser.text_string_to_metric_families)
    assert value(series, "lag_seconds_bucket", dataset="cdr", le="0.01") == 100


@pytest.mark.req("R30")
def test_of_a_silent_daemon_nothing_is_said_but_that_it_is_silent() -> None:
    series = read(page(Look(now_unix_s=NOW), "")[0].decode())
    assert series == {("ha_sync_engine_up", frozenset()): 0, ("ha_sync_agent_up", frozenset()): 0}


# ---- the port


@contextlib.asynccontextmanager
async def opened(ask: Any = None) -> AsyncIterator[int]:
    async def known() -> Look:
        return LOOK

    async with metrics_port(("127.0.0.1:0",), ask or known) as (server,):
        yield server.sockets[0].getsockname()[1]


async def asked(port: int, request: bytes) -> tuple[str, bytes]:
    """Status line and body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.decode().split("\r\n")[0], body


@pytest.mark.req("R30")
@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n", "200 OK"),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", "200 OK"),
        (b"GET /other HTTP/1.1\r\n\r\n", "404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        (b"\xff\xfe\r\n\r\n", "400 Bad Request"),
        (b"GET /metrics HTTP/1.1\r\n" + b"X: " + b"y" * 20_000 + b"\r\n\r\n", "431 Request Header Fields Too Large"),
    ],
)
async def test_a_request_is_answered_for_what_it_is(request_line: bytes, status: str) -> None:
    async with opened() as port:
        line, body = await asked(port, request_line)
        assert line == f"HTTP/1.1 {status}"
        assert bool(body) == (status == "200 OK")
        if body:
            assert value(read(body.decode()), "agent_up") == 1


async def test_head_has_no_body_and_the_same_length() -> None:
    async with opened() as port:
        line, body = await asked(port, b"HEAD /metrics HTTP/1.1\r\n\r\n")
        assert (line, body) == ("HTTP/1.1 200 OK", b"")


async def test_who_leaves_in_the_middle_harms_nobody() -> None:
    async with opened() as port:
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /met")
            writer.close()
        line, _ = await asked(port, b"GET /metrics HTTP/1.1\r\n\r\n")
        assert line == "HTTP/1.1 200 OK"


async def test_too_many_at_once_are_sent_away() -> None:
    async with opened() as port:
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(AT_ONCE_MAX)]
        line, _ = await asked(port, b"")
        assert line == "HTTP/1.1 503 Service Unavailable"
        for _, writer in silent:
            writer.close()


async def test_an_address_in_use_is_a_matter_for_a_person() -> None:
    async with opened() as port:
        with pytest.raises(OperatorNeeded, match="cannot serve metrics"):
            async with metrics_port((f"127.0.0.1:{port}",), lambda: pytest.fail("never asked")):
                pass


# ---- the daemons


@pytest.mark.req("R30")
async def test_both_daemons_are_asked_and_one_that_is_gone_hides_nothing_of_the_other(run_dir: Path) -> None:
    engine_path, agent_path = str(run_dir / "sync.sock"), str(run_dir / "agent.sock")
    asker = Asker(engine_path, agent_path)
    try:
        assert (await asker()).engine is None
        with control_service.fake_engine(engine_path) as engine:
            engine.answers |= {
                "ListDivergences": pb.ListDivergencesResponse(),
                "ListRuns": lambda request, _context: [BACKUP] if request.log == "backup" else [SYNC],
                "ListStorages": pb.ListStoragesResponse(storages=[STORAGE]),
            }
            async with asyncio.timeout(30):
                while (look := await asker()).engine is None:  # it came back: found within a second
                    await asyncio.sleep(0.05)
            assert look.agent is None
            assert (look.backup, look.syncs, look.storages) == (BACKUP, (SYNC,), (STORAGE,))
            with agent_service.fake_agent(agent_path) as agent:
                agent.answers["ListAlarms"] = agent_pb2.ListAlarmsResponse(alarms=ALARMS)
                async with asyncio.timeout(30):
                    while (look := await asker()).agent is None:
                        await asyncio.sleep(0.05)
                assert look.alarms == ALARMS
    finally:
        await asker.close()
