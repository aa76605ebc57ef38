"""Questions about a storage, told only as far as the filesystems of both nodes can hold; and what a sync would do.

A plan is made by metadata alone and changes nothing: what the Standby lacks, what differs there, what would be deleted
(in a mirror), what cannot lie there. It needs no stream, so it can be made before the first byte is sent. In bytes.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import reduce

from google.protobuf.message import DecodeError

from ha_proto.sync.v1 import storage_pb2 as pb
from ha_sync.backup.full.looking import TreeLook
from ha_sync.backup.full.trees import Examination, Pair, TreeBook, TreeWitness, looking
from ha_sync.catalogue.tree import TYPE_FILE
from ha_sync.config import TreeSettings
from ha_sync.core.compare import fault_between
from ha_sync.core.examine import Depth, Fault, Finding, Peer, Run
from ha_sync.core.representation import EVERYTHING, Holding, common, holding_of
from ha_sync.errors import ProtocolFault

KINDS_MAX = 8
LINES_MAX = 1000


def holding_of_both(kinds: Iterable[str]) -> Holding:
    """What filesystems of all these kinds can hold."""
    return reduce(common, map(holding_of, kinds), EVERYTHING)


class StoragePeer:
    """A tree's questions, wrapped."""

    def __init__(self, peer: Peer, kinds: tuple[str, ...]) -> None:
        self._peer = peer
        self._kinds = kinds

    def ask(self, question: bytes) -> AsyncIterator[bytes]:
        """See ``core.examine.Peer``."""
        return self._peer.ask(pb.StorageQuestion(filesystems=self._kinds, tree=question).SerializeToString())


class StorageWitness(TreeWitness):
    """Answers as far as both can hold."""

    def __init__(self, settings: TreeSettings, found: Callable[[], bytes]) -> None:
        """``found`` gives the storage as it is now, for the wire; may block for as long as its filesystem does."""
        super().__init__(settings)
        self._found = found

    def answer(self, question: bytes) -> Iterator[bytes]:
        """See ``core.examine.Witness``."""
        try:
            asked = pb.StorageQuestion.FromString(question)
        except DecodeError as error:
            raise ProtocolFault("cannot read a question about a storage", reason=str(error)) from error
        if len(asked.filesystems) > KINDS_MAX:
            raise ProtocolFault("refused a question about a storage", reason="it names too many filesystems")
        if asked.found:
            yield self._found()
            return
        self.holding = holding_of_both(asked.filesystems)
        yield from super().answer(asked.tree)


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One object of a plan."""

    what: str  # send | change | delete | left out
    path: bytes
    size: int = 0
    detail: str = ""


@dataclass(slots=True, kw_only=True)
class Plan:
    """What a sync would do."""

    looked_at: int = 0
    send_objects: int = 0
    send_bytes: int = 0
    change_objects: int = 0
    delete_objects: int = 0
    left_out: int = 0
    lines: list[Line] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        """Whether both are the same as far as metadata tells."""
        return not (self.send_objects or self.change_objects or self.delete_objects)

    def add(self, pair: Pair) -> None:
        """One object that is not the same on both."""
        active, standby = pair.active, pair.standby
        match fault_between(active, standby):
            case Fault.SURPLUS:
                self.delete_objects += 1
                self._tell(Line(what="delete", path=pair.path))
            case Fault.METADATA if active is not None and standby is not None and _may_be_same(active, standby):
                self.change_objects += 1
                self._tell(Line(what="change", path=pair.path))
            case _:
                assert active is not None
                self.send_objects += 1
                self.send_bytes += active.size
                self._tell(Line(what="send", path=pair.path, size=active.size))

    def leave_out(self, finding: Finding) -> None:
        """One that cannot lie there."""
        self.left_out += 1
        self._tell(Line(what="left out", path=os.fsencode(finding.subject), detail=finding.detail))

    def _tell(self, line: Line) -> None:
        if len(self.lines) < LINES_MAX:
            self.lines.append(line)


def _may_be_same(active: object, standby: object) -> bool:
    """A file of another time may have other content: by metadata it must be counted as one to send."""
    kind, now, then = getattr(active, "type", 0), getattr(active, "mtime_ns", 0), getattr(standby, "mtime_ns", 0)
    return kind != TYPE_FILE or now == then


class _Planning(Examination):
    plan: Plan

    async def _unequal(self, pairs: list[Pair]) -> None:
        for pair in pairs:
            self.plan.add(pair)


class _Looks:
    """The run of an examination that only plans."""

    depth = Depth.METADATA
    cursor = b""
    equal_until_unix_s = None

    def __init__(self, plan: Plan, told: Callable[[Plan], None], run: Run | None) -> None:
        self._plan = plan
        self._told = told
        self._run = run

    async def spend(self, content_bytes: int) -> None:
        if self._run is not None:
            await self._run.spend(content_bytes)

    def advance(self, *, objects: int, content_bytes: int) -> None:
        del content_bytes
        self._plan.looked_at += objects
        self._told(self._plan)

    def expect(self, *, objects: int, content_bytes: int) -> None:
        pass

    def found(self, finding: Finding) -> None:
        self._plan.leave_out(finding)

    async def replicated(self) -> None:
        pass

    def in_phase(self, words: str) -> None:
        pass

    def sending(self, *, objects: int, content_bytes: int) -> None:
        pass

    async def reached(self, cursor: bytes) -> None:
        pass


async def planned(
    settings: TreeSettings,
    book: TreeBook,
    peer: Peer,
    *,
    kinds: tuple[str, ...],
    told: Callable[[Plan], None] = lambda _: None,
    run: Run | None = None,
) -> Plan:
    """Walks both. ``told`` hears of progress; ``run`` holds it while paused. Raises Retryable."""
    plan = Plan()

    def planning(look: TreeLook, executor: Executor) -> _Planning:
        looks = _Looks(plan, told, run)
        made = _Planning(settings, book, peer=StoragePeer(peer, kinds), run=looks, look=look, executor=executor)
        made.plan = plan
        return made

    async with looking(settings, holding_of_both(kinds)) as (look, executor):
        await planning(look, executor).run()
    return plan
