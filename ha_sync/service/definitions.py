"""What the pair replicates, and when: the Active tells what it runs with, the Standby writes it into its ``sync.toml``.

A shared document of ``Life``'s. Its version is a digest: equal definitions are one version, whoever wrote them, and of
two that differ the Active's are the pair's. Invariants: a file is changed only on a Standby, whole or not at all; each
node keeps its own paths; a dataset that goes leaves nothing of ours in its data; one that comes is refused where this
node holds data at its path, for the next full sync would replace that. The running engine goes on as it started.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable

from ha_sync.config import Settings, saving, shared, shared_text
from ha_sync.core.dataset import Report
from ha_sync.errors import HaSyncError, Refused
from ha_sync.pairing import exporting

AGAIN_S = 30.0
"""What was refused is not looked at again before, unless what is told or the file changes."""


class Definitions:
    """One for each engine. ``detach`` removes what is ours from a dataset's data, and says what that was."""

    def __init__(
        self, settings: Settings, *, detach: Callable[[str], Awaitable[tuple[str, ...]]], report: Report
    ) -> None:
        self._running = settings
        self._file = settings.file
        self._detach = detach
        self._report = report
        self._known: tuple[tuple[int, ...], str] | None = None  # the file's signature, and what it says
        self._refused: tuple[str, tuple[int, ...], float] | None = None  # what was told, of which file, and when

    @property
    def told(self) -> str:
        """As the Active: the version that this engine runs with; empty: it was started without a file."""
        return shared.digest_of(self._running.shared) if self._file else ""

    @property
    def text(self) -> str:
        """What ``told`` names."""
        return self._running.shared

    async def here(self) -> str:
        """The version that stands in the file now. Raises ConfigFault."""
        return shared.digest_of(await asyncio.to_thread(self._text)) if self._file else ""

    @property
    def notices(self) -> tuple[str, ...]:
        """For ``status``: whether the file says something else than what this engine runs with. Blocking, a stat."""
        try:
            differs = bool(self._file) and shared.digest_of(self._text()) != self.told
        except HaSyncError as wrong:
            return (f"{wrong.sentence()}: ha-sync would not start again",)
        return (f"{self._file} was changed: it holds after a restart of ha-sync",) if differs else ()

    async def take(self, told: str) -> None:
        """The Active's in the place of this node's; whole or not at all. Raises ConfigFault, Refused."""
        here = await asyncio.to_thread(self._signature)
        now = time.monotonic()
        if self._refused is not None and self._refused[:2] == (told, here) and now - self._refused[2] < AGAIN_S:
            return
        self._refused = (told, here, now)
        made = await asyncio.to_thread(saving.draft, self._file, told)
        await asyncio.to_thread(refuse_held, self._running, made.settings)
        removed = await self._let_go(made.settings)
        await asyncio.to_thread(saving.save, self._file, made)
        self._refused = None
        fields: dict[str, object] = {"changed": ", ".join(made.changed), "file": self._file}
        if removed:
            fields["removed"] = ", ".join(removed)
        self._report("warning", "definitions came from the Active: they hold after a restart of ha-sync", fields)

    async def _let_go(self, wanted: Settings) -> list[str]:
        """Guards that nobody knows of any more would refuse the PBX its writes after the next switch."""
        kept = {(dataset.name, dataset.kind) for dataset in wanted.datasets}
        removed: list[str] = []
        for dataset in self._running.datasets:
            if (dataset.name, dataset.kind) not in kept:
                removed += await self._detach(dataset.name)
        return removed

    def _signature(self) -> tuple[int, ...]:
        try:
            seen = os.stat(self._file)
        except OSError:
            return ()
        return seen.st_mtime_ns, seen.st_size, seen.st_ino

    def _text(self) -> str:
        signature = self._signature()
        if self._known is None or self._known[0] != signature:
            self._known = (signature, shared_text(self._file))
        return self._known[1]


def refuse_held(before: Settings, after: Settings) -> None:
    """Raises Refused where a dataset that ``before`` does not have would replace data of this node. Blocking."""
    known = {(dataset.name, dataset.kind) for dataset in before.datasets}
    come = tuple(one for one in after.datasets if (one.name, one.kind) not in known and one.essential)
    holding = exporting.holding(come)
    if holding:
        paths = ", ".join(one.path for one in come if one.name in holding)
        raise Refused(
            "cannot take the definitions of the Active",
            subject=", ".join(holding),
            reason=f"this node holds data of its own at {paths}, which the first full sync would replace",
            hint="move it away, or enter the dataset in sync.toml of this node if it may be replaced",
        )
