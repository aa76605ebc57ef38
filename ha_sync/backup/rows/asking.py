"""The Active's questions to the witness of a database (``witness``), and what the answers say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from ha_proto.sync.v1 import examine_pb2 as pb
from ha_sync.backup.rows.described import Description
from ha_sync.core.examine import Peer
from ha_sync.database.keys import Key
from ha_sync.database.rowhash import Digest, Span
from ha_sync.database.schema import Table
from ha_sync.database.spans import key_of, span_message, sql_hash
from ha_sync.errors import ProtocolFault, Retryable

HASH_BYTES = 16
ANSWER_MAX = 64 * 1024 * 1024

M = TypeVar("M", bound=Message)


class Stranger(Retryable):
    """The Standby's table is another one: the schema is changing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What the Standby has in one span."""

    rows: int
    hash: bytes
    more: bool
    damage: str

    def equals(self, digest: Digest) -> bool:
        """Whether it is the same as here."""
        return not self.damage and not self.more and (self.rows, self.hash) == (digest.rows, digest.hash)


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """The Standby's copy as a whole."""

    absent: bool
    same: bool
    description: Description | None  # None: it is the same, or cannot be read
    noticed: tuple[tuple[int, str], ...]


class Questions:
    """Asks one peer."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def describe(self, known: Description, *, told: int) -> Described:
        """What stands beside the rows."""
        question = pb.RowsQuestion(describe=pb.RowsDescribe(known=known.hash, told=told))
        answer = await self._ask(question, pb.RowsDescription())
        same = answer.hash == known.hash
        description = None
        if not same and answer.hash:
            try:
                description = Description.from_json(answer.schema)
            except (ValueError, TypeError) as error:
                raise ProtocolFault("cannot read a description", reason=str(error)) from None
        return Described(
            absent=answer.absent,
            same=same,
            description=description,
            noticed=tuple((n.number, n.what) for n in answer.noticed),
        )

    async def ranges(self, table: Table, wanted: Sequence[tuple[Span, Digest]]) -> list[Answered]:
        """The Standby's digests of these spans; looking stops where there is more than here."""
        question = pb.RowsQuestion()
        before: Key | None = None
        for place, (span, digest) in enumerate(wanted):
            message = question.ranges.ranges.add(rows=digest.rows, bytes=digest.size)
            message.span.CopyFrom(span_message(span))
            if place == 0:
                message.table, message.sql_hash = table.name, sql_hash(table)
            elif span.after is not None and span.after == before:
                message.span.ClearField("after")
            before = span.upto
        answer = await self._ask(question, pb.RowsDigests())
        if len(answer.digests) != len(wanted):
            raise ProtocolFault("cannot use digests of rows", reason=f"{len(answer.digests)} for {len(wanted)} spans")
        return [_answered(table, digest) for digest in answer.digests]

    async def rows(self, table: Table, span: Span, most: int) -> dict[Key, bytes]:
        """Key and hash of every row of the Standby's in a span, of the first ``most``."""
        question = pb.RowsQuestion(
            rows=pb.RowsRange(table=table.name, sql_hash=sql_hash(table), span=span_message(span), rows=most)
        )
        answer = await self._ask(question, pb.RowsHashes())
        if answer.stranger:
            raise _stranger(table)
        if answer.damage:
            return {}
        if len(answer.hashes) != HASH_BYTES * len(answer.keys):
            raise ProtocolFault("cannot use hashes of rows", reason="not one for each key")
        hashes = (answer.hashes[i : i + HASH_BYTES] for i in range(0, len(answer.hashes), HASH_BYTES))
        return dict(zip(map(key_of, answer.keys), hashes, strict=True))

    async def damage(self, *, quick: bool) -> str:
        """What SQLite's check of the Standby's copy found."""
        answer = await self._ask(pb.RowsQuestion(check=pb.RowsCheck(quick=quick)), pb.RowsChecked())
        return answer.damage

    async def fingerprint(self) -> bytes:
        """Of the Standby's file."""
        question = pb.RowsQuestion(fingerprint=pb.RowsFingerprint())
        return (await self._ask(question, pb.RowsFingerprinted())).hash

    async def renew(self) -> str:
        """Has the Standby make its copy anew."""
        answer = await self._ask(pb.RowsQuestion(renew=pb.RowsRenew()), pb.RowsRenewed())
        return answer.how

    async def _ask(self, question: pb.RowsQuestion, answer: M) -> M:
        content = bytearray()
        async for chunk in self._peer.ask(question.SerializeToString()):
            content += chunk
            if len(content) > ANSWER_MAX:
                raise ProtocolFault("refused an answer about rows", reason="it is too large")
        try:
            answer.ParseFromString(bytes(content))
        except DecodeError as error:
            raise ProtocolFault("cannot read an answer about rows", reason=str(error)) from None
        return answer


def _answered(table: Table, digest: pb.RowsDigest) -> Answered:
    if not digest.hash and not digest.damage:
        raise _stranger(table)
    return Answered(rows=digest.rows, hash=digest.hash, more=digest.more, damage=digest.damage)


def _stranger(table: Table) -> Stranger:
    return Stranger("cannot compare", subject=table.name, reason="the Standby's table is made by other SQL")
