"""The sync of one storage, as an examination of the runner that full backups have too.

1. It is waited for until it is there. 2. The first time a plan is made, by metadata: without room there nothing begins.
3. It is admitted: the live stream sends what the other node lacks, held while the run is paused. 4. When everything is
durable there, both are compared, by metadata or by content, and what differs is repaired through the stream.
A run that is cancelled in its first sync takes the admission back: what was copied stays, nothing more is sent.
Runs in the engine's event loop; seconds are monotonic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, cast

from ha_sync.core.examine import Examined, Examiner, Peer, Run
from ha_sync.errors import Refused, Retryable

LOOK_S = 0.1
PEER_QUIET_S = 20.0
"""So long the stream may be away before the run waits for the Standby as a whole."""


class Streamed(Protocol):
    """The storage's live stream on the Active."""

    @property
    def away(self) -> str:
        """Why the storage is not there now."""

    @property
    def admitted(self) -> bool:
        """Whether it was asked for."""

    async def admit(self, *, admitted: bool) -> None:
        """It is asked for, or no more."""

    def hold(self, *, held: bool) -> None:
        """Nothing is sent meanwhile."""

    @property
    def in_full_sync(self) -> bool:
        """Whether the Standby does not have everything once."""

    @property
    def connected(self) -> bool:
        """Whether the Standby takes it."""

    @property
    def backlog(self) -> int:
        """Objects that the Standby lacks, as far as is known."""

    @property
    def objects(self) -> int:
        """About how many there are."""

    @property
    def sent_bytes(self) -> int:
        """Handed to the stream since it was opened."""

    async def replicated(self) -> None:
        """Returns when everything is durable on the Standby; may wait for ever."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needed:
    """What the first sync has to send."""

    objects: int
    content_bytes: int


Plan = Callable[[Peer, Run], Awaitable[Needed]]
"""Raises Refused where it must not begin."""


class StorageSync:
    """See the module; an ``Examiner``."""

    def __init__(self, name: str, stream: Streamed, *, plan: Plan, examiner: Callable[[], Examiner]) -> None:
        self._name = name
        self._stream = stream
        self._plan = plan
        self._examiner = examiner

    async def examine(self, peer: Peer, run: Run) -> Examined:
        """Raises Refused, or Retryable: then it goes on later."""
        await self._until_there(run)
        first = not self._stream.admitted
        try:
            if first:
                run.in_phase("planning")
                needed = await self._plan(peer, run)
                run.expect(objects=needed.objects + self._stream.objects, content_bytes=needed.content_bytes)
                await self._stream.admit(admitted=True)
            await self._sent(run)
        except (asyncio.CancelledError, Refused):
            if first and self._stream.in_full_sync:
                self._withdrawn = asyncio.ensure_future(self._stream.admit(admitted=False))
            raise
        finally:
            self._stream.hold(held=False)
        run.in_phase("comparing")
        return await self._examiner().examine(peer, cast("Run", _Afterwards(run, self._told)))

    _withdrawn: asyncio.Future[None] | None = None
    _told = 0  # objects that were told as sent

    async def _until_there(self, run: Run) -> None:
        if self._stream.away:
            run.in_phase("waiting for the storage")
            while self._stream.away:
                await asyncio.sleep(LOOK_S)

    async def _sent(self, run: Run) -> None:
        """Everything is durable on the Standby; progress meanwhile."""
        run.in_phase("sending")
        watch = _Watch(self._name, self._stream)
        # A barrier asks again and again: in a full sync it would only be in the way.
        while self._stream.in_full_sync:
            await self._pace(run)
            await asyncio.sleep(LOOK_S)
            watch.look()
            run.sending(objects=watch.sent, content_bytes=watch.sent_bytes)
            self._told += watch.sent
        barrier = asyncio.ensure_future(self._stream.replicated())
        try:
            while not barrier.done():
                await self._pace(run)
                await asyncio.wait({barrier}, timeout=LOOK_S)
                watch.look()
            barrier.result()
        finally:
            barrier.cancel()
            await asyncio.gather(barrier, return_exceptions=True)

    async def _pace(self, run: Run) -> None:
        """Holds the stream's full sync for as long as the run is paused."""
        waiting = asyncio.ensure_future(run.spend(0))
        try:
            await asyncio.wait({waiting}, timeout=0.01)
            if not waiting.done():
                self._stream.hold(held=self._stream.in_full_sync)
                await waiting
                self._stream.hold(held=False)
            waiting.result()
        finally:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)


class _Watch:
    """What has gone since the last look, and whether it goes at all."""

    def __init__(self, name: str, stream: Streamed) -> None:
        self._name = name
        self._stream = stream
        self._quiet_s = 0.0
        self._objects = 0
        self._bytes = stream.sent_bytes
        self.sent = self.sent_bytes = 0

    def look(self) -> None:
        """Raises Retryable where the storage or the Standby is away."""
        stream = self._stream
        if stream.away:
            raise Retryable("stopped", subject=self._name, reason=stream.away)
        self._quiet_s = 0.0 if stream.connected else self._quiet_s + LOOK_S
        if self._quiet_s > PEER_QUIET_S:
            raise Retryable("cannot send", subject=self._name, reason="the standby does not take it")
        objects, size = max(self._objects, stream.objects - stream.backlog), stream.sent_bytes
        self.sent, self.sent_bytes = objects - self._objects, max(0, size - self._bytes)
        self._objects, self._bytes = objects, size


class _Afterwards:
    """The run of what follows: what was sent before counts as done."""

    def __init__(self, run: Run, sent: int) -> None:
        self._run = run
        self._sent = sent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._run, name)

    def expect(self, *, objects: int, content_bytes: int) -> None:
        self._run.expect(objects=objects + self._sent, content_bytes=content_bytes)
