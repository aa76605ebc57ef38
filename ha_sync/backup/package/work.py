"""The parent's side of ``child``: starts the process, feeds its task, takes what it says, and ends it when cancelled.

    async with Work(task, report=...) as work:
        async for piece in work.output(): ...     # an export's package
        result = await work.result()

The process is in a group of its own and dies with the block, whatever happens; it leaves nothing that a later one would
stumble over. One event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Final, Self

from ha_sync import errors
from ha_sync.errors import HaSyncError, OperatorNeeded

OUTPUT_BYTES: Final = 512 * 1024
LINE_MAX: Final = 4 * 1024 * 1024
UNSAID_MAX: Final = 4096
MODULE: Final = "ha_sync.backup.package"

Told = Callable[[str, Any], None]
"""``told("expect" | "done", value)``, in the loop."""


class Work:
    """See the module."""

    def __init__(self, task: dict[str, Any], *, told: Told) -> None:
        self._task = task
        self._told = told
        self._process: asyncio.subprocess.Process
        self._listening: asyncio.Task[None]
        self._end: dict[str, Any] = {}
        self._unsaid = ""
        self._begun = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(),
            start_new_session=True,
            limit=LINE_MAX,
        )
        self._listening = asyncio.create_task(self._listen())
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(json.dumps({**self._task, "parent": os.getpid()}).encode())
            await self._process.stdin.drain()
        self._process.stdin.close()
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        self._listening.cancel()
        await asyncio.gather(self._listening, return_exceptions=True)
        ending = asyncio.ensure_future(self._process.wait())
        while not ending.done():  # it was killed: this is short, and nobody may go on before it is gone
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(ending)

    async def begun(self) -> None:
        """Until the process has said what there is to do, or has ended."""
        await self._begun.wait()

    async def output(self) -> AsyncIterator[bytes]:
        """What the process writes to its standard output, until it closes it."""
        assert self._process.stdout is not None
        while piece := await self._process.stdout.read(OUTPUT_BYTES):
            yield piece

    async def result(self) -> dict[str, Any]:
        """What it came to. Raises what the process raised."""
        async for _ in self.output():
            pass
        await self._listening
        code = await self._process.wait()
        if "error" in self._end:
            raise _raised(self._end["error"])
        result = self._end.get("result")
        if code != 0 or not isinstance(result, dict):
            reason = self._unsaid.strip().splitlines()[-1:] or [f"it ended with {code}"]
            raise OperatorNeeded("the process that packs and unpacks failed", reason=reason[0])
        return result

    async def _listen(self) -> None:
        try:
            await self._listen_on()
        finally:
            self._begun.set()

    async def _listen_on(self) -> None:
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            try:
                said = json.loads(line)
            except ValueError:
                said = None
            if not isinstance(said, dict):  # a traceback
                self._unsaid = (self._unsaid + line.decode(errors="replace"))[-UNSAID_MAX:]
                continue
            for what, value in said.items():
                if what in {"result", "error"}:
                    self._end[what] = value
                else:
                    self._told(what, value)
                    self._begun.set()


def _raised(said: dict[str, str]) -> HaSyncError:
    kind = getattr(errors, said["class"], HaSyncError)
    if not (isinstance(kind, type) and issubclass(kind, HaSyncError)) or kind is errors.ConfigFault:
        kind = HaSyncError
    return kind(said["attempted"], subject=said["subject"], reason=said["reason"], hint=said["hint"])


def _environment() -> dict[str, str]:
    """The modules where this process has them, whatever its folder is."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
