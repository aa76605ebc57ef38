"""Compares one table with the Standby's, repairs what differs and verifies the repair.

Ranges of keys are hashed on both nodes at the same time; a range that differs is cut finer, at last into rows. What
differs is a *unit*: a row, or a range where most of it differs. A unit counts only when it holds still: the Active's
content is the same before and after the barrier, and the log of changes does not name it meanwhile. Then the Standby
has had everything that made it so, and what it has is wrong. The source sends it again, and both are looked at once
more. Memory: a stretch of ranges and their units. Sizes in bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ha_sync.backup.rows.asking import Answered, Questions
from ha_sync.backup.rows.ends import ActiveEnd
from ha_sync.backup.rows.reading import ActiveReader
from ha_sync.core.dataset import DatasetName
from ha_sync.core.examine import Examined, Fault, Finding, Run, Side
from ha_sync.database.keys import Key, readable
from ha_sync.database.ranges import RANGE_ROWS_MAX, RANGE_ROWS_MIN
from ha_sync.database.rowhash import PAGE, Digest, Span
from ha_sync.database.schema import Keyed, Table
from ha_sync.database.spans import resent

WINDOW_RANGES = 16  # of one question; the first ones are shorter, so that the Standby begins soon
STRETCH_RANGES = 256  # between two times at which what differs is judged
DESCENTS_MAX = 32  # of a stretch: further ranges that differ are units as they are
FINE_MAX = RANGE_ROWS_MAX // RANGE_ROWS_MIN // 2  # of a range: where more of it differs it is a unit as it is
ROWS_MAX = 1024  # of a range that are looked at singly
SINGLE_MAX = 64  # of a range: where more rows differ it is a unit as it is, unless it does not hold still
ASKED_UNITS = 512  # of one question
LOOKS = 4
REPAIRS = 3
RESENT_ROWS = 65_536  # at once: the live stream has its turn in between
FINDINGS_MAX = 1000  # of a table; further ones are summed up

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(slots=True, kw_only=True)
class Tally:
    """What an examination came to so far."""

    objects: int = 0
    content_bytes: int = 0
    differing: int = 0
    repaired: int = 0
    unverified: int = 0
    in_motion: int = 0

    def examined(self) -> Examined:
        """As the run wants it."""
        return Examined(
            objects=self.objects,
            content_bytes=self.content_bytes,
            differing=self.differing,
            repaired=self.repaired,
            unverified=self.unverified,
            in_motion=self.in_motion,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """All that an examination works with."""

    dataset: DatasetName
    reader: ActiveReader
    questions: Questions
    end: ActiveEnd
    run: Run
    tally: Tally


@dataclass(slots=True, kw_only=True, eq=False)
class _Unit:
    """Something that differed."""

    span: Span
    here: Digest
    there: Answered | None = None
    repaired: bool = False
    fault: Fault = Fault.CONTENT  # as it was judged, before the repair
    detail: str = ""

    @property
    def rows(self) -> int:
        return max(1, self.here.rows, self.there.rows if self.there is not None else 0)


@dataclass(slots=True, kw_only=True)
class TableExamination:
    """One table of one run."""

    sides: Sides
    table: Table
    _told: int = 0
    _untold: list[_Unit] = field(default_factory=list)
    _window: int = 1
    _window_bytes: int = PAGE

    async def stretch(self, after: Key | None) -> Key | None:
        """Examines the ranges after a key; returns where to go on, None at the table's end."""
        reader = self.sides.reader
        since = await reader.in_thread(reader.logged)
        units, after = await self._differing(after)
        if units:
            await self._judge(units, since)
        return after

    def finish(self) -> None:
        """Sums up what was not told singly."""
        if self._untold:
            rows = sum(unit.rows for unit in self._untold)
            repaired = all(unit.repaired for unit in self._untold)
            faults = {unit.fault for unit in self._untold}
            fault = faults.pop() if len(faults) == 1 else Fault.CONTENT
            self._find(f"{self.table.name}: {rows:,} further rows", fault, repaired=repaired, detail="")

    # ---- looking --------------------------------------------------------------------------------------------------

    async def _differing(self, after: Key | None) -> tuple[list[_Unit], Key | None]:
        units: list[_Unit] = []
        ranges = descents = 0
        batch = await self._cut(after)
        while True:
            after = batch[-1][0].upto
            ranges += len(batch)
            following: list[tuple[Span, Digest]] = []
            asked = self.sides.questions.ranges(self.table, batch)
            if after is not None and ranges < STRETCH_RANGES:
                answers, following = await both(asked, self._cut(after))
            else:
                answers = await asked
            for (span, here), there in zip(batch, answers, strict=True):
                if not there.equals(here):
                    descents += 1
                    unit = _Unit(span=span, here=here, there=there)
                    units += await self._descend(unit, whole=descents > DESCENTS_MAX)
            self._advance(batch)
            if not following:
                return units, after
            batch = following

    async def _cut(self, after: Key | None) -> list[tuple[Span, Digest]]:
        """The next ranges, as they are on the Active."""
        await self.sides.run.spend(self._window_bytes)
        reader = self.sides.reader
        rows, span = RANGE_ROWS_MAX, Span(after=after)
        batch = await reader.in_thread(reader.ranges, self.table, rows, span, self._window)
        self._window = min(2 * self._window, WINDOW_RANGES)
        self._window_bytes = sum(_bytes_of(digest) for _, digest in batch)
        return batch

    def _advance(self, batch: list[tuple[Span, Digest]]) -> None:
        rows = sum(digest.rows for _, digest in batch)
        content = sum(_bytes_of(digest) for _, digest in batch)
        self.sides.tally.objects += rows
        self.sides.tally.content_bytes += content
        self.sides.run.advance(objects=rows, content_bytes=content)

    async def _descend(self, unit: _Unit, *, whole: bool) -> list[_Unit]:
        """What exactly differs in a range."""
        if whole or self.table.keyed is Keyed.WHOLE:
            return [unit]
        if unit.here.rows <= RANGE_ROWS_MIN:
            return await self._rows_of(unit, most=SINGLE_MAX)
        differing = await self._fine(unit)
        if len(differing) > FINE_MAX:
            return [unit]
        return [found for part in differing for found in await self._rows_of(part, most=SINGLE_MAX)]

    async def _fine(self, unit: _Unit) -> list[_Unit]:
        """The shorter ranges of a range that differ."""
        reader = self.sides.reader
        await self.sides.run.spend(_bytes_of(unit.here))
        fine = await reader.in_thread(reader.ranges, self.table, RANGE_ROWS_MIN, unit.span, RANGE_ROWS_MAX)
        answers = await self.sides.questions.ranges(self.table, fine)
        return [
            _Unit(span=span, here=here, there=there)
            for (span, here), there in zip(fine, answers, strict=True)
            if not there.equals(here)
        ]

    async def _rows_of_all(self, unit: _Unit) -> list[_Unit]:
        return await self._rows_of(unit, most=ROWS_MAX)

    async def _rows_of(self, unit: _Unit, *, most: int) -> list[_Unit]:
        """The rows that differ, or the range itself where they are more than ``most``."""
        reader = self.sides.reader
        await self.sides.run.spend(_bytes_of(unit.here))
        theirs, listed = await both(
            self.sides.questions.rows(self.table, unit.span, ROWS_MAX),
            reader.in_thread(reader.rows, self.table, unit.span, ROWS_MAX),
        )
        if len(theirs) >= ROWS_MAX or len(listed) >= ROWS_MAX or (unit.there is not None and unit.there.damage):
            return [unit]
        ours = dict(listed)
        changed = [key for key, digest in ours.items() if theirs.get(key) != digest.hash]
        surplus = [key for key in theirs if key not in ours]
        if len(changed) + len(surplus) > most:
            return [unit]
        nothing = await reader.in_thread(reader.digests, self.table, [Span(upto=key, only=True) for key in surplus])
        absent = dict(zip(surplus, nothing, strict=True))
        return [_Unit(span=Span(upto=key, only=True), here=(ours | absent)[key]) for key in (*changed, *surplus)]

    # ---- judging --------------------------------------------------------------------------------------------------

    async def _judge(self, units: list[_Unit], since: int) -> None:
        """Finds out which units hold still and differ all the same, and repairs them."""
        real: list[_Unit] = []
        moving: list[_Unit] = []
        for split in (self._fine, self._rows_of_all, None):
            found, still, since = await self._settled(units, since)
            real += found
            moving += [unit for unit in still if unit.span.only]
            units = [unit for unit in still if not unit.span.only]
            if not units or split is None or self.table.keyed is Keyed.WHOLE:
                break
            # A range that never holds still may hold rows that do, and are wrong.
            units = [part for unit in units for part in await split(unit)]
        self.sides.tally.in_motion += sum(unit.rows for unit in (*moving, *units))
        await self._resend(units)  # too large to tell: to be sure
        for portion in _portions(real):
            await self._repair(portion)
        for unit in real:
            self._report(unit)

    async def _settled(self, units: list[_Unit], since: int) -> tuple[list[_Unit], list[_Unit], int]:
        """Units that hold still and differ, and those that never held still."""
        real: list[_Unit] = []
        for _ in range(LOOKS):
            settled, units, since = await self._look(units, since)
            real += [_judged(unit) for unit in settled if not unit.repaired]
            if not units:
                break
        return real, units, since

    async def _look(self, units: list[_Unit], since: int) -> tuple[list[_Unit], list[_Unit], int]:
        """After the barrier: units that hold still (``repaired`` says which are equal), and those that do not."""
        reader = self.sides.reader
        await self.sides.run.replicated()
        settled: list[_Unit] = []
        moving: list[_Unit] = []
        await reader.refresh()
        logged = since
        for start in range(0, len(units), ASKED_UNITS):
            portion = units[start : start + ASKED_UNITS]
            await self.sides.run.spend(sum(_bytes_of(unit.here) for unit in portion))
            spans = [unit.span for unit in portion]
            answers = await self.sides.questions.ranges(self.table, [(unit.span, unit.here) for unit in portion])
            look = await reader.in_thread(reader.look, self.table, spans, since)
            logged = look.logged if start == 0 else logged
            for unit, there, here in zip(portion, answers, look.digests, strict=True):
                still = here == unit.here and unit.span not in look.touched
                unit.here, unit.there, unit.repaired = here, there, there.equals(here)
                (settled if still or unit.repaired else moving).append(unit)
        return settled, moving, logged

    async def _repair(self, units: list[_Unit]) -> None:
        reader = self.sides.reader
        left = units
        for _ in range(REPAIRS):
            since = await reader.in_thread(reader.logged)
            await self._resend(left)
            settled, moving, _since = await self._look(left, since)
            left = [unit for unit in (*settled, *moving) if not unit.repaired]
            if not left:
                return

    async def _resend(self, units: list[_Unit]) -> None:
        if not units:
            return
        objects = []
        for start in range(0, len(units), ASKED_UNITS):
            spans = [unit.span for unit in units[start : start + ASKED_UNITS]]
            objects.append(resent(self.table.name, () if self.table.keyed is Keyed.WHOLE else spans))
        await self.sides.end.resend(tuple(objects))

    # ---- telling --------------------------------------------------------------------------------------------------

    def _report(self, unit: _Unit) -> None:
        self.sides.tally.differing += unit.rows
        self.sides.tally.repaired += unit.rows if unit.repaired else 0
        self._told += 1
        if self._told > FINDINGS_MAX:
            self._untold.append(unit)
            return
        self._find(_subject(self.table, unit), unit.fault, repaired=unit.repaired, detail=unit.detail)

    def _find(self, subject: str, fault: Fault, *, repaired: bool, detail: str) -> None:
        self.sides.run.found(
            Finding(
                dataset=self.sides.dataset,
                subject=subject,
                fault=fault,
                side=Side.STANDBY,
                repaired=repaired,
                equal_until_unix_s=self.sides.run.equal_until_unix_s,
                detail=detail,
            )
        )


def _bytes_of(digest: Digest) -> int:
    """About what was read: an image has two pages even of nothing."""
    return max(0, digest.size - 2 * PAGE) + 256 * min(digest.rows, PAGE // 256)


def _judged(unit: _Unit) -> _Unit:
    assert unit.there is not None
    if unit.there.damage:
        unit.fault, unit.detail = Fault.DAMAGED, unit.there.damage
    elif not unit.here.rows:
        unit.fault = Fault.SURPLUS
    elif not unit.there.rows:
        unit.fault = Fault.MISSING
    return unit


def _subject(table: Table, unit: _Unit) -> str:
    span = unit.span
    if span.only and span.upto is not None:
        return f"{table.name} ({readable(span.upto)})"
    ends = f" after {readable(span.after)}" if span.after is not None else ""
    ends += f" up to {readable(span.upto)}" if span.upto is not None else ""
    return f"{table.name}: {unit.rows:,} rows{ends}"


def _portions(units: list[_Unit]) -> Iterator[list[_Unit]]:
    """So many rows each that the live stream is not held up for long."""
    portion: list[_Unit] = []
    rows = 0
    for unit in units:
        if portion and rows + unit.rows > RESENT_ROWS:
            yield portion
            portion, rows = [], 0
        portion.append(unit)
        rows += unit.rows
    if portion:
        yield portion


async def both(one: Coroutine[Any, Any, _T], other: Coroutine[Any, Any, _U]) -> tuple[_T, _U]:
    """The results of two that go on at the same time; the first error of either."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = group.create_task(one), group.create_task(other)
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return tasks[0].result(), tasks[1].result()
