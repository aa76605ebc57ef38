"""Does the PBX answer SIP? One ``OPTIONS`` over UDP, and any final answer that is certainly to it.

RFC 3261: a response repeats the top Via with its branch (8.2.6.2, 17.1.3), the Call-ID and the CSeq of the request; the
branch begins with the magic cookie z9hG4bK (8.1.1.7). Every status from 200 on proves that the stack lives, a 404 or
401 as well as a 200 (11.2: OPTIONS of an unknown user is answered like an INVITE). 100-199 are waited over. What
answers something else, or nothing that is SIP, is *garbage*; what answers an earlier look goes to a closed port.

UDP may be lost: within one look the request is sent again after 0.5 s, 1 s, 2 s ... (timer E, T1 = 500 ms).
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import re
import secrets
import socket
from dataclasses import dataclass

from ha_agent.health.look import GOOD, Look, Reason, bad
from ha_agent.health.probe import Plain

T1_S = 0.5
T2_S = 4.0
DATAGRAM_BYTES_MAX = 65535
DATAGRAMS_MAX = 256  # in one look; more is a flood, not an answer
COOKIE = "z9hG4bK"
COMPACT = {"v": "via", "i": "call-id", "f": "from", "t": "to", "l": "content-length"}  # RFC 3261, 7.3.3

_STATUS = re.compile(r"SIP/2\.0 ([1-6]\d\d)(?: |\Z)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What must come back."""

    branch: str
    call_id: str
    cseq: int
    text: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A well-formed response."""

    status: int
    branch: str
    call_id: str
    cseq: str


class SipProbe(Plain):
    """Asks one user agent."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._serial = 0

    async def look(self) -> tuple[Look, ...]:
        """One request, repeated until it is answered; the caller's deadline ends it."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ipaddress.ip_address(self._address[0]).version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as udp:
            udp.setblocking(False)
            try:
                udp.connect(self._address)
                self._serial += 1
                request = options(udp.getsockname()[:2], self._address, self._serial)
                return (await self._ask(loop, udp, request),)
            except ConnectionRefusedError:
                return (bad(Reason.REFUSED, "nobody listens"),)
            except OSError as failed:
                return (bad(Reason.SILENT, str(failed)),)

    async def _ask(self, loop: asyncio.AbstractEventLoop, udp: socket.socket, request: Request) -> Look:
        wait_s, oddity = T1_S, ""
        udp.send(request.text)
        for _ in range(DATAGRAMS_MAX):
            try:
                async with asyncio.timeout(wait_s):
                    data = await loop.sock_recv(udp, DATAGRAM_BYTES_MAX)
            except TimeoutError:
                if oddity:
                    return bad(Reason.GARBAGE, oddity)
                with contextlib.suppress(BlockingIOError):
                    udp.send(request.text)
                wait_s = min(2 * wait_s, T2_S)
                continue
            answer = parse(data)
            oddity = _oddity(answer, request) or oddity
            if answer is not None and not _oddity(answer, request) and answer.status >= 200:
                return GOOD
        return bad(Reason.GARBAGE, oddity or "only provisional answers")


def options(local: tuple[str, int], peer: tuple[str, int], serial: int) -> Request:
    """A request of RFC 3261, 11.1; ids that nobody can guess, so that only who read it can answer."""
    branch = COOKIE + secrets.token_hex(12)
    here, there = _host_port(local), _host_port(peer)
    call_id = f"{secrets.token_hex(12)}@{_host(local[0])}"
    lines = (
        f"OPTIONS sip:{there} SIP/2.0",
        f"Via: SIP/2.0/UDP {here};branch={branch};rport",
        "Max-Forwards: 70",
        f"From: <sip:ha-agent@{here}>;tag={secrets.token_hex(6)}",
        f"To: <sip:{there}>",
        f"Call-ID: {call_id}",
        f"CSeq: {serial} OPTIONS",
        f"Contact: <sip:ha-agent@{here}>",
        "Accept: application/sdp",
        "User-Agent: ha-agent",
        "Content-Length: 0",
    )
    return Request(branch=branch, call_id=call_id, cseq=serial, text=("\r\n".join(lines) + "\r\n\r\n").encode())


def parse(data: bytes) -> Answer | None:
    """A response, or None where the datagram is none."""
    head, blank, _ = data.partition(b"\r\n\r\n")
    try:
        status_line, *lines = head.decode().split("\r\n")
    except UnicodeDecodeError:
        return None
    status = _STATUS.match(status_line)
    if status is None or not blank:
        return None
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        key = name.strip().lower()
        if colon:
            headers.setdefault(COMPACT.get(key, key), value.strip())  # the first Via is the top one
    branch = re.search(r";\s*branch\s*=\s*([^;,\s]+)", headers.get("via", ""))
    return Answer(
        status=int(status[1]),
        branch=branch[1] if branch else "",
        call_id=headers.get("call-id", ""),
        cseq=" ".join(headers.get("cseq", "").split()),
    )


def _oddity(answer: Answer | None, request: Request) -> str:
    if answer is None:
        return "what came is no SIP response"
    for name, told, asked in (
        ("Call-ID", answer.call_id, request.call_id),
        ("branch", answer.branch, request.branch),
        ("CSeq", answer.cseq, f"{request.cseq} OPTIONS"),
    ):
        if told != asked:
            return f"answers with another {name}"
    return ""


def _host(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _host_port(address: tuple[str, int]) -> str:
    return f"{_host(address[0])}:{address[1]}"
