"""The Active's half of a full backup of rows (``core.examine.Examiner``): what is looked at, in which order.

1. Triggers that were gone on the Active; guards and schema that the Standby put right by itself.
2. Schema, versions, sequences: what differs is sent again.
3. Every byte of both files: are they as they were when both copies were last proved equal, they are equal (``proof``).
4. SQLite's check of both; a damaged copy of the Standby's is made anew and filled by a full sync.
5. Every table, range by range (``comparing``).

With ``Depth.METADATA`` it ends after 2. A run that was interrupted goes on in 5 where it was. Nothing here takes a lock
that the program could feel; what could not be looked at without one is *unverified*.
"""

from __future__ import annotations

import asyncio
import os
from concurrent.futures import Executor
from dataclasses import replace

import apsw
import xxhash

from ha_sync.backup.full.gentle import quiet_executor
from ha_sync.backup.rows.asking import Described, Questions, Stranger
from ha_sync.backup.rows.comparing import Sides, TableExamination, Tally, both
from ha_sync.backup.rows.described import FACTS, Description, Difference, differences
from ha_sync.backup.rows.ends import ActiveEnd
from ha_sync.backup.rows.proof import Proof, forget_proof, read_proof
from ha_sync.backup.rows.reading import ActiveReader, Unreadable
from ha_sync.config import SqliteSettings
from ha_sync.core.examine import Depth, Examined, Fault, Finding, Peer, Run, Side
from ha_sync.database.fingerprint import fingerprint
from ha_sync.database.keys import Key
from ha_sync.database.locality import Locality
from ha_sync.database.names import folded
from ha_sync.database.schema import Schema, Table
from ha_sync.database.spans import cursor_at, cursor_of, resent
from ha_sync.errors import Retryable

QUICK_ABOVE_BYTES = 1024 * 1024 * 1024
"""A larger copy is checked without comparing its indices with their tables."""

LOOKS = 4
SHAPES_MAX = 3
SCHEMA_AND_FACTS = resent("")
DAMAGE = (apsw.CorruptError, apsw.NotADBError, apsw.IOError)


class RowsExaminer:
    """Compares and repairs one database."""

    def __init__(self, settings: SqliteSettings, end: ActiveEnd) -> None:
        self._settings = settings
        self._end = end

    async def examine(self, peer: Peer, run: Run) -> Examined:
        """Raises ``Retryable`` when the peer is gone."""
        executor = quiet_executor(f"examine-{self._settings.name}")
        try:
            return await self._examine(peer, run, executor)
        finally:
            await asyncio.to_thread(executor.shutdown)

    async def _examine(self, peer: Peer, run: Run, executor: Executor) -> Examined:
        reader = ActiveReader(self._settings, self._end, executor=executor)
        sides = Sides(
            dataset=self._settings.name,
            reader=reader,
            questions=Questions(peer),
            end=self._end,
            run=run,
            tally=Tally(),
        )
        work = _Examination(self._settings, sides)
        try:
            await reader.open()
            await work.everything()
        except Unreadable as error:
            work.unverified(self._settings.path, error.sentence())
        except FileNotFoundError:
            pass  # there is nothing yet
        except DAMAGE as error:
            work.find(self._settings.path, Fault.DAMAGED, Side.ACTIVE, detail=str(error))
        except asyncio.CancelledError:
            reader.interrupt()  # a check of a large file would be waited for
            raise
        except (apsw.Error, OSError) as error:
            raise Retryable("cannot examine", subject=self._settings.path, reason=str(error)) from error
        finally:
            await reader.close()
        return sides.tally.examined()


class _Examination:
    """One run through one database."""

    def __init__(self, settings: SqliteSettings, sides: Sides) -> None:
        self._settings = settings
        self._locality = Locality.of(settings)
        self._sides = sides
        self._run = sides.run
        self._reader = sides.reader
        self._told = 0  # of what the Standby noticed

    async def everything(self) -> None:
        """See the module."""
        await self._triggers()
        await self._shape()
        if self._run.depth is Depth.METADATA:
            return
        whole = not self._run.cursor
        before = await self._fingerprints()
        known = await self._reader.in_thread(read_proof, self._sides.end.proof)
        if known is not None and before == replace(known, objects=0):
            self._run.expect(objects=known.objects, content_bytes=os.stat(self._settings.path).st_size)
            self._run.advance(objects=known.objects, content_bytes=0)
            self._sides.tally.objects += known.objects
            return
        await self._reader.in_thread(forget_proof, self._sides.end.proof)
        await self._soundness()
        await self._tables()
        await self._prove(before, whole=whole)

    # ---- what is ours ---------------------------------------------------------------------------------------------

    async def _triggers(self) -> None:
        for table in await self._sides.end.put_back():
            detail = "its capture triggers were gone and were made again; it was sent whole"
            self.find(f"table {table}", Fault.GUARD, Side.ACTIVE, repaired=True, detail=detail)
        for table in await self._reader.in_thread(self._reader.uncaptured):
            detail = "it has no capture triggers; they are made when no program has the database open"
            self.find(f"table {table}", Fault.GUARD, Side.ACTIVE, detail=detail)

    async def _noticed(self, answer: Described) -> bool:
        """Tells what the Standby put right by itself."""
        for number, what in answer.noticed:
            if number > self._told:
                fault = Fault.GUARD if "guards" in what else Fault.SCHEMA
                detail = f"{what}; it was put right, and all was compared"
                self.find(self._settings.path, fault, Side.STANDBY, repaired=True, detail=detail)
                self._told = number
        return bool(answer.noticed)

    # ---- schema and facts -----------------------------------------------------------------------------------------

    async def _shape(self) -> None:
        """Compares everything beside the rows, and repairs it."""
        await self._run.replicated()
        before, _ = await self._description()
        answer = await self._sides.questions.describe(before, told=0)
        if await self._noticed(answer) or _has_nothing(answer, before):
            # A compare goes on, the first or another one. Only what is sent after it says that it is over: the barrier
            # of a source that has not captured a change is passed at once.
            await self._sides.end.resend((SCHEMA_AND_FACTS,))
            await self._run.replicated()
            before, _ = await self._description()
            answer = await self._sides.questions.describe(before, told=self._told)
        for _ in range(LOOKS):
            if answer.same:
                return
            await self._run.replicated()
            now, schema = await self._description()
            answer = await self._sides.questions.describe(now, told=self._told)
            real = _still(before, now, answer)
            if real:
                await self._repair_shape(real, schema)
                return
            before = now

    async def _description(self) -> tuple[Description, Schema]:
        await self._reader.refresh()
        return await self._reader.in_thread(self._reader.describe)

    async def _repair_shape(self, real: tuple[Difference, ...], schema: Schema) -> None:
        tables = {folded(name): table for name, table in schema.tables.items()}
        whole = [tables[d.name] for d in real if d.kind == "table" and d.name in tables]
        objects = [SCHEMA_AND_FACTS, *(resent(t.name) for t in whole)]
        await self._sides.end.resend(tuple(objects))
        await self._run.replicated()
        now, _ = await self._description()
        answer = await self._sides.questions.describe(now, told=self._told)
        left = {(d.kind, d.name) for d in _still(now, now, answer)}
        for d in real:
            self.find(
                d.subject,
                Fault.SCHEMA,
                Side.STANDBY,
                repaired=(d.kind, d.name) not in left,
                detail=d.detail,
            )

    # ---- every byte of both files ---------------------------------------------------------------------------------

    async def _fingerprints(self) -> Proof | None:
        """None where there is no Standby's file."""
        path = self._settings.path
        size = os.stat(path).st_size
        await self._run.spend(size)
        standby, active = await both(self._sides.questions.fingerprint(), self._reader.in_thread(fingerprint, path))
        self._sides.tally.content_bytes += size
        self._run.advance(objects=0, content_bytes=size)
        if not standby or not active:
            return None
        compared = xxhash.xxh3_128_hexdigest(repr((self._locality, apsw.sqlite_lib_version())).encode())
        return Proof(active=active.hex(), standby=standby.hex(), settings=compared, objects=0)

    async def _prove(self, before: Proof | None, *, whole: bool) -> None:
        """Both copies are equal: keeps it, where neither file changed meanwhile."""
        tally = self._sides.tally
        if before is None or not whole or tally.differing or tally.unverified or tally.in_motion:
            return
        if await self._fingerprints() == before:
            proof = replace(before, objects=tally.objects)
            await self._reader.in_thread(proof.store, self._sides.end.proof)

    # ---- SQLite's own check ---------------------------------------------------------------------------------------

    async def _soundness(self) -> None:
        size = os.stat(self._settings.path).st_size
        quick = size > QUICK_ABOVE_BYTES
        check = "quick_check" if quick else "integrity_check"
        await self._run.spend(size)
        damage, _ = await both(self._sides.questions.damage(quick=quick), self._own_soundness(check))
        if not damage:
            return
        how = await self._sides.questions.renew()
        await self._sides.end.resend((SCHEMA_AND_FACTS,))
        await self._run.replicated()
        left = await self._sides.questions.damage(quick=quick)
        detail = f"{check}: {damage}; {how}" + (f"; still: {left}" if left else "")
        self.find(self._settings.path, Fault.DAMAGED, Side.STANDBY, repaired=not left, detail=detail)

    async def _own_soundness(self, check: str) -> None:
        """Nothing here mends the Active: what can be read of it is compared all the same."""
        try:
            damage = await self._reader.in_thread(self._reader.damage, check)
        except Unreadable as error:
            self.unverified(self._settings.path, error.sentence())
            return
        if damage:
            detail = f"{check}: {damage}; its indexes can be made anew by REINDEX, else restore it or switch over"
            self.find(self._settings.path, Fault.DAMAGED, Side.ACTIVE, detail=detail)

    # ---- rows -----------------------------------------------------------------------------------------------------

    async def _tables(self) -> None:
        at, after = cursor_of(self._run.cursor)
        tables = await self._shared_tables()
        counts = [await self._reader.in_thread(self._reader.counted, table) for table in tables]
        # The files are read byte by byte before and after, the rows once.
        self._run.expect(objects=sum(counts), content_bytes=3 * os.stat(self._settings.path).st_size)
        for table in tables:
            if table.name >= at:
                await self._table(table.name, after if table.name == at else None)

    async def _shared_tables(self) -> list[Table]:
        _, schema = await self._reader.in_thread(self._reader.describe)
        return [t for name, t in sorted(schema.tables.items()) if not self._locality.is_local_table(name)]

    async def _table(self, name: str, after: Key | None) -> None:
        for _ in range(SHAPES_MAX):
            table = next((t for t in await self._shared_tables() if t.name == name), None)
            if table is None or await self._rows(table, after):
                return
            # It was another table by then: the schema changes under our eyes.
            await self._shape()
            after = None
        self.unverified(f"table {name}", "its schema changed at every look")

    async def _rows(self, table: Table, after: Key | None) -> bool:
        """Whether it was the same table to the end."""
        work = TableExamination(sides=self._sides, table=table)
        try:
            while (after := await work.stretch(after)) is not None:
                await self._run.reached(cursor_at(table.name, after))
        except (Stranger, apsw.SQLError):
            return False
        except DAMAGE as error:
            detail = f"{error}: what cannot be read is not sent to the Standby; restore it, or switch over"
            self.find(f"table {table.name}", Fault.DAMAGED, Side.ACTIVE, detail=detail)
        work.finish()
        await self._run.reached(cursor_at(f"{table.name}\0", None))
        return True

    # ---- telling --------------------------------------------------------------------------------------------------

    def unverified(self, subject: str, why: str) -> None:
        """Something could not be looked at."""
        self._sides.tally.unverified += 1
        self._find(subject, Fault.UNVERIFIED, Side.ACTIVE, repaired=False, detail=why)

    def find(self, subject: str, fault: Fault, side: Side, *, repaired: bool = False, detail: str = "") -> None:
        """Something differed."""
        self._sides.tally.differing += 1
        self._sides.tally.repaired += repaired
        self._find(subject, fault, side, repaired=repaired, detail=detail)

    def _find(self, subject: str, fault: Fault, side: Side, *, repaired: bool, detail: str) -> None:
        self._run.found(
            Finding(
                dataset=self._settings.name,
                subject=subject,
                fault=fault,
                side=side,
                repaired=repaired,
                equal_until_unix_s=self._run.equal_until_unix_s,
                detail=detail,
            )
        )


def _has_nothing(answer: Described, active: Description) -> bool:
    """Whether the Standby's copy is not made yet, as far as can be seen."""
    empty = answer.description is not None and not answer.description.objects
    return answer.absent or (empty and bool(active.objects))


def _still(before: Description, now: Description, answer: Described) -> tuple[Difference, ...]:
    """What differs although the Active's did not change from before the barrier until after it."""
    if answer.absent:
        return (Difference(kind=FACTS, name="the database", active="is there", standby=None),)
    if answer.description is None:
        return ()
    unchanged = before.objects | before.facts
    return tuple(d for d in differences(now, answer.description) if unchanged.get((d.kind, d.name)) == d.active)
