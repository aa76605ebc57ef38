"""The Standby's half of ``Examine``: dials the Active, hears its questions, answers them from the witnesses.

The call stands for as long as this node is Standby and is opened again whenever it ends. Nothing of a lower epoch than
the highest one seen is answered. Questions of one dataset are answered one after the other in a thread of its own, so
that nothing else waits for it; QUESTIONS_MAX altogether may wait. A witness that was not asked for REST_S lets go of
what it holds open. Runs in the engine's event loop. Seconds are monotonic.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from ha_proto.sync.v1 import examine_pb2 as pb
from ha_sync.backup.full.desk import CHUNK_MAX
from ha_sync.backup.full.gentle import quiet_executor
from ha_sync.core.dataset import DatasetName, Role
from ha_sync.core.examine import Resting, Witness
from ha_sync.core.position import Epoch
from ha_sync.errors import Fenced, HaSyncError, OperatorNeeded, PeerUnreachable, ProtocolFault

log = logging.getLogger(__name__)

PROTOCOL = 1
QUESTIONS_MAX = 16
REST_S = 30.0
LATE_S = 5.0
"""A question is no older than this while the Active's full backup goes on, but for a pause of it."""

RETRY_MIN_S = 0.1
RETRY_MAX_S = 2.0
ROLE_LOOK_S = 1.0


class Call(Protocol):
    """A bidirectional call of bytes."""

    async def read(self) -> bytes | None:
        """The next message; None at the end."""

    async def write(self, data: bytes) -> None:
        """Sends a message."""


Dial = Callable[[], AbstractAsyncContextManager[Call]]


class Self(Protocol):
    """What this node is."""

    @property
    def role(self) -> Role | None:
        """Now."""

    @property
    def promised(self) -> Epoch:
        """The highest epoch seen."""

    @property
    def served(self) -> Epoch:
        """The last epoch in which this node was Active."""

    async def promise(self, epoch: Epoch) -> None:
        """Stores a higher epoch durably before it returns."""

    def witness(self, name: DatasetName) -> Witness:
        """Of a dataset. Raises HaSyncError where there is none now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Which pair, and which node of it."""

    cluster_id: str
    node_id: str


@dataclass(slots=True)
class _Desk:
    """A dataset's witness and its thread."""

    witness: Witness
    executor: ThreadPoolExecutor
    asked_at: float
    answering: asyncio.Lock = field(default_factory=asyncio.Lock)  # a witness is asked one thing at a time


class Answerer:
    """See the module."""

    def __init__(
        self, node: Self, *, member: Callable[[], Member | None], dial: Dial, noted: Callable[[float], None]
    ) -> None:
        """``noted`` hears when the Active's last full backup began (wall clock)."""
        self._node = node
        self._member = member
        self._dial = dial
        self._noted = noted
        self._desks: dict[str, _Desk] = {}
        self._reason = ""

    @property
    def answering(self) -> str:
        """The dataset that the Active asked about of late; "" where it asks nothing."""
        newest = max(self._desks.items(), key=lambda item: item[1].asked_at, default=None)
        if newest is None or time.monotonic() - newest[1].asked_at > LATE_S:
            return ""
        return newest[0]

    async def run(self) -> None:
        """Until cancelled."""
        pause = RETRY_MIN_S
        while True:
            member = self._member()
            if self._node.role is not Role.STANDBY or member is None:
                await asyncio.sleep(ROLE_LOOK_S)
                continue
            began = time.monotonic()
            try:
                await self._call(member)
            except HaSyncError as error:
                self._told(error.sentence())
            finally:
                self._let_go(older_than=float("inf"))
            lasted = time.monotonic() - began > RETRY_MAX_S
            pause = RETRY_MIN_S if lasted else min(2 * pause, RETRY_MAX_S)
            await asyncio.sleep(pause)

    def _told(self, reason: str) -> None:
        if reason != self._reason:
            self._reason = reason
            log.info("examination ended", extra={"reason": reason})

    async def _call(self, member: Member) -> None:
        node = self._node
        async with self._dial() as call:
            hello = pb.ExamineHello(
                protocol=PROTOCOL,
                cluster_id=member.cluster_id,
                node_id=member.node_id,
                promised_epoch=node.promised,
                served_epoch=node.served,
            )
            await call.write(pb.ExamineAnswer(hello=hello).SerializeToString())
            conversation = _Conversation(self, call)
            parts = [asyncio.ensure_future(part) for part in (conversation.run(), self._while_standby())]
            try:
                done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                for part in done:
                    part.result()
            finally:
                for part in parts:
                    part.cancel()
                await asyncio.gather(*parts, return_exceptions=True)

    async def _while_standby(self) -> None:
        while self._node.role is Role.STANDBY:
            await asyncio.sleep(ROLE_LOOK_S)
            self._let_go(older_than=time.monotonic() - REST_S)

    def _let_go(self, *, older_than: float) -> None:
        for name in [name for name, desk in self._desks.items() if desk.asked_at < older_than]:
            desk = self._desks.pop(name)
            if isinstance(desk.witness, Resting):
                desk.executor.submit(desk.witness.rest)
            desk.executor.shutdown(wait=False)

    async def admit(self, question: pb.ExamineQuestion) -> None:
        """Stores the epoch before anything is answered in it. Raises Fenced for a lower one."""
        if question.epoch < self._node.promised:
            raise Fenced(
                "refused a question",
                subject=f"of epoch {question.epoch}",
                reason=f"epoch {self._node.promised} was seen",
            )
        await self._node.promise(Epoch(question.epoch))
        if question.begun_unix_s:
            self._noted(question.begun_unix_s)

    def desk(self, name: str) -> _Desk:
        """The dataset's thread and witness."""
        desk = self._desks.get(name)
        if desk is None:
            witness = self._node.witness(DatasetName(name))
            executor = quiet_executor(f"witness-{name}")
            desk = self._desks[name] = _Desk(witness=witness, executor=executor, asked_at=0.0)
        desk.asked_at = time.monotonic()
        return desk


class _Conversation:
    """One call after its hello."""

    def __init__(self, answerer: Answerer, call: Call) -> None:
        self._answerer = answerer
        self._call = call
        self._writing = asyncio.Lock()
        self._answering: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the Active ends it. Raises what ended it otherwise."""
        try:
            while (data := await self._call.read()) is not None:
                question = pb.ExamineQuestion.FromString(data)
                await self._answerer.admit(question)
                if not question.id:
                    continue
                if len(self._answering) >= QUESTIONS_MAX:
                    raise ProtocolFault("refused a question", reason="too many at once")
                task = asyncio.create_task(self._answer(question), name="answer")
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
        finally:
            for task in self._answering:
                task.cancel()
            await asyncio.gather(*self._answering, return_exceptions=True)
        raise PeerUnreachable("lost the active", reason="it ended the call")

    async def _answer(self, question: pb.ExamineQuestion) -> None:
        """Chunk by chunk; what goes wrong is told as the answer."""
        try:
            desk = self._answerer.desk(question.dataset)
            loop = asyncio.get_running_loop()
            async with desk.answering:
                chunks = desk.witness.answer(question.body)
                while (chunk := await loop.run_in_executor(desk.executor, next, chunks, None)) is not None:
                    if len(chunk) > CHUNK_MAX:
                        raise ProtocolFault("cannot answer", subject=question.dataset, reason="a chunk is too large")
                    await self._write(pb.ExamineAnswer(id=question.id, chunk=chunk))
            last = pb.ExamineAnswer(id=question.id, last=True)
        except HaSyncError as error:
            last = pb.ExamineAnswer(id=question.id, error=error.sentence())
        except Exception as error:  # the Active must hear of it, whatever it was
            log.exception("a question could not be answered", extra={"dataset": question.dataset})
            last = pb.ExamineAnswer(id=question.id, error=repr(error))
        with contextlib.suppress(HaSyncError):  # the call is over: its reader says why
            await self._write(last)

    async def _write(self, answer: pb.ExamineAnswer) -> None:
        async with self._writing:
            await self._call.write(answer.SerializeToString())


def refuse_unsuited(hello: pb.ExamineHello, *, cluster_id: str, epoch: Epoch) -> None:
    """On the Active: whether this Standby may answer. Raises ProtocolFault, OperatorNeeded or Fenced."""
    if hello.protocol != PROTOCOL:
        raise OperatorNeeded("refused an examination", reason=f"protocol {hello.protocol}, this node speaks {PROTOCOL}")
    if hello.cluster_id != cluster_id:
        raise ProtocolFault("refused an examination", reason=f"it belongs to cluster {hello.cluster_id!r}")
    if max(hello.promised_epoch, hello.served_epoch) > epoch:
        raise Fenced(
            "refused an examination",
            reason=f"it has seen epoch {hello.promised_epoch}, this Active has {epoch}",
        )
