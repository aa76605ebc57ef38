"""Small AMI and SIP responders on 127.0.0.1: right, wrong, slow, silent, garbage. Written from the protocols alone."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import cast

NAME, SECRET = "ha", "s3cret"


@dataclass
class Ami:
    """What the manager interface does; ``mode`` may be changed while it runs."""

    mode: str = "right"
    port: int = 0
    logins: int = 0
    pings: int = 0
    connections: list[asyncio.StreamWriter] = field(default_factory=list)

    def drop(self) -> None:
        """Ends every connection."""
        for writer in self.connections:
            writer.transport.abort()
        self.connections.clear()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await self._speak(reader, writer)

    async def _speak(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "mute":
            await reader.read()
        greeting = "SSH-2.0-OpenSSH" if self.mode == "stranger" else "Asterisk Call Manager/9.0.0"
        writer.write(f"{greeting}\r\n".encode())
        known = False
        while True:
            text = (await reader.readuntil(b"\r\n\r\n")).decode()
            asked = dict(line.split(": ", 1) for line in text.strip().split("\r\n"))
            if asked["Action"] == "Login":
                self.logins += 1
                known = (asked["Username"], asked["Secret"]) == (NAME, SECRET)
                words = ("Success", "Authentication accepted") if known else ("Error", "Authentication failed")
            else:
                self.pings += 1
                words = ("Success", "Pong") if known else ("Error", "Permission denied")
            writer.write(self._answer(asked["ActionID"], *words))

    def _answer(self, name: str, response: str, message: str) -> bytes:
        event = b"Event: FullyBooted\r\nPrivilege: system,all\r\n\r\n"
        right = f"Response: {response}\r\nActionID: {name}\r\nMessage: {message}\r\n\r\n".encode()
        match self.mode:
            case "silent":
                return b""
            case "chatty":
                return event * 50 + right
            case "garbage":
                return b"\x00\xff\x01 what is this\r\n\r\n"
            case "endless":
                return b"x" * 200_000
            case "others":
                return f"Response: Success\r\nActionID: not-{name}\r\n\r\n".encode()
            case "odd":
                return f"Response: Maybe\r\nActionID: {name}\r\n\r\n".encode()
        return right


@contextlib.asynccontextmanager
async def ami(mode: str = "right") -> AsyncIterator[Ami]:
    """A manager interface on a free port."""
    made = Ami(mode=mode)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        made.drop()
        await asyncio.sleep(0)


class Sip(asyncio.DatagramProtocol):
    """Answers datagrams with what ``answer`` makes of them."""

    def __init__(self, answer: Callable[[Sip, str], list[bytes]]) -> None:
        self.answer = answer
        self.asked: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)  # it is not one by class before Python 3.12

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append(data.decode())
        for reply in self.answer(self, self.asked[-1]):
            self.transport.sendto(reply, addr)


def reply(request: str, status: str = "200 OK", **changes: str) -> bytes:
    """A response of RFC 3261 8.2.6 to the request; ``changes`` spoil a header: via, call_id, cseq."""
    headers = dict(line.split(": ", 1) for line in request.split("\r\n")[1:] if ": " in line)
    via = changes.get("via", headers["Via"].replace(";rport", ";received=127.0.0.1;rport=5060"))
    lines = (
        f"SIP/2.0 {status}",
        f"Via: {via}",
        f"Call-ID: {changes.get('call_id', headers['Call-ID'])}",
        f"From: {headers['From']}",
        f"To: {headers['To']};tag=z",
        f"CSeq: {changes.get('cseq', headers['CSeq'])}",
        "Server: Asterisk PBX",
        "Content-Length:  0",
    )
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@contextlib.asynccontextmanager
async def sip(answer: Callable[[Sip, str], list[bytes]], host: str = "127.0.0.1") -> AsyncIterator[tuple[Sip, int]]:
    """A user agent on a free port."""
    loop = asyncio.get_running_loop()
    transport, made = await loop.create_datagram_endpoint(lambda: Sip(answer), local_addr=(host, 0))
    try:
        yield made, transport.get_extra_info("sockname")[1]
    finally:
        transport.close()
