"""Does the PBX answer on its manager interface? An AMI ``Ping`` over TCP.

The protocol (docs.asterisk.org, "AMI v2 Specification"): the server greets with one line ("Asterisk Call Manager/..."
and its version), then both sides send blocks of ``Key: Value`` lines, each ended by an empty line; a response carries
the ``ActionID`` of its action; events may stand in between. Before a login every other action is answered with
``Response: Error`` and "Permission denied": also an answer, so a ping without a login proves that the manager lives.
With a name and a secret the answer must be ``Success``.

The connection is kept, because a login is a line in the PBX's log each time; any bad look closes it. One that the
server ended between two looks (it does so after 30 s without a login, and at a reload) is dialled again within the
look. The secret is read from its file at each login and never kept.
"""

from __future__ import annotations

import asyncio
import os

from ha_agent.health.look import GOOD, Look, Reason, bad
from ha_agent.health.probe import Plain

GREETING = b"Asterisk Call Manager"
LINE_BYTES_MAX = 65536
BLOCK_LINES_MAX = 512
BLOCKS_MAX = 4096  # events that may come before our answer; the deadline of the look bounds the time
SECRET_BYTES_MAX = 256

Block = dict[str, str]


class _Odd(Exception):
    """What came is not AMI."""


class _Denied(Exception):
    """The server does not know us."""


class AmiProbe(Plain):
    """Pings one manager interface."""

    def __init__(self, address: tuple[str, int], *, username: str = "", secret_file: str = "") -> None:
        self._address = address
        self._username = username
        self._secret_file = secret_file
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._serial = 0

    async def look(self) -> tuple[Look, ...]:
        """One ping; the first one connects and logs in."""
        healthy = False
        try:
            found = await self._ping_again() if self._streams is not None else await self._ping()
            healthy = found.good
        except _Odd as odd:
            found = bad(Reason.GARBAGE, str(odd))
        except _Denied as denied:
            found = bad(Reason.DENIED, str(denied))
        except ConnectionRefusedError:
            found = bad(Reason.REFUSED, "nobody listens")
        except (OSError, EOFError) as failed:
            found = bad(Reason.SILENT, str(failed) or "the connection ended")
        finally:  # also when the deadline cancels: an answer that comes late must not be taken for the next one's
            if not healthy:
                self._drop()
        return (found,)

    def restart(self) -> None:
        """A new PBX: a new connection."""
        self._drop()

    async def close(self) -> None:
        """Ends the connection."""
        self._drop()

    async def _ping_again(self) -> Look:
        try:
            return await self._ping()
        except (OSError, EOFError):
            self._drop()
            return await self._ping()

    async def _ping(self) -> Look:
        if self._streams is None:
            await self._connect()
        answer = await self._ask("Ping")
        if answer.get("response") == "Success":
            return GOOD
        if answer.get("response") != "Error":
            raise _Odd(f"answered a ping with {answer}")
        if self._username:
            raise _Denied(answer.get("message", ""))
        return GOOD

    async def _connect(self) -> None:
        host, port = self._address
        self._streams = await asyncio.open_connection(host, port, limit=LINE_BYTES_MAX)
        greeting = await self._line()
        if not greeting.startswith(GREETING):
            raise _Odd(f"greets with {greeting[:60]!r}")
        if self._username:
            secret = await asyncio.to_thread(self._secret)
            answer = await self._ask("Login", Username=self._username, Secret=secret, Events="off")
            if answer.get("response") != "Success":
                raise _Denied(answer.get("message", "the login was refused"))

    async def _ask(self, action: str, **fields: str) -> Block:
        assert self._streams is not None
        self._serial += 1
        name = f"ha-{self._serial}"
        lines = [f"Action: {action}", f"ActionID: {name}", *(f"{key}: {value}" for key, value in fields.items())]
        self._streams[1].write(("\r\n".join(lines) + "\r\n\r\n").encode())
        await self._streams[1].drain()
        for _ in range(BLOCKS_MAX):
            block = await self._block()
            if block.get("actionid") == name and "response" in block:
                return block
        raise _Odd(f"{BLOCKS_MAX} blocks and no answer among them")

    async def _block(self) -> Block:
        found: Block = {}
        for _ in range(BLOCK_LINES_MAX):
            line = (await self._line()).decode(errors="replace")
            if not line and found:
                return found
            key, colon, value = line.partition(":")
            if line and not colon:
                raise _Odd(f"sends {line[:60]!r}")
            if line:
                found[key.strip().lower()] = value.strip()
        raise _Odd(f"a block of more than {BLOCK_LINES_MAX} lines")

    async def _line(self) -> bytes:
        assert self._streams is not None
        try:
            line = await self._streams[0].readline()
        except ValueError as long:
            raise _Odd(f"a line of more than {LINE_BYTES_MAX} bytes") from long
        if not line.endswith(b"\n"):
            raise EOFError
        return line.rstrip(b"\r\n")

    def _secret(self) -> str:
        with open(self._secret_file, "rb") as file:
            secret = file.read(SECRET_BYTES_MAX).decode(errors="replace").strip()
        if not secret or not secret.isprintable():
            raise _Denied(f"{os.path.basename(self._secret_file)} holds no secret of one line")
        return secret

    def _drop(self) -> None:
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None
