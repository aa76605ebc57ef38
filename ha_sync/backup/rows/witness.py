"""The Standby's half of a full backup of rows: answers about its own copy (``core.examine.Witness``).

A connection of its own for each question, so that nothing is held between two; a question about ranges is one short
read transaction for each. What takes long (the integrity check) runs on a private copy where a reader would hold up the
applier. Blocking, one question at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import apsw
from google.protobuf.message import DecodeError

from ha_proto.sync.v1 import examine_pb2 as pb
from ha_sync.backup.rows.described import describe
from ha_sync.backup.rows.ends import StandbyEnd
from ha_sync.config import SqliteSettings
from ha_sync.database.connection import one, open_active, reading
from ha_sync.database.fingerprint import fingerprint
from ha_sync.database.image import remove_file
from ha_sync.database.locality import Locality
from ha_sync.database.rowhash import Hasher, hashing
from ha_sync.database.schema import Table, read_table
from ha_sync.database.soundness import damage_of, damage_of_file
from ha_sync.database.spans import key_message, span_of, sql_hash
from ha_sync.errors import ProtocolFault, Retryable

DAMAGE = (apsw.CorruptError, apsw.NotADBError, apsw.IOError)
CHUNK_BYTES = 512 * 1024
ROWS_MAX = 4096  # of one answer


class RowsWitness:
    """See ``core.examine.Witness``."""

    def __init__(self, settings: SqliteSettings, end: StandbyEnd) -> None:
        self._settings = settings
        self._locality = Locality.of(settings)
        self._end = end

    def answer(self, question: bytes) -> Iterator[bytes]:
        """Raises ``Retryable`` where the database cannot be read now."""
        try:
            asked = pb.RowsQuestion.FromString(question)
        except DecodeError as error:
            raise ProtocolFault("cannot read a question", subject=self._settings.name, reason=str(error)) from None
        try:
            match asked.WhichOneof("question"):
                case "describe":
                    yield from _chunks(self._describe(asked.describe).SerializeToString())
                case "ranges":
                    yield self._digests(asked.ranges).SerializeToString()
                case "rows":
                    yield from _chunks(self._rows(asked.rows).SerializeToString())
                case "check":
                    yield self._check(quick=asked.check.quick).SerializeToString()
                case "renew":
                    yield pb.RowsRenewed(how=self._end.renewed()).SerializeToString()
                case "fingerprint":
                    yield pb.RowsFingerprinted(hash=fingerprint(self._settings.path)).SerializeToString()
                case other:
                    raise ProtocolFault("cannot answer", subject=self._settings.name, reason=f"{other!r} is not known")
        except (apsw.Error, OSError) as error:
            path = self._settings.path
            raise Retryable("cannot read the standby's copy", subject=path, reason=str(error)) from error

    def _describe(self, asked: pb.RowsDescribe) -> pb.RowsDescription:
        self._end.looked()
        noticed = [pb.RowsNoticed(number=n, what=what) for n, what in self._end.noticed(asked.told)]
        if not os.path.lexists(self._settings.path):
            return pb.RowsDescription(absent=True, noticed=noticed)
        try:
            with self._opened() as db, reading(db):
                found = describe(db, self._locality)
        except DAMAGE as error:
            return pb.RowsDescription(schema=str(error), noticed=noticed)
        same = found.hash == asked.known
        size = os.stat(self._settings.path).st_size
        return pb.RowsDescription(hash=found.hash, schema="" if same else found.to_json(), noticed=noticed, bytes=size)

    def _digests(self, asked: pb.RowsRanges) -> pb.RowsDigests:
        answer = pb.RowsDigests()
        if not asked.ranges:
            return answer
        with self._opened() as db, hashing(db):
            table = self._asked_table(db, asked.ranges[0])
            if table is None:
                answer.digests.extend(pb.RowsDigest() for _ in asked.ranges)
                return answer
            with Hasher(db, table, self._locality) as hasher:
                for wanted in _following(asked):
                    answer.digests.append(_digest(hasher, table, wanted))
        return answer

    def _rows(self, asked: pb.RowsRange) -> pb.RowsHashes:
        with self._opened() as db, hashing(db):
            table = self._asked_table(db, asked)
            if table is None:
                return pb.RowsHashes(stranger=True)
            try:
                with Hasher(db, table, self._locality) as hasher, reading(db):
                    found = hasher.each(span_of(asked.span, table), rows_max=min(asked.rows, ROWS_MAX))
            except DAMAGE as error:
                return pb.RowsHashes(damage=str(error))
        return pb.RowsHashes(keys=[key_message(key) for key, _ in found], hashes=b"".join(d.hash for _, d in found))

    def _check(self, *, quick: bool) -> pb.RowsChecked:
        if not os.path.lexists(self._settings.path):
            return pb.RowsChecked(quick=quick)
        check = "quick_check" if quick else "integrity_check"
        try:
            with self._opened() as db:
                if one(db, "PRAGMA main.journal_mode") == "wal":
                    return pb.RowsChecked(damage=damage_of(db, check=check), quick=quick)
            remove_file(self._end.scratch)
            self._end.copied(self._end.scratch)
            return pb.RowsChecked(damage=damage_of_file(self._end.scratch, thorough=not quick), quick=quick)
        except DAMAGE as error:
            return pb.RowsChecked(damage=str(error), quick=quick)
        finally:
            remove_file(self._end.scratch)

    def _asked_table(self, db: apsw.Connection, asked: pb.RowsRange) -> Table | None:
        """None where the table is another one here, or its rows are nobody's business."""
        table = None if self._locality.is_local_table(asked.table) else read_table(db, asked.table)
        return table if table is not None and sql_hash(table) == asked.sql_hash else None

    @contextmanager
    def _opened(self) -> Iterator[apsw.Connection]:
        # With the manners of a foreign database's reader: it never checkpoints.
        db = open_active(self._settings.path)
        try:
            yield db
        finally:
            db.close()


def _following(asked: pb.RowsRanges) -> Iterator[pb.RowsRange]:
    """The ranges with the lower ends that they share with the one before."""
    before: pb.RowsKey | None = None
    for wanted in asked.ranges:
        if before is not None and not wanted.span.only and not wanted.span.HasField("after"):
            wanted.span.after.CopyFrom(before)
        yield wanted
        before = wanted.span.upto if wanted.span.HasField("upto") else None


def _digest(hasher: Hasher, table: Table, wanted: pb.RowsRange) -> pb.RowsDigest:
    try:
        found = hasher.digest(span_of(wanted.span, table), rows_max=wanted.rows, size_max=wanted.bytes)
    except DAMAGE as error:
        return pb.RowsDigest(damage=str(error))
    return pb.RowsDigest(hash=found.hash, rows=found.rows, more=not found.whole)


def _chunks(content: bytes) -> Iterator[bytes]:
    yield content[:CHUNK_BYTES]
    for start in range(CHUNK_BYTES, len(content), CHUNK_BYTES):
        yield content[start : start + CHUNK_BYTES]
