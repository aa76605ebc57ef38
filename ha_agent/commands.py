"""Runs a program with a deadline: hooks of services and probes that are commands.

Promise: a program that overruns its deadline, or whose ``run`` is cancelled, is killed with all that it started in its
process group; what left the group on purpose, as a daemon does, lives. A program that ends by itself leaves what it
started alone. The event loop is never blocked: programs are started by a small pool of threads (an ``exec`` on a dead
mount may hang), their end is seen through a pidfd.

Output: the last ``OUTPUT_BYTES_MAX`` bytes of both streams together. The end of the program is awaited, not the end of
its output: a daemon that keeps its starter's output open would be waited for until it dies. Such output is read on and
thrown away, so that the daemon never meets a closed pipe while the agent lives.
Durations in seconds. One ``Commands`` per agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import subprocess
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

OUTPUT_BYTES_MAX = 4096
READ_BYTES = 65536
STARTERS = 4
LEFTOVERS_MAX = 64  # outputs of daemons; beyond: the oldest is closed
KILLED_WAIT_S = 1.0  # a process that hangs in the kernel is reaped when it ends, and waited for no longer


class Ending(enum.Enum):
    """How it ended."""

    OK = "ok"  # exit status 0
    FAILED = "failed"  # another status, or a signal
    OVERRUN = "overrun"  # killed at its deadline
    NOT_STARTED = "not_started"  # no such program, no permission, no memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A program that was run."""

    command: tuple[str, ...]
    ending: Ending
    status: int | None  # exit status; a signal as its negative number; None: not started, or not reaped yet
    output: str
    took_s: float

    @property
    def ok(self) -> bool:
        """Whether it did what it was asked."""
        return self.ending is Ending.OK

    @property
    def reason(self) -> str:
        """How it ended, in a word or two."""
        if self.ending is Ending.FAILED and self.status is not None:
            return f"signal {-self.status}" if self.status < 0 else f"exit status {self.status}"
        return self.ending.value


class Commands:
    """Starts, watches and ends programs. Made and used within one event loop."""

    def __init__(self) -> None:
        self._starters = ThreadPoolExecutor(max_workers=STARTERS, thread_name_prefix="command")
        self._leftovers: deque[_Output] = deque()

    async def run(
        self,
        command: tuple[str, ...],
        *,
        deadline_s: float,
        environment: Mapping[str, str] | None = None,
        given: bytes = b"",
    ) -> Finished:
        """Runs to the end or the deadline, whichever is first; never raises for what the program does.

        ``given``: what it can read from its standard input.
        """
        assert command, "an empty command"
        loop = asyncio.get_running_loop()
        begun = loop.time()
        output = _Output(loop)
        try:
            process = await self._start(command, output, deadline_s, environment, given)
        except (OSError, ValueError, TimeoutError, RuntimeError) as failed:
            output.close()
            return Finished(
                command=command,
                ending=Ending.NOT_STARTED,
                status=None,
                output=str(failed) or "starting it took longer than its deadline",
                took_s=loop.time() - begun,
            )
        except BaseException:
            output.close()
            raise
        ending = await self._watch(process, output, begun + deadline_s)
        return Finished(
            command=command,
            ending=ending,
            status=process.returncode,
            output=output.text(),
            took_s=loop.time() - begun,
        )

    def close(self) -> None:
        """Lets go of the outputs of daemons and of the threads. Does not wait for a thread that hangs."""
        for output in self._leftovers:
            output.close()
        self._leftovers.clear()
        self._starters.shutdown(wait=False, cancel_futures=True)

    async def _start(
        self,
        command: tuple[str, ...],
        output: _Output,
        deadline_s: float,
        environment: Mapping[str, str] | None,
        given: bytes,
    ) -> subprocess.Popen[bytes]:
        descriptor = output.for_program()

        def start() -> subprocess.Popen[bytes]:
            source = subprocess.DEVNULL
            try:
                source = _memory_with(given) if given else source
                return subprocess.Popen(
                    command,
                    stdin=source,
                    stdout=descriptor,
                    stderr=descriptor,
                    start_new_session=True,
                    env=None if environment is None else {**os.environ, **environment},
                )
            finally:
                os.close(descriptor)
                if source >= 0:
                    os.close(source)

        try:
            started = self._starters.submit(start)
        except RuntimeError:
            os.close(descriptor)
            raise
        try:
            async with asyncio.timeout(
                deadline_s
            ):  # wait_for of Python 3.11 loses a cancellation at the moment of the end
                return await asyncio.shield(asyncio.wrap_future(started))
        except (TimeoutError, asyncio.CancelledError):
            # The thread goes on: what it starts after all is ended as soon as it is there.
            if started.cancel():
                os.close(descriptor)
            else:
                started.add_done_callback(_end_late)
            raise

    async def _watch(self, process: subprocess.Popen[bytes], output: _Output, deadline: float) -> Ending:
        loop = asyncio.get_running_loop()
        gone = asyncio.Event()
        pidfd = os.pidfd_open(process.pid)

        def reap() -> None:
            loop.remove_reader(pidfd)
            os.close(pidfd)
            process.poll()
            gone.set()

        loop.add_reader(pidfd, reap)
        try:
            async with asyncio.timeout_at(deadline):
                await gone.wait()
        except TimeoutError:
            await _end(process, gone)
            return Ending.OVERRUN
        except asyncio.CancelledError:
            await _end(process, gone)
            raise
        finally:
            self._leave(output)
        return Ending.OK if process.returncode == 0 else Ending.FAILED

    def _leave(self, output: _Output) -> None:
        output.read()
        self._leftovers = deque(one for one in self._leftovers if not one.closed)
        if not output.closed:
            output.forget()
            self._leftovers.append(output)
        while len(self._leftovers) > LEFTOVERS_MAX:
            self._leftovers.popleft().close()


class _Output:
    """What a program says, read as it comes: a full pipe would stop the program."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._tail = b""
        self._keeps = True
        self._read_end, self._write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._write_end, True)
        self.closed = False
        loop.add_reader(self._read_end, self._once)

    def for_program(self) -> int:
        """The end to write into; whoever takes it closes it."""
        taken, self._write_end = self._write_end, -1
        return taken

    def read(self) -> None:
        """Takes what is there; a writer that never pauses is left to the loop."""
        for _ in range(16):
            if self.closed or not self._once():
                return

    def forget(self) -> None:
        """Throws away what comes from now on."""
        self._keeps = False

    def text(self) -> str:
        """The last of it, for a person."""
        return self._tail.decode(errors="replace").strip()

    def close(self) -> None:
        """Ends the reading."""
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self._read_end)
            os.close(self._read_end)
        if self._write_end >= 0:
            os.close(self._write_end)
            self._write_end = -1

    def _once(self) -> bool:
        try:
            data = os.read(self._read_end, READ_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self.close()
            return False
        if self._keeps:
            self._tail = (self._tail + data)[-OUTPUT_BYTES_MAX:]
        return True


def _memory_with(content: bytes) -> int:
    """A descriptor to read it from: no pipe that could be full, no file that could be left behind."""
    descriptor = os.memfd_create("given", os.MFD_CLOEXEC)
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


async def _end(process: subprocess.Popen[bytes], gone: asyncio.Event) -> None:
    _kill(process)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILLED_WAIT_S):
            await gone.wait()


def _end_late(started: Future[subprocess.Popen[bytes]]) -> None:
    if started.exception() is None:
        process = started.result()
        _kill(process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(KILLED_WAIT_S)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The whole group. Its id is the leader's pid, which is not given anew while the leader is not reaped."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
