"""AMI, SIP and commands against real responders: right, wrong, slow, silent, garbage."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ha_agent.commands import Commands
from ha_agent.health.ami import AmiProbe
from ha_agent.health.command import CommandProbe
from ha_agent.health.look import Look, Reason
from ha_agent.health.probe import Probe
from ha_agent.health.sip import SipProbe, options, parse
from tests.support.health_responders import NAME, SECRET, Sip, ami, reply, sip

pytestmark = pytest.mark.req("R12")
SHORT_S = 1.2  # longer than the first repetition of a request


async def look(probe: Probe) -> Look:
    """One look, as the monitor takes it."""
    try:
        async with asyncio.timeout(SHORT_S):
            (found,) = await probe.look()
    except TimeoutError:
        return Look(good=False, reason=Reason.SILENT)
    return found


def closed_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port


@pytest.fixture
def secret_file(tmp_path: Path) -> str:
    file = tmp_path / "secret"
    file.write_text(SECRET + "\n")
    return str(file)


@pytest.fixture
async def commands() -> AsyncIterator[Commands]:
    made = Commands()
    yield made
    made.close()


async def test_a_manager_that_answers_is_good_and_the_connection_is_kept(secret_file: str) -> None:
    async with ami() as server:
        probe = AmiProbe(("127.0.0.1", server.port), username=NAME, secret_file=secret_file)
        assert [(await look(probe)).good for _ in range(3)] == [True, True, True]
        assert (server.logins, server.pings) == (1, 3)
        await probe.close()


async def test_a_manager_that_refuses_a_stranger_has_answered() -> None:
    async with ami() as server:
        probe = AmiProbe(("127.0.0.1", server.port))
        assert (await look(probe)).good
        await probe.close()


async def test_a_connection_that_the_server_ended_is_dialled_again(secret_file: str) -> None:
    async with ami() as server:
        probe = AmiProbe(("127.0.0.1", server.port), username=NAME, secret_file=secret_file)
        assert (await look(probe)).good
        server.drop()
        assert (await look(probe)).good
        assert server.logins == 2
        await probe.close()


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("chatty", Reason.NONE),
        ("mute", Reason.SILENT),
        ("silent", Reason.SILENT),
        ("others", Reason.SILENT),
        ("stranger", Reason.GARBAGE),
        ("garbage", Reason.GARBAGE),
        ("endless", Reason.GARBAGE),
        ("odd", Reason.GARBAGE),
    ],
)
async def test_what_a_manager_may_do(mode: str, reason: Reason) -> None:
    async with ami(mode) as server:
        probe = AmiProbe(("127.0.0.1", server.port))
        assert (await look(probe)).reason is reason
        await probe.close()


async def test_a_wrong_secret_is_told_apart_from_a_dead_program(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("nonsense")
    async with ami() as server:
        probe = AmiProbe(("127.0.0.1", server.port), username=NAME, secret_file=str(wrong))
        assert (await look(probe)).reason is Reason.DENIED
        wrong.write_text("two\nlines")
        assert (await look(probe)).reason is Reason.DENIED
        wrong.write_text(SECRET)
        assert (await look(probe)).good
        await probe.close()


async def test_a_manager_that_hangs_and_comes_back_is_good_again(secret_file: str) -> None:
    async with ami() as server:
        probe = AmiProbe(("127.0.0.1", server.port), username=NAME, secret_file=secret_file)
        assert (await look(probe)).good
        server.mode = "silent"
        assert (await look(probe)).reason is Reason.SILENT
        server.mode = "right"
        assert (await look(probe)).good
        await probe.close()


async def test_nobody_at_the_manager_port_is_refused() -> None:
    assert (await look(AmiProbe(("127.0.0.1", closed_port(socket.SOCK_STREAM))))).reason is Reason.REFUSED


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "401 Unauthorized", "503 Busy", "200"])
async def test_any_final_sip_answer_proves_life(status: str) -> None:
    async with sip(lambda _, request: [reply(request, status)]) as (_, port):
        assert (await look(SipProbe(("127.0.0.1", port)))).good


async def test_sip_over_ipv6() -> None:
    try:
        async with sip(lambda _, request: [reply(request)], host="::1") as (server, port):
            assert (await look(SipProbe(("::1", port)))).good
            assert f"OPTIONS sip:[::1]:{port} SIP/2.0\r\n" in server.asked[0]
    except OSError:
        pytest.skip("this machine has no ::1")


async def test_a_provisional_answer_is_waited_over() -> None:
    async with sip(lambda _, request: [reply(request, "100 Trying"), reply(request)]) as (_, port):
        assert (await look(SipProbe(("127.0.0.1", port)))).good
    async with sip(lambda _, request: [reply(request, "100 Trying")]) as (_, port):
        assert (await look(SipProbe(("127.0.0.1", port)))).reason is Reason.SILENT


async def test_a_lost_datagram_is_asked_for_again() -> None:
    def second_time(server: Sip, request: str) -> list[bytes]:
        return [reply(request)] if len(server.asked) > 1 else []

    async with sip(second_time) as (server, port):
        assert (await look(SipProbe(("127.0.0.1", port)))).good
        assert server.asked[0] == server.asked[1]


@pytest.mark.parametrize(
    ("spoiled", "detail"),
    [
        ({"call_id": "another"}, "another Call-ID"),
        ({"cseq": "77 OPTIONS"}, "another CSeq"),
        ({"cseq": "1 INVITE"}, "another CSeq"),
        ({"via": "SIP/2.0/UDP 127.0.0.1:5060;branch=z9hG4bKother"}, "another branch"),
        ({"via": "SIP/2.0/UDP 127.0.0.1:5060"}, "another branch"),
    ],
)
async def test_an_answer_to_somebody_else_is_garbage(spoiled: dict[str, str], detail: str) -> None:
    async with sip(lambda _, request: [reply(request, **spoiled)]) as (_, port):
        found = await look(SipProbe(("127.0.0.1", port)))
    assert found.reason is Reason.GARBAGE
    assert detail in found.detail


@pytest.mark.parametrize(
    "data", [b"\r\n\r\n", b"\xff" * 40, b"HTTP/1.1 200 OK\r\n\r\n", b"SIP/2.0 200 OK\r\n", b"SIP/2.0 999 X\r\n\r\n"]
)
async def test_what_is_no_sip_is_garbage(data: bytes) -> None:
    async with sip(lambda *_: [data]) as (_, port):
        assert (await look(SipProbe(("127.0.0.1", port)))).reason is Reason.GARBAGE


async def test_garbage_beside_a_right_answer_does_no_harm() -> None:
    async with sip(lambda _, request: [b"noise", reply(request, call_id="x"), reply(request)]) as (_, port):
        assert (await look(SipProbe(("127.0.0.1", port)))).good


async def test_a_flood_of_garbage_ends() -> None:
    async with sip(lambda *_: [b"noise"] * 300) as (_, port):
        assert (await look(SipProbe(("127.0.0.1", port)))).reason is Reason.GARBAGE


async def test_a_silent_sip_stack_and_an_absent_one_are_told_apart() -> None:
    async with sip(lambda *_: []) as (_, port):
        assert (await look(SipProbe(("127.0.0.1", port)))).reason is Reason.SILENT
    assert (await look(SipProbe(("127.0.0.1", closed_port(socket.SOCK_DGRAM))))).reason is Reason.REFUSED


def test_the_request_is_well_formed() -> None:
    request = options(("127.0.0.1", 40000), ("127.0.0.1", 5060), 7)
    head, _, body = request.text.decode().partition("\r\n\r\n")
    start, *lines = head.split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    assert start == "OPTIONS sip:127.0.0.1:5060 SIP/2.0"
    assert {"Via", "Max-Forwards", "From", "To", "Call-ID", "CSeq", "Content-Length"} <= set(headers)
    assert headers["CSeq"] == "7 OPTIONS"
    assert headers["Via"] == f"SIP/2.0/UDP 127.0.0.1:40000;branch={request.branch};rport"
    assert request.branch.startswith("z9hG4bK")
    assert (headers["Content-Length"], body) == ("0", "")


def test_compact_header_names_are_read() -> None:
    answer = parse(b"SIP/2.0 200 OK\r\nv: SIP/2.0/UDP h ; branch = z9hG4bKa\r\ni: c\r\nCSEQ:  1   OPTIONS\r\n\r\n")
    assert answer is not None
    assert (answer.branch, answer.call_id, answer.cseq) == ("z9hG4bKa", "c", "1 OPTIONS")


async def test_a_command_speaks_by_its_exit_status(commands: Commands) -> None:
    assert (await look(CommandProbe(commands, ("/bin/true",), deadline_s=5))).good
    failed = await look(CommandProbe(commands, ("/bin/sh", "-c", "echo one; echo two; exit 3"), deadline_s=5))
    assert (failed.reason, failed.detail) == (Reason.FAILED, "exit status 3: two")
    absent = await look(CommandProbe(commands, ("/nonexistent/program",), deadline_s=5))
    assert absent.reason is Reason.UNREADABLE


async def test_a_command_past_its_deadline_is_silent(commands: Commands) -> None:
    probe = CommandProbe(commands, (sys.executable, "-c", "import time; time.sleep(60)"), deadline_s=0.2)
    assert (await look(probe)).reason is Reason.SILENT
