"""The Standby's end of a database, whichever way the Active captures it; the Active's answer says which.

From pages to rows the published file becomes the base, with the node's own rows put back; from rows to pages the file
is replaced, and our guards and the position in it with it. The last way is remembered, so that guards stand at once
after a restart.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable

from ha_sync.apply.pages import PagesSink
from ha_sync.apply.rows import RowsSink
from ha_sync.config import CaptureMode, SqliteSettings
from ha_sync.core.dataset import DatasetReport, Finished, Report
from ha_sync.core.frame import Frame
from ha_sync.core.position import Answer, Epoch, Position
from ha_sync.database.durable import write_durably
from ha_sync.errors import ProtocolFault, RepairNeeded

METHODS = ("rows", "pages")


class DatabaseSink:
    """A `Sink` (core/dataset.py) that hands everything on to the way in use."""

    def __init__(self, settings: SqliteSettings, *, state_dir: str | os.PathLike[str], report: Report) -> None:
        self._settings = settings
        self._state_dir = os.fspath(state_dir)
        self._report_event = report
        self._epoch = Epoch(0)
        self._active_at = ""
        self._durable: Callable[[Position], None] = lambda _: None
        self._failure: Callable[[Exception], None] = lambda _: None
        self._need: Callable[[tuple[bytes, ...]], None] = lambda _: None
        self._method = self._method_before()
        self._inner = self._made(self._method)

    async def open(self, epoch: Epoch, *, active_at: str) -> None:
        """Opens the way that was last in use."""
        self._epoch, self._active_at = epoch, active_at
        await self._inner.open(epoch, active_at=active_at)

    @property
    def applied(self) -> Position:
        """What is durable here."""
        return self._inner.applied

    async def partials(self) -> tuple[bytes, ...]:
        """As the way of capture says."""
        return await self._inner.partials()

    async def begin(self, answer: Answer, method: str) -> None:
        """Changes the way where the Active did."""
        if method not in METHODS:
            raise ProtocolFault("cannot follow", subject=self._settings.path, reason=f"method {method!r}")
        if method != self._method:
            await self._change(method)
            if answer is Answer.RESUME:
                raise RepairNeeded("cannot resume", subject=self._settings.path, reason="the way of capture changed")
        await self._inner.begin(answer, method)

    async def inventory(self) -> AsyncIterator[bytes]:
        """As the way in use makes it."""
        async for chunk in self._inner.inventory():
            yield chunk

    async def receive(self, frame: Frame) -> None:
        """Handed on."""
        await self._inner.receive(frame)

    def on_durable(self, callback: Callable[[Position], None]) -> None:
        """Kept over a change."""
        self._durable = callback
        self._connect()

    def on_failure(self, callback: Callable[[Exception], None]) -> None:
        """Kept over a change."""
        self._failure = callback
        self._connect()

    def on_need(self, callback: Callable[[tuple[bytes, ...]], None]) -> None:
        """Kept over a change."""
        self._need = callback
        self._connect()

    @property
    def way(self) -> RowsSink | PagesSink:
        """The sink in use."""
        return self._inner

    def report(self) -> DatasetReport:
        """As the way in use says."""
        return self._inner.report()

    async def promote(self) -> tuple[Finished, ...]:
        """As the way in use does."""
        return await self._inner.promote()

    async def detach(self) -> tuple[str, ...]:
        """As the way in use does."""
        return await self._inner.detach()

    async def resume(self, *, accept_deletes: bool) -> None:
        """Handed on."""
        await self._inner.resume(accept_deletes=accept_deletes)

    async def close(self) -> None:
        """Stops."""
        await self._inner.close()

    async def _change(self, method: str) -> None:
        if isinstance(self._inner, PagesSink):
            # Its mode and the node's own rows come back: the file is the base of what follows.
            await self._inner.promote()
        await self._inner.close()
        await asyncio.to_thread(self._forget, method)
        self._method = method
        self._inner = self._made(method)
        self._connect()
        await self._inner.open(self._epoch, active_at=self._active_at)

    def _made(self, method: str) -> RowsSink | PagesSink:
        kind = RowsSink if method == "rows" else PagesSink
        return kind(self._settings, state_path=self._state_path(method), report=self._report_event)

    def _connect(self) -> None:
        self._inner.on_durable(self._durable)
        self._inner.on_failure(self._failure)
        self._inner.on_need(self._need)

    def _state_path(self, method: str) -> str:
        return os.path.join(self._state_dir, f"sink-{method}")

    def _method_before(self) -> str:
        try:
            with open(os.path.join(self._state_dir, "sink.method"), encoding="ascii") as file:
                kept = file.read().strip()
        except (OSError, ValueError):
            kept = ""
        if kept in METHODS:
            return kept
        return "rows" if self._settings.capture is CaptureMode.ROWS else "pages"

    def _forget(self, method: str) -> None:
        """Removes the state of ``method``, then says that it is in use; a crash between the two only compares."""
        base = os.path.basename(self._state_path(method))
        for name in os.listdir(self._state_dir):
            if name == base or name.startswith((f"{base}.", f"{base}-")):
                os.unlink(os.path.join(self._state_dir, name))
        write_durably(os.path.join(self._state_dir, "sink.method"), method.encode())
