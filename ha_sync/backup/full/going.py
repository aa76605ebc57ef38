"""A run that goes on: what an examiner may ask of it, its pace, its progress, and where it is in each dataset.

Runs in the engine's event loop. Seconds are monotonic but where the name says otherwise.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from ha_sync.backup.full.memory import NOTHING, DatasetState, RunState, plus
from ha_sync.backup.full.progress import Meter
from ha_sync.core.dataset import DatasetName
from ha_sync.core.examine import Depth, Examined, Fault, Finding, Side
from ha_sync.logs.runs import RunId
from ha_sync.logs.writer import wall_clock

if TYPE_CHECKING:
    from ha_sync.backup.full.runner import FullBackup

STORE_EVERY_S = 2.0
SUBJECTS_TOLD = 5


class Going:
    """One run, and what an examiner may ask of it (``core.examine.Run``), for one dataset after the other."""

    def __init__(self, owner: FullBackup, state: RunState, entry: RunId, expected: dict[DatasetName, int]) -> None:
        self._owner = owner
        self.state = state
        self.entry = entry
        self.began = time.monotonic()
        self.phase = "comparing"
        self.names = tuple(expected)  # in order of priority
        self.name = DatasetName("")
        self.meter = Meter({str(name): objects for name, objects in expected.items()}, now=self.began)
        for name, known in state.datasets.items():
            if name in expected:
                part = known.done or known.so_far
                self.meter.resumed(
                    name, objects=part.objects, content_bytes=part.content_bytes, over=known.done is not None
                )
        self.going = asyncio.Event()
        self.going.set()
        self.live = NOTHING  # of the examination that goes on now
        self.before = NOTHING  # of the earlier parts of the same dataset
        self.ending = False
        self.active_side = 0  # faults of this node: never repaired by us
        self.subjects: list[str] = []
        self.wire_before = owner.wire_bytes
        self._allowed_at = 0.0
        self._stored_at = float("-inf")
        self._equal_until: float | None = None

    # ---- core.examine.Run

    @property
    def depth(self) -> Depth:
        """How far to look."""
        return self.state.depth

    async def spend(self, content_bytes: int) -> None:
        """Waits while paused or above the rate."""
        await self.going.wait()
        rate = self._owner.settings.rate_mib_per_s * 1024 * 1024
        if rate:
            now = time.monotonic()
            wait_s = self._allowed_at - now
            self._allowed_at = max(self._allowed_at, now) + content_bytes / rate
            if wait_s > 0:
                await asyncio.sleep(wait_s)
                await self.going.wait()

    def advance(self, *, objects: int, content_bytes: int) -> None:
        """So much more is done."""
        self.meter.advance(self.name, objects=objects, content_bytes=content_bytes, now=time.monotonic())
        self.live = replace(
            self.live, objects=self.live.objects + objects, content_bytes=self.live.content_bytes + content_bytes
        )

    def expect(self, *, objects: int, content_bytes: int) -> None:
        """So much is there."""
        self.meter.expect(self.name, objects=objects, content_bytes=content_bytes)

    def found(self, finding: Finding) -> None:
        """To the log."""
        live = self.live
        unverified = finding.fault is Fault.UNVERIFIED
        self.live = replace(
            live,
            differing=live.differing + (not unverified),
            repaired=live.repaired + finding.repaired,
            unverified=live.unverified + unverified,
        )
        self.active_side += finding.side is Side.ACTIVE and not finding.repaired and not unverified
        if len(self.subjects) < SUBJECTS_TOLD:
            self.subjects.append(f"{finding.dataset}: {finding.subject} ({finding.fault.value})")
        self._owner.runs.found(self.entry, finding)

    async def replicated(self) -> None:
        """The barrier."""
        await self._owner.host.replicated(self.name)

    def sending(self, *, objects: int, content_bytes: int) -> None:
        """Progress alone: these are looked at afterwards."""
        self.meter.advance(self.name, objects=objects, content_bytes=content_bytes, now=time.monotonic())

    def in_phase(self, words: str) -> None:
        """For people."""
        self.phase = words
        self._owner.news()

    @property
    def cursor(self) -> bytes:
        """Where an interrupted run was."""
        return bytes.fromhex(self.part.cursor)

    async def reached(self, cursor: bytes) -> None:
        """Stored, now and then."""
        self.put(replace(self.part, cursor=cursor.hex(), so_far=plus(self.before, self.live)))
        now = time.monotonic()
        if now - self._stored_at >= STORE_EVERY_S:
            self._stored_at = now
            await self._owner.store(self.state)

    @property
    def equal_until_unix_s(self) -> float | None:
        """When it was last proved equal."""
        return self._equal_until

    # ---- for the runner

    @property
    def part(self) -> DatasetState:
        """Where this run is in the present dataset."""
        return self.state.datasets.get(self.name, DatasetState())

    def put(self, part: DatasetState) -> None:
        """Notes it."""
        self.state = replace(self.state, datasets={**self.state.datasets, str(self.name): part})

    def turn_to(self, name: DatasetName, *, equal_until_unix_s: float | None) -> None:
        """The next examination."""
        self.name = name
        self._equal_until = equal_until_unix_s
        self.live = NOTHING
        self.before = self.part.so_far
        if not self.part.begun_unix_s:
            self.put(DatasetState(begun_unix_s=wall_clock()))

    @property
    def tally(self) -> Examined:
        """Of all datasets so far."""
        total = plus(self.before, self.live) if self.part.done is None else NOTHING
        for name, part in self.state.datasets.items():
            if part.done is not None:
                total = plus(total, part.done)
            elif name != self.name:
                total = plus(total, part.so_far)
        return total
