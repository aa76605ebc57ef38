"""The agent's end of ``Attach``: what the engine reports, and what it is directed (DESIGN 9).

One engine at a time: a newer call ends the older. A role that was directed is repeated to whoever attaches, and, with
the paths to the peer, whenever these change. A quiesce that runs is repeated too, with what is left of its deadline: an
engine that was restarted goes on with it. An engine that says nothing for ``silent_s`` is lost, as is one whose call
ended: a stopped process keeps its connection. All callbacks are called in the loop and must not block. Seconds are
monotonic, of the loop's clock.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass

from ha_proto.agent.v1 import agent_pb2 as pb

log = logging.getLogger("ha_agent")

SILENT_S = 2.5
DIRECTIVES_MAX = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What came of a quiesce of the engine."""

    digest: str | None  # of the final positions; None: not everything is on the Standby
    waiting_for: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quiescing:
    serial: int
    deadline: float
    end_backup: bool

    def directive(self) -> pb.Directive:
        left_ms = max(1, round((self.deadline - asyncio.get_running_loop().time()) * 1000))
        return pb.Directive(
            quiesce=pb.QuiesceDirective(serial=self.serial, deadline_ms=left_ms, end_backup=self.end_backup)
        )


class EngineLink:
    """See the module."""

    def __init__(
        self,
        *,
        on_report: Callable[[pb.EngineReport], None],
        on_lost: Callable[[], None],
        silent_s: float = SILENT_S,
        model: str = "",
        firmware: str = "",
    ) -> None:
        """``model`` and ``firmware`` of this node, which the engine writes into packages."""
        self._on_report = on_report
        self._on_lost = on_lost
        self._silent_s = silent_s
        self._report: pb.EngineReport | None = None
        self._reported_at = float("-inf")
        self._role: pb.RoleDirective | None = None
        self._paths: tuple[pb.PeerPath, ...] = ()
        self._beside = {"shared_version": "", "hold": ""}
        self._quiescing: _Quiescing | None = None
        self._told = {"model": model, "firmware": firmware}
        self._restoring = False
        self._directives: asyncio.Queue[pb.Directive | None] | None = None
        self._news = asyncio.Event()
        self._serial = secrets.randbits(32)  # what an engine carried out for an earlier agent is none of ours

    @property
    def report(self) -> pb.EngineReport | None:
        """The newest report of an engine that is attached."""
        return self._report

    def direct(self, role: str, epoch: int, *, active_at: str) -> None:
        """The role to take; repeated to an engine that attaches later."""
        self._role = pb.RoleDirective(
            role=role,
            epoch=epoch,
            active_at=active_at,
            paths=self._paths,
            **self._beside,
            **self._told,
        )
        self._send(pb.Directive(role=self._role))

    def tell_paths(self, paths: tuple[pb.PeerPath, ...]) -> None:
        """The ways to the peer, the best first. Where they have changed, the role is said again with them."""
        if paths == self._paths:
            return
        self._paths = paths
        if self._role is not None:
            role = pb.RoleDirective()
            role.CopyFrom(self._role)  # a copy: the older one may still wait to be sent
            role.ClearField("paths")
            role.paths.extend(paths)
            self._role = role
            self._send(pb.Directive(role=role))

    def tell_shared(self, version: str) -> None:
        """Which of the pair's settings this node has. Where that has changed, the role is said again with it."""
        self._tell_beside("shared_version", version)

    def tell_hold(self, reason: str) -> None:
        """Why nothing may be streamed from the other node, or that it may (""). Said again like the paths."""
        self._tell_beside("hold", reason)

    def _tell_beside(self, name: str, value: str) -> None:
        if value == self._beside[name]:
            return
        self._beside[name] = value
        if self._role is not None:
            role = pb.RoleDirective()
            role.CopyFrom(self._role)
            setattr(role, name, value)
            self._role = role
            self._send(pb.Directive(role=role))

    @property
    def directed(self) -> int:
        """The epoch of the role that was directed last; 0: none was."""
        return self._role.epoch if self._role is not None else 0

    @property
    def restoring(self) -> bool:
        """Whether an engine exchanges the data, or was lost while it did: only an engine can say that it is whole."""
        return self._restoring

    async def restored(self) -> None:
        """Waits until no restore wants the services stopped."""
        while self._restoring:
            await self._news.wait()

    def answer_restore(self, serial: int, *, stopped: bool, reason: str = "") -> None:
        """The services are stopped, or why they are not."""
        answer = pb.RestoreDirective(serial=serial, stopped=stopped, reason=reason)
        self._send(pb.Directive(restore=answer))

    def resume(self) -> None:
        """A quiesce was given up."""
        self._send(pb.Directive(resume=pb.ResumeDirective()))

    async def promoted(self, epoch: int, *, within_s: float) -> bool:
        """Waits until the engine has finished the promotion of ``epoch`` (or a later one). False: not in time."""
        return await self._until(lambda report: report.promoted >= epoch, within_s)

    async def quiesce(self, *, within_s: float, end_backup: bool) -> Drained:
        """Everything that was written is captured and brought to the Standby, or it is said what is missing."""
        self._serial += 1
        deadline = asyncio.get_running_loop().time() + within_s
        mine = self._quiescing = _Quiescing(serial=self._serial, deadline=deadline, end_backup=end_backup)
        self._send(mine.directive())
        try:
            if await self._until(lambda report: report.quiesced == mine.serial, within_s) and self._report is not None:
                return Drained(digest=self._report.digest)
        finally:
            if self._quiescing is mine:
                self._quiescing = None
        return Drained(digest=None, waiting_for=tuple(self._report.waiting_for) if self._report else ("the engine",))

    async def serve(self, reports: AsyncIterator[pb.EngineReport]) -> AsyncGenerator[pb.Directive, None]:
        """One call of an engine: takes its reports, yields its directives."""
        self._end_call()
        directives = self._directives = asyncio.Queue(maxsize=DIRECTIVES_MAX)
        if self._role is not None:
            directives.put_nowait(pb.Directive(role=self._role))
        if self._quiescing is not None:
            directives.put_nowait(self._quiescing.directive())
        reading = asyncio.create_task(self._read(reports, directives))
        try:
            while (directive := await directives.get()) is not None:
                yield directive
        finally:
            if self._directives is directives:
                self._directives = None
                self._lose()
            reading.cancel()
            await asyncio.wait((reading,))
            if not reading.cancelled() and (failed := reading.exception()) is not None:
                log.info("the engine's call ended", extra={"reason": repr(failed)})

    async def watch(self) -> None:
        """Notices an engine that fell silent; until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            left_s = self._reported_at + self._silent_s - loop.time()
            if self._report is not None and left_s <= 0:
                self._lose()
            await asyncio.sleep(left_s if self._report is not None else self._silent_s)

    async def _read(
        self, reports: AsyncIterator[pb.EngineReport], directives: asyncio.Queue[pb.Directive | None]
    ) -> None:
        try:
            async for report in reports:
                if self._directives is not directives:
                    return
                self._reported_at = asyncio.get_running_loop().time()
                self._report = report
                self._restoring = report.restore != 0
                self._announce()
                self._on_report(report)
        finally:
            _put(directives, None)

    async def _until(self, condition: Callable[[pb.EngineReport], bool], within_s: float) -> bool:
        try:
            async with asyncio.timeout(within_s):
                while self._report is None or not condition(self._report):
                    await self._news.wait()
                return True
        except TimeoutError:
            return False

    def _announce(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    def _lose(self) -> None:
        if self._report is not None:
            self._report = None
            self._announce()
            self._on_lost()

    def _send(self, directive: pb.Directive) -> None:
        if self._directives is not None:
            _put(self._directives, directive)

    def _end_call(self) -> None:
        if self._directives is not None:
            _put(self._directives, None)
            self._directives = None


def _put(directives: asyncio.Queue[pb.Directive | None], directive: pb.Directive | None) -> None:
    """A full queue: the engine stands still. The oldest gives way, the newest role is what counts."""
    while directives.full():
        directives.get_nowait()
    directives.put_nowait(directive)
