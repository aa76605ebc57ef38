"""The Active's end of a database, whichever way it is captured; with ``auto`` it chooses, and chooses again.

A change of the method is a new incarnation: the other way's state is removed before it begins, so the Standby compares.
From rows there is no way back to pages while the engine runs: the triggers are in, and the file must not be opened by
hand beside the connection of the rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import replace

import apsw

from ha_sync.capture.choice import Choice, choose, look
from ha_sync.capture.pages import PagesSource
from ha_sync.capture.rows import RowsSource
from ha_sync.config import CaptureMode, SqliteSettings
from ha_sync.core.dataset import DatasetReport, DatasetState, Report, Session
from ha_sync.core.frame import Frame
from ha_sync.core.position import NOWHERE, Answer, Epoch, Position
from ha_sync.database.durable import write_durably
from ha_sync.errors import HaSyncError, Refused, Retryable, WrongState

AGAIN_S = 30.0
AGAIN_MISSING_S = 2.0


class DatabaseSource:
    """A `Source` (core/dataset.py) that hands everything on to the way of capture in use."""

    def __init__(self, settings: SqliteSettings, *, state_dir: str | os.PathLike[str], report: Report) -> None:
        self._settings = settings
        self._state_dir = os.fspath(state_dir)
        self._report_event = report
        self._epoch = Epoch(0)
        self._choice = Choice(method="", why="")
        self._inner: RowsSource | PagesSource | None = None
        self._session: _Session | None = None
        self._changing = asyncio.Lock()
        self._again: asyncio.Task[None] | None = None

    async def open(self, epoch: Epoch) -> None:
        """Chooses, and starts capture."""
        self._epoch = epoch
        choice = choose(self._settings, await asyncio.to_thread(look, self._settings))
        await self._begin(choice)
        if self._settings.capture is CaptureMode.AUTO:
            self._again = asyncio.create_task(self._choose_again(), name=f"choice {self._settings.name}")

    async def subscribe(self, applied: Position) -> Session:
        """A session of the way in use."""
        async with self._changing:
            self._session = _Session(await self._opened().subscribe(applied))
            return self._session

    def report(self) -> DatasetReport:
        """As the way in use says, with the reason of the choice."""
        if self._inner is None:
            return DatasetReport(state=DatasetState.STARTING, position=NOWHERE)
        report = self._inner.report()
        return replace(report, method=f"{report.method or self._choice.method} ({self._choice.why})")

    async def settled(self) -> Position:
        """The barrier of the way in use."""
        return await self._opened().settled()

    async def resend(self, objects: tuple[bytes, ...]) -> None:
        """Handed on."""
        await self._opened().resend(objects)

    @property
    def way(self) -> RowsSource | PagesSource:
        """The source in use. Raises WrongState where there is none."""
        return self._opened()

    async def resume(self, *, accept_deletes: bool) -> None:
        """Handed on."""
        await self._opened().resume(accept_deletes=accept_deletes)

    async def attach(self) -> tuple[str, ...]:
        """Changes to rows and installs the triggers now, whoever has the database open: the operator knows better."""
        if self._settings.capture is CaptureMode.PAGES:
            raise Refused(
                "cannot attach to", subject=self._settings.path, reason="capture = pages", hint="set rows or auto"
            )
        async with self._changing:
            if isinstance(self._inner, PagesSource):
                await self._change(Choice(method="rows", why="attached by an operator"))
            rows = self._opened()
            assert isinstance(rows, RowsSource)
            await rows.attach()
        return (f"capture triggers in {self._settings.path}",)

    async def detach(self) -> tuple[str, ...]:
        """Removes every trace of the way in use."""
        await self._stop_choosing()
        return await self._opened().detach()

    async def close(self) -> None:
        """Stops capture."""
        await self._stop_choosing()
        async with self._changing:
            inner, self._inner = self._inner, None
            if inner is not None:
                await inner.close()

    # ---- choosing -------------------------------------------------------------------------------------------------

    async def _begin(self, choice: Choice) -> None:
        if await asyncio.to_thread(self._method_before) != choice.method:
            await asyncio.to_thread(self._forget, choice.method)
        self._choice = choice
        state = self._state_path(choice.method)
        kind = RowsSource if choice.method == "rows" else PagesSource
        inner = kind(self._settings, state_path=state, report=self._report_event)
        await inner.open(self._epoch)
        self._inner = inner

    async def _change(self, choice: Choice) -> None:
        before, self._inner = self._inner, None
        assert before is not None
        if self._session is not None:
            self._session.changed = True
        await before.close()
        fields = {"dataset": self._settings.name, "method": choice.method, "why": choice.why}
        try:
            await self._begin(choice)
        except (HaSyncError, OSError, apsw.Error) as error:
            # Better the old way than none.
            self._report_event("error", "way of capture could not be changed", {**fields, "reason": str(error)})
            await self._begin(Choice(method="pages", why=f"the change to {choice.method} failed"))
            raise
        self._report_event("info", "way of capture changed", dict(fields))

    async def _choose_again(self) -> None:
        while True:
            pages = self._inner
            if not isinstance(pages, PagesSource):
                return  # from rows there is no way back
            await asyncio.sleep(AGAIN_MISSING_S if "no database" in self._choice.why else AGAIN_S)
            async with self._changing:
                if self._inner is not pages:
                    continue
                # In the thread of the pages, where no connection of ours can be open at the same time.
                choice = choose(self._settings, await pages.work(lambda: look(self._settings)))
                if choice.method == "rows":
                    with contextlib.suppress(HaSyncError, OSError, apsw.Error):  # told; tried again later
                        await self._change(choice)
                else:
                    self._choice = choice

    async def _stop_choosing(self) -> None:
        task, self._again = self._again, None
        if task is not None:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    def _opened(self) -> RowsSource | PagesSource:
        if self._inner is None:
            raise WrongState("the source is closed", subject=self._settings.path)
        return self._inner

    # ---- what is remembered ---------------------------------------------------------------------------------------

    def _state_path(self, method: str) -> str:
        return os.path.join(self._state_dir, f"source-{method}")

    def _method_before(self) -> str:
        try:
            with open(os.path.join(self._state_dir, "source.method"), encoding="ascii") as file:
                return file.read().strip()
        except (OSError, ValueError):
            return ""

    def _forget(self, method: str) -> None:
        """Removes the state of ``method``, then says that it is in use; a crash between the two only compares."""
        base = os.path.basename(self._state_path(method))
        for name in os.listdir(self._state_dir):
            if name == base or name.startswith((f"{base}.", f"{base}-")):
                os.unlink(os.path.join(self._state_dir, name))
        write_durably(os.path.join(self._state_dir, "source.method"), method.encode())


class _Session:
    """A session that ends with ``Retryable`` when the way of capture changed: the subscriber comes again."""

    def __init__(self, inner: Session) -> None:
        self._inner = inner
        self.changed = False

    @property
    def answer(self) -> Answer:
        return self._inner.answer

    @property
    def method(self) -> str:
        return self._inner.method

    async def compare(self, inventory: AsyncIterator[bytes]) -> None:
        await self._inner.compare(inventory)

    async def frames(self) -> AsyncIterator[Frame]:
        async for frame in self._inner.frames():
            yield frame
        if self.changed:
            raise Retryable("the stream begins anew", reason="the way of capture changed")

    def acknowledge(self, position: Position) -> None:
        if not self.changed:
            self._inner.acknowledge(position)

    def need(self, paths: tuple[bytes, ...]) -> None:
        if not self.changed:
            self._inner.need(paths)

    def partials(self, partials: tuple[bytes, ...]) -> None:
        self._inner.partials(partials)

    async def close(self) -> None:
        await self._inner.close()
