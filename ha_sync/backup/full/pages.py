"""Databases captured as pages: the examiner on the Active, the witness on the Standby.

The Active reads an accepted copy, by which it learns whether its own file has rotted; what the Standby must have is the
state that it acknowledged last. The Standby hashes the file that is on its disk now and lets SQLite check it. While a
program writes, states follow one another: both are asked until they speak of the same one. Sizes in bytes.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from ha_proto.sync.v1 import examine_pb2 as pb
from ha_sync.config import SqliteSettings
from ha_sync.core.examine import Examined, Fault, Finding, Peer, Run, Side
from ha_sync.core.position import Position, Sequence
from ha_sync.database.lockfree import Copy, Rejected
from ha_sync.database.soundness import damage_of_file
from ha_sync.errors import ProtocolFault, Retryable
from ha_sync.files.blocks import hash_file

LOOKS = 6
PAUSE_S = 0.2
COPY_S = 20.0
WRITE_BITS = 0o222

_T = TypeVar("_T")


class Content(Protocol):
    """A file's content by its hashes."""

    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def block_size(self) -> int: ...  # noqa: D102
    @property
    def whole(self) -> bytes: ...  # noqa: D102
    @property
    def owner_and_mode(self) -> tuple[int, int, int] | None: ...  # noqa: D102


class PagesBook(Protocol):
    """What the examiner asks of the dataset's source."""

    async def standing(self) -> tuple[Sequence, Content] | None:
        """The state that the Standby acknowledged last."""

    async def fresh(self, *, within_s: float) -> tuple[Copy | Rejected, bool]:
        """An accepted copy that is read now, and whether the file has rotted."""

    async def resend(self, objects: tuple[bytes, ...]) -> None:
        """Sends the file whole."""


class Published(Protocol):
    """What the Standby published last."""

    @property
    def position(self) -> Position: ...  # noqa: D102
    @property
    def mode(self) -> int: ...  # noqa: D102


class Held(Protocol):
    """The Standby's sink."""

    async def examined(self, job: Callable[[str, Published | None], _T]) -> _T:
        """Runs ``job`` while nothing of ours touches the file."""


# ---- the Standby


class PagesWitness:
    """See ``core.examine.Witness``. Asks in the sink's own thread: the only one that may open the file."""

    def __init__(self, settings: SqliteSettings, sink: Held, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._sink = sink
        self._loop = loop

    def answer(self, question: bytes) -> Iterator[bytes]:
        """One chunk."""
        try:
            asked = pb.PagesQuestion.FromString(question)
        except Exception as error:
            raise ProtocolFault("cannot read a question", subject=self._settings.name, reason=str(error)) from error
        if not 512 <= asked.block_size <= 16 * 1024 * 1024:
            raise ProtocolFault("cannot answer", subject=self._settings.name, reason="an impossible block size")

        def job(path: str, published: Published | None) -> pb.PagesAnswer:
            return _describe(path, published, asked)

        work: Awaitable[pb.PagesAnswer] = self._sink.examined(job)
        answer = asyncio.run_coroutine_threadsafe(_awaited(work), self._loop).result()
        yield answer.SerializeToString()


async def _awaited(work: Awaitable[_T]) -> _T:
    return await work


def _describe(path: str, published: Published | None, asked: pb.PagesQuestion) -> pb.PagesAnswer:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return pb.PagesAnswer(absent=True)
    try:
        status = os.fstat(fd)
        content = hash_file(fd, block_size=asked.block_size)
    finally:
        os.close(fd)
    mode = stat.S_IMODE(status.st_mode)
    if published is not None and mode == published.mode & 0o7777 & ~WRITE_BITS:
        mode = published.mode & 0o7777
    return pb.PagesAnswer(
        sequence=published.position.sequence if published is not None else 0,
        size=content.size,
        hash=content.hash,
        damage=damage_of_file(path, thorough=True)[:500] if asked.check else "",
        mode=mode,
        uid=status.st_uid,
        gid=status.st_gid,
    )


# ---- the Active


@dataclass(slots=True)
class _Count:
    differing: int = 0
    repaired: int = 0
    unverified: int = 0
    in_motion: int = 0


class PagesExaminer:
    """See ``core.examine.Examiner``."""

    def __init__(self, settings: SqliteSettings, book: PagesBook) -> None:
        self._settings = settings
        self._book = book

    async def examine(self, peer: Peer, run: Run) -> Examined:
        """One object: the file."""
        count = _Count()
        await run.spend(0)
        await run.replicated()
        copy, rotten = await self._book.fresh(within_s=COPY_S)
        if isinstance(copy, Rejected):
            count.unverified += 1
            detail = f"no copy could be read without disturbing its program: {copy.why.value}"
            run.found(self._finding(run, Fault.UNVERIFIED, Side.ACTIVE, detail))
        elif rotten:
            count.differing += 1
            detail = (
                "its bytes changed on the Active though no program wrote it; the Standby's copy was left as it is: "
                "copy it back from there while the PBX is stopped"
            )
            run.found(self._finding(run, Fault.ROTTEN, Side.ACTIVE, detail))
        size = copy.size if isinstance(copy, Copy) else 0
        run.expect(objects=1, content_bytes=size)
        await run.spend(size)
        await self._look_at_standby(peer, run, count, may_send=not rotten)
        run.advance(objects=1, content_bytes=size)
        return Examined(
            objects=1,
            content_bytes=size,
            differing=count.differing,
            repaired=count.repaired,
            unverified=count.unverified,
            in_motion=count.in_motion,
        )

    async def _look_at_standby(self, peer: Peer, run: Run, count: _Count, *, may_send: bool) -> None:
        pair = await self._of_one_state(peer, run)
        if pair is None:
            if not count.unverified:
                count.in_motion += 1
            return
        fault, detail = _compared(*pair)
        if fault is None:
            return
        count.differing += 1
        if may_send:
            await self._book.resend((b"",))
            await run.replicated()
            again = await self._of_one_state(peer, run)
            count.repaired += again is not None and _compared(*again)[0] is None
        run.found(self._finding(run, fault, Side.STANDBY, detail, repaired=bool(count.repaired)))

    async def _of_one_state(self, peer: Peer, run: Run) -> tuple[Content, pb.PagesAnswer] | None:
        """What the Standby must have, and what it has; None while the states follow too fast."""
        for look in range(LOOKS):
            await run.replicated()
            standing = await self._book.standing()
            if standing is not None:
                sequence, content = standing
                answer = await self._ask(peer, pb.PagesQuestion(block_size=content.block_size, check=True))
                if answer.absent or answer.sequence == sequence:
                    return content, answer
            await asyncio.sleep(PAUSE_S * look)
        return None

    async def _ask(self, peer: Peer, question: pb.PagesQuestion) -> pb.PagesAnswer:
        chunks = [chunk async for chunk in peer.ask(question.SerializeToString())]
        if len(chunks) != 1:
            raise Retryable("got no answer about", subject=self._settings.name)
        return pb.PagesAnswer.FromString(chunks[0])

    def _finding(self, run: Run, fault: Fault, side: Side, detail: str, *, repaired: bool = False) -> Finding:
        return Finding(
            dataset=self._settings.name,
            subject=self._settings.path,
            fault=fault,
            side=side,
            repaired=repaired,
            equal_until_unix_s=run.equal_until_unix_s,
            detail=detail,
        )


def _compared(content: Content, answer: pb.PagesAnswer) -> tuple[Fault | None, str]:
    if answer.absent:
        return Fault.MISSING, ""
    if (answer.size, answer.hash) != (content.size, content.whole):
        if answer.size == content.size:
            return Fault.ROTTEN, answer.damage or "its bytes changed though nobody replaced the file"
        return Fault.CONTENT, answer.damage
    if answer.damage:
        return Fault.DAMAGED, answer.damage
    wanted = content.owner_and_mode
    if wanted is not None and wanted != (answer.uid, answer.gid, answer.mode):
        return Fault.METADATA, "owner or mode"
    return None, ""
