"""Trees: the examiner on the Active, the witness on the Standby, and the messages that only these two understand.

The Active walks in order and cuts ranges. For each it asks the Standby for the digest of the same range while it makes
its own; several questions are under way, so both nodes read at once. Where two digests differ, the entries are
exchanged; what differs then is looked at again after a barrier, a few times: only what keeps still and still differs
is a finding. Memory: a few ranges of entries. Sizes in bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from ha_proto.sync.v1 import examine_pb2 as pb
from ha_sync.backup.full.gentle import quiet_executor
from ha_sync.backup.full.looking import NO_BOUND, Local, TreeLook
from ha_sync.catalogue.tree import TYPE_FILE, Entry, key_of, path_of
from ha_sync.config import TreeSettings
from ha_sync.core.compare import RANGE_BYTES, RANGE_OBJECTS, Seen, digest_of, fault_between, merged, unlike
from ha_sync.core.examine import Depth, Examined, Fault, Finding, Peer, Run, Side
from ha_sync.core.representation import EVERYTHING, Holding, Names, refusal
from ha_sync.errors import HaSyncError, ProtocolFault, Retryable
from ha_sync.files.metadata import object_type

AHEAD = 6
"""Ranges whose digests are asked for and not yet compared."""

UNREAD_MAX = 3
"""Of these not yet read here."""

PLAIN_OBJECTS = 4000
"""In a range of which no content is read."""

ENTRIES_MAX = 4000
"""Entries of one answer; a range with more is compared in portions."""

CHUNK_ENTRIES = 1000
PATHS_MAX = 500
LOOKS = 4
"""At something that differs; what has not come to rest by then is in motion."""

PAUSE_S = 0.1

REPAIRS = 2

_T = TypeVar("_T")


class TreeBook(Protocol):
    """What the examiner asks of the dataset's source."""

    async def remembered(self, paths: tuple[bytes, ...]) -> Mapping[bytes, Entry]:
        """What was captured of these and acknowledged by the Standby."""

    async def moving(self, paths: tuple[bytes, ...]) -> frozenset[bytes]:
        """Which of these are being written, or on their way."""

    async def resend(self, objects: tuple[bytes, ...]) -> None:
        """Forgets what the Standby has of these and sends them whole; a path that is not here is deleted there."""

    async def restate(self, paths: tuple[bytes, ...]) -> None:
        """Sends the metadata of these again."""

    def expected(self) -> int:
        """About how many objects there are."""


# ---- the Standby


class TreeWitness:
    """See ``core.examine.Witness``; lets go of the tree when it rests."""

    def __init__(self, settings: TreeSettings) -> None:
        self._settings = settings
        self._look: TreeLook | None = None
        self.holding = EVERYTHING  # what of an object is told

    def answer(self, question: bytes) -> Iterator[bytes]:
        """One chunk for a digest; entries in as many as they need."""
        try:
            asked = pb.TreeQuestion.FromString(question)
        except Exception as error:
            raise ProtocolFault("cannot read a question", subject=self._settings.name, reason=str(error)) from error
        match asked.WhichOneof("question"):
            case "digest":
                yield self._digest(asked.digest, content=asked.content)
            case "entries":
                seen = self._range(asked.entries, content=asked.content)
                yield from _chunks(_first(seen, asked.entries.limit))
            case "paths":
                look = self._opened()
                items = look.at(asked.paths.paths) if look is not None else iter(())
                yield from _chunks(look.see(items, content=asked.content) if look is not None else iter(()))
            case other:
                raise ProtocolFault("cannot answer", subject=self._settings.name, reason=f"{other!r} is not known")

    def _digest(self, wanted: pb.TreeRange, *, content: bool) -> bytes:
        look = self._opened()
        if look is None:
            return pb.TreeDigest(digest=digest_of(())).SerializeToString()
        items = look.between(_after(wanted), wanted.until)
        return pb.TreeDigest(digest=look.digest(items, content=content)).SerializeToString()

    def _range(self, wanted: pb.TreeRange, *, content: bool) -> Iterator[Seen]:
        look = self._opened()
        return look.see(look.between(_after(wanted), wanted.until), content=content) if look is not None else iter(())

    def _opened(self) -> TreeLook | None:
        if self._look is None:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                self._look = TreeLook(self._settings, standby=True)
        if self._look is not None:
            self._look.holding = self.holding
        return self._look

    def rest(self) -> None:
        """Closes every descriptor."""
        if self._look is not None:
            self._look.close()
            self._look = None


def _after(wanted: pb.TreeRange) -> bytes | None:
    return None if wanted.from_root else wanted.after


def _first(seen: Iterator[Seen], limit: int) -> Iterator[Seen]:
    for count, item in enumerate(seen, 1):
        yield item
        if count == limit:
            return


def _chunks(seen: Iterable[Seen]) -> Iterator[bytes]:
    message = pb.TreeEntries()
    for item in seen:
        message.entries.append(_to_wire(item))
        if len(message.entries) >= CHUNK_ENTRIES or message.ByteSize() > _BIG:
            yield message.SerializeToString()
            message = pb.TreeEntries()
    if message.entries:
        yield message.SerializeToString()


_BIG = 256 * 1024
_PLAIN = tuple(name for name in Seen._fields if name != "key")


def _to_wire(seen: Seen) -> pb.TreeEntry:
    fields: dict[str, Any] = {name: getattr(seen, name) for name in _PLAIN}
    return pb.TreeEntry(path=path_of(seen.key), **fields)


def _from_wire(entry: pb.TreeEntry) -> Seen:
    return Seen(key_of(entry.path), *(getattr(entry, name) for name in _PLAIN))


# ---- the Active


@dataclass(slots=True, kw_only=True)
class _Range:
    """A range that is being compared."""

    after: bytes | None
    items: list[Local]
    content_bytes: int
    until: bytes  # its last key; empty: it is the rest of the tree
    objects: int
    theirs: asyncio.Task[bytes]
    digest: bytes = b""  # empty: not read yet


@dataclass(frozen=True, slots=True)
class Pair:
    """One object on both nodes."""

    active: Seen | None
    standby: Seen | None

    @property
    def path(self) -> bytes:
        """Of whichever is there."""
        seen = self.active or self.standby
        assert seen is not None
        return path_of(seen.key)


@dataclass(slots=True)
class _Count:
    objects: int = 0
    content_bytes: int = 0
    differing: int = 0
    repaired: int = 0
    unverified: int = 0
    in_motion: int = 0
    told_unreadable: set[bytes] = field(default_factory=set)


class TreeExaminer:
    """See ``core.examine.Examiner``. One examination at a time."""

    def __init__(self, settings: TreeSettings, book: TreeBook, *, holding: Holding = EVERYTHING) -> None:
        """``holding``: what both nodes' filesystems can hold."""
        self._settings = settings
        self._book = book
        self._holding = holding

    async def examine(self, peer: Peer, run: Run) -> Examined:
        """Raises Retryable, or OperatorNeeded where a guard halted the dataset."""
        await run.replicated()
        async with looking(self._settings, self._holding) as (look, executor):
            return await Examination(self._settings, self._book, peer=peer, run=run, look=look, executor=executor).run()


@contextlib.asynccontextmanager
async def looking(settings: TreeSettings, holding: Holding) -> AsyncIterator[tuple[TreeLook, Executor]]:
    """The Active's own tree, and the thread in which it is read. Raises Retryable where there is none."""
    executor = quiet_executor(f"examine-{settings.name}")
    try:
        look = await _in(executor, lambda: TreeLook(settings, standby=False))
    except OSError as error:
        executor.shutdown(wait=False)
        raise Retryable("cannot compare", subject=settings.path, reason=error.strerror or "") from error
    look.holding = holding
    try:
        yield look, executor
    finally:
        # Behind whatever the thread does now: it must not lose its descriptors while it reads.
        executor.submit(look.close)
        executor.shutdown(wait=False)


class Examination:
    """One examination."""

    def __init__(
        self, settings: TreeSettings, book: TreeBook, *, peer: Peer, run: Run, look: TreeLook, executor: Executor
    ) -> None:
        self._settings = settings
        self._book = book
        self._peer = peer
        self._run = run
        self._look = look
        self._executor = executor
        self._content = run.depth is Depth.CONTENT
        self._count = _Count()
        self._pending: deque[_Range] = deque()
        self._names = Names()

    async def run(self) -> Examined:
        """To its end, from the run's cursor."""
        cursor = self._run.cursor
        after = cursor[1:] if cursor else None
        self._run.expect(objects=self._book.expected(), content_bytes=0)
        objects, bound = (RANGE_OBJECTS, RANGE_BYTES) if self._content else (PLAIN_OBJECTS, NO_BOUND)
        cut = partial(self._look.cut, objects=objects, content_bytes=bound)
        try:
            ended = False
            while not ended or self._pending:
                unread = next((each for each in self._pending if not each.digest), None)
                if not ended and len(self._pending) < AHEAD and self._unread < UNREAD_MAX:
                    items = await self._thread(partial(cut, after))
                    ended = not items
                    await self._ask(after, await self._represented(items), until=items[-1][0] if items else b"")
                    after = items[-1][0] if items else after
                elif unread is not None and not (self._pending[0].digest and self._pending[0].theirs.done()):
                    await self._read(unread)
                else:
                    await self._settle(self._pending.popleft())
        finally:
            for waiting in self._pending:
                waiting.theirs.cancel()
            await asyncio.gather(*(waiting.theirs for waiting in self._pending), return_exceptions=True)
        count = self._count
        return Examined(
            objects=count.objects,
            content_bytes=count.content_bytes,
            differing=count.differing,
            repaired=count.repaired,
            unverified=count.unverified,
            in_motion=count.in_motion,
        )

    async def _thread(self, work: Callable[[], _T]) -> _T:
        return await _in(self._executor, work)

    async def _represented(self, items: list[Local]) -> list[Local]:
        """Those that can lie on the other node; the rest is told, and never compared."""
        holding = self._look.holding
        if holding.complete:
            return items
        kept: list[Local] = []
        for key, status in items:
            path = path_of(key)
            reason = refusal(path, object_type(status.st_mode), status.st_size, holding)
            if not reason and holding.folds_case and path and (other := self._names.clash(path)):
                reason = f"{holding.kind} folds case: {other} stands there"
            if reason:
                self._cannot_lie(path, reason)
            else:
                kept.append((key, status))
        return kept

    def _cannot_lie(self, path: bytes, reason: str) -> None:
        self._count.unverified += 1
        pair = Pair(Seen(key_of(path), TYPE_FILE), None)
        self._run.found(self._finding(pair, Fault.UNVERIFIED, Side.ACTIVE, f"left out: {reason}"))

    @property
    def _unread(self) -> int:
        return sum(not each.digest for each in self._pending)

    async def _ask(self, after: bytes | None, items: list[Local], *, until: bytes) -> None:
        """Before the range is read here: the other node always has one to read."""
        size = _content_of(items) if self._content else 0
        await self._run.spend(size)
        wanted = pb.TreeRange(from_root=after is None, after=after or b"", until=until)
        question = pb.TreeQuestion(digest=wanted, content=self._content)
        theirs = asyncio.create_task(self._digest(question), name="range of a tree")
        this = _Range(after=after, items=items, content_bytes=size, until=until, objects=len(items), theirs=theirs)
        self._pending.append(this)

    async def _read(self, this: _Range) -> None:
        this.digest = await self._thread(lambda: self._look.digest(this.items, content=self._content))

    async def _digest(self, question: pb.TreeQuestion) -> bytes:
        answer = b"".join([chunk async for chunk in self._peer.ask(question.SerializeToString())])
        return pb.TreeDigest.FromString(answer).digest

    async def _settle(self, this: _Range) -> None:
        if await this.theirs != this.digest:
            await self._differs(this)
        objects = this.objects
        self._count.objects += objects
        self._count.content_bytes += this.content_bytes
        self._run.advance(objects=objects, content_bytes=this.content_bytes)
        if this.until:
            await self._run.reached(b"\x01" + this.until)

    async def _differs(self, this: _Range) -> None:
        """Exchanges the entries of a range, in portions."""
        after, start = this.after, 0
        seen = await self._thread(lambda: list(self._look.see(this.items, content=self._content)))
        while True:
            wanted = pb.TreeRange(from_root=after is None, after=after or b"", until=this.until, limit=ENTRIES_MAX)
            question = pb.TreeQuestion(entries=wanted, content=self._content)
            theirs = [entry async for entry in self._entries(question)]
            more = len(theirs) >= ENTRIES_MAX
            end = len(seen)
            if more:
                last = theirs[-1].key
                end = next((at for at in range(start, len(seen)) if seen[at].key > last), end)
            await self._unequal(self._pairs(seen[start:end], theirs))
            if not more:
                return
            after, start = theirs[-1].key, end

    def _pairs(self, ours: list[Seen], theirs: list[Seen]) -> list[Pair]:
        """What differs, and matters: what only the Standby of an add-only storage has is as it should be."""
        pairs = [Pair(*pair) for pair in merged(ours, theirs)]
        return [pair for pair in pairs if pair.active is not None] if self._settings.keeps_deleted else pairs

    async def _unequal(self, pairs: list[Pair]) -> None:
        """At the first look."""
        paths = tuple(pair.path for pair in pairs)
        for at in range(0, len(paths), PATHS_MAX):
            await self._judge(paths[at : at + PATHS_MAX])

    async def _entries(self, question: pb.TreeQuestion) -> AsyncIterator[Seen]:
        async for chunk in self._peer.ask(question.SerializeToString()):
            for entry in pb.TreeEntries.FromString(chunk).entries:
                yield _from_wire(entry)

    # ---- what differs

    async def _judge(self, paths: tuple[bytes, ...]) -> None:
        differing = await self._still_differing(paths)
        if not differing:
            return
        known = await self._book.remembered(tuple(pair.path for pair in differing))
        findings: list[tuple[Pair, Finding]] = []
        for pair in differing:
            finding = await self._classified(pair, known.get(pair.path))
            if finding is not None:
                findings.append((pair, finding))
        repaired = await self._repair([(p, f) for p, f in findings if f.side is Side.STANDBY and _may_mend(f)])
        for pair, finding in findings:
            mended = pair.path in repaired
            self._count.repaired += mended
            if finding.fault is Fault.UNVERIFIED:
                self._count.unverified += 1
            else:
                self._count.differing += 1
            self._run.found(replace(finding, repaired=mended))

    async def _look_at(self, paths: tuple[bytes, ...]) -> dict[bytes, Pair]:
        """Both nodes' objects, their content included, where they differ."""

        items = await self._thread(lambda: list(self._look.at(paths)))
        await self._run.spend(_content_of(items))
        question = pb.TreeQuestion(paths=pb.TreePaths(paths=paths), content=True)
        ours = await self._thread(lambda: list(self._look.see(items, content=True)))
        theirs = [seen async for seen in self._entries(question)]
        return {pair.path: pair for pair in self._pairs(ours, theirs)}

    async def _still_differing(self, paths: tuple[bytes, ...]) -> list[Pair]:
        """What differs at rest: seen twice in the same way, with a barrier before each look."""
        before: dict[bytes, Pair] = {}
        settled: list[Pair] = []
        for look in range(LOOKS):
            if look > 1:
                await asyncio.sleep(PAUSE_S)  # a program that writes now and then shall be seen to do so
            await self._run.replicated()
            found = await self._look_at(paths)
            moving = await self._book.moving(tuple(found))
            rests = [pair for path, pair in found.items() if before.get(path) == pair and path not in moving]
            settled += rests
            at_rest = {pair.path for pair in rests}
            before = {path: pair for path, pair in found.items() if path not in at_rest}
            paths = tuple(before)
            if not paths:
                return settled
        self._count.in_motion += len(paths)
        return settled

    async def _classified(self, pair: Pair, known: Entry | None) -> Finding | None:
        active, standby = pair.active, pair.standby
        fault, side, detail = fault_between(active, standby), Side.STANDBY, ""
        assert fault is not None
        if any(pair_key_below(pair.path, key) for key in self._look.unreadable):
            if pair.path in self._count.told_unreadable:
                return None
            self._count.told_unreadable.add(pair.path)
            return self._finding(pair, Fault.UNVERIFIED, Side.ACTIVE, "a directory above it cannot be read here")
        if active is not None and active.unreadable:
            return self._finding(pair, Fault.UNVERIFIED, Side.ACTIVE, "it cannot be read here")
        if active is not None and standby is not None:
            detail = ", ".join(unlike(active, standby))
            if standby.unreadable:
                detail = "it could not be read there"
            elif fault is Fault.CONTENT and known is not None:
                fault, side, detail = await self._rotten(active, standby, known, detail)
        return self._finding(pair, fault, side, detail)

    async def _rotten(self, active: Seen, standby: Seen, known: Entry, detail: str) -> tuple[Fault, Side, str]:
        """Whether the content changed under what else is as it was captured, and on which node."""
        if known.type != TYPE_FILE or active.type != TYPE_FILE or not known.hash:
            return Fault.CONTENT, Side.STANDBY, detail
        path = known.path

        def here() -> tuple[os.stat_result, bytes]:
            return self._look.content_in_blocks(path, known.block_size)

        try:
            status, content = await self._thread(here)
        except (OSError, HaSyncError):
            return Fault.CONTENT, Side.STANDBY, detail
        untouched = (known.witness.inode, known.witness.ctime_ns) == (status.st_ino, status.st_ctime_ns)
        if untouched and known.size == active.size and content != known.hash:
            return Fault.ROTTEN, Side.ACTIVE, ROTTEN_HINT
        if (standby.size, standby.mtime_ns) == (known.size, known.mtime_ns):
            return Fault.ROTTEN, Side.STANDBY, "its size and times are as they were received"
        return Fault.CONTENT, Side.STANDBY, detail

    def _finding(self, pair: Pair, fault: Fault, side: Side, detail: str) -> Finding:
        return Finding(
            dataset=self._settings.name,
            subject=os.fsdecode(pair.path) or ".",
            fault=fault,
            side=side,
            equal_until_unix_s=self._run.equal_until_unix_s,
            detail=detail,
        )

    # ---- repair

    async def _repair(self, findings: list[tuple[Pair, Finding]]) -> frozenset[bytes]:
        """Sends again, and looks; returns what is equal now."""
        left = {pair.path: finding for pair, finding in findings}
        wanted = frozenset(left)
        for _ in range(REPAIRS):
            if not left:
                break
            only_meta = tuple(path for path, finding in left.items() if finding.fault is Fault.METADATA)
            whole = tuple(path for path in left if path not in only_meta)
            if only_meta:
                await self._book.restate(only_meta)
            if whole:
                await self._book.resend(whole)
            await self._run.replicated()
            still = await self._look_at(tuple(left))
            left = {path: finding for path, finding in left.items() if path in still}
        return wanted - left.keys()


ROTTEN_HINT = (
    "its bytes changed on the Active though nobody wrote it; the Standby's copy was left as it is: "
    "copy it back from there, or write the file anew"
)


def _may_mend(finding: Finding) -> bool:
    return finding.fault is not Fault.UNVERIFIED


def pair_key_below(path: bytes, directory_key: bytes) -> bool:
    """Whether a path lies below a directory, given by its key."""
    return not directory_key or key_of(path).startswith(directory_key + b"\0")


def _content_of(items: list[Local]) -> int:
    return sum(status.st_size for _, status in items if stat.S_ISREG(status.st_mode))


async def _in(executor: Executor, work: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(executor, work)
