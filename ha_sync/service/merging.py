"""The merge of a divergence between the nodes: what the Active offers on the peer port, and the Standby's call of it.

Pieces are bounded, every size is checked against what was announced, and the staged files are the Active's own.
Repeating a merge that a broken connection ended is harmless: what is there is recognised.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from ha_proto.sync.v1 import merge_pb2 as pb
from ha_sync.config import DatasetSettings
from ha_sync.core.dataset import DatasetName, Report, Role
from ha_sync.divergence.archive import CONTENTS, FILES, ROWS, Archive
from ha_sync.divergence.merging import Merging
from ha_sync.divergence.outcome import Outcome
from ha_sync.divergence.tree_index import Object, content_path
from ha_sync.errors import Fenced, HaSyncError, PeerUnreachable, ProtocolFault, Refused, WrongState
from ha_sync.node import Membership, Node
from ha_sync.pairing.gate import Gate
from ha_sync.service.peer import PeerLink
from ha_sync.service.status_map import Context, abort
from ha_sync.stream.wire import PROTOCOL

SERVICE = "ha_proto.sync.v1.MergeService"
PIECE_BYTES = 512 * 1024
PIECE_MAX = 1024 * 1024
MIB = 1024 * 1024
REASONS_MAX = 100
REASON_CHARS_MAX = 500


# ---- the Active


class MergeServicer:
    """Takes the archives of the Standby."""

    def __init__(
        self, node: Node, gate: Gate, merging: Merging, *, membership: Callable[[], Membership | None], report: Report
    ) -> None:
        self._node = node
        self._gate = gate
        self._report = report
        self._merging = merging
        self._membership = membership
        self._datasets = {item.name: item for item in node.settings.datasets}

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """To be added to the server."""
        methods = {
            "Merge": grpc.stream_stream_rpc_method_handler(
                self.Merge,
                request_deserializer=pb.MergeMessage.FromString,
                response_serializer=pb.MergeAnswer.SerializeToString,
            )
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    async def Merge(self, requests: AsyncIterator[pb.MergeMessage], context: Context) -> None:  # noqa: N802 - the name in the protocol
        """Merges one archive of one dataset."""
        try:
            self._gate.authorize(context)
            messages = aiter(requests)
            first = await anext(messages, None)
            if first is None or first.WhichOneof("message") != "begin":
                raise ProtocolFault("refused a merge", reason="its first message is not its beginning")
            settings = self._admitted(first.begin)
            await self._merging.require(settings, force=first.begin.force)
            source = _Remote(first.begin, messages, context, bytes_max=self._node.settings.divergence.max_mib * MIB)
            outcome = await self._merging.merge(settings, source, force=first.begin.force)
            merged = pb.MergeOutcome(
                added=outcome.added,
                present=outcome.present,
                left=outcome.left,
                reasons=[_plain(reason) for reason in outcome.reasons[:REASONS_MAX]],
            )
            await context.write(pb.MergeAnswer(merged=merged))
            counts: dict[str, object] = {"added": merged.added, "present": merged.present, "left": merged.left}
            self._report("info", "divergence of the other node merged", {"dataset": settings.name, **counts})
        except HaSyncError as error:
            await abort(context, error)

    def _admitted(self, begin: pb.MergeBegin) -> DatasetSettings:
        subject = f"the merge of {begin.dataset!r}"
        if begin.protocol != PROTOCOL:
            raise Refused(f"refused {subject}", reason=f"protocol {begin.protocol}, this node speaks {PROTOCOL}")
        membership = self._membership()
        if membership is None or begin.cluster_id != membership.cluster_id:
            raise Refused(f"refused {subject}", reason=f"it belongs to cluster {begin.cluster_id!r}")
        if self._node.role is not Role.ACTIVE:
            raise WrongState(f"refused {subject}", reason="this node is not the Active")
        if begin.epoch != self._node.epoch:
            raise Fenced(f"refused {subject}", reason=f"it is for epoch {begin.epoch}, this is {self._node.epoch}")
        settings = self._datasets.get(DatasetName(begin.dataset))
        if settings is None or begin.kind != settings.kind.value:
            raise Refused(f"refused {subject}", reason=f"there is no such dataset of kind {begin.kind!r} here")
        return settings


class _Remote:
    """The archive at the other end of a call."""

    def __init__(
        self, begin: pb.MergeBegin, messages: AsyncIterator[pb.MergeMessage], context: Context, *, bytes_max: int
    ) -> None:
        if begin.index_bytes > bytes_max:
            raise Refused(
                "refused the merge of", subject=begin.dataset, reason=f"its index has {begin.index_bytes} bytes",
                hint="raise max_mib in [divergence] on the Active",
            )  # fmt: skip
        self._index_bytes = begin.index_bytes
        self._messages = messages
        self._context = context

    async def index(self, folder: str) -> str:
        """See Source."""
        path = os.path.join(folder, "index.db")
        await self._ask((0,))
        await self._take(0, path, self._index_bytes)
        return path

    async def contents(self, items: tuple[Object, ...], folder: str) -> dict[int, str]:
        """See Source."""
        await self._ask(tuple(item.number for item in items))
        paths = {item.number: os.path.join(folder, f"content-{item.number}") for item in items}
        for item in items:
            await self._take(item.number, paths[item.number], item.size)
        return paths

    async def _ask(self, numbers: tuple[int, ...]) -> None:
        await self._context.write(pb.MergeAnswer(wanted=pb.MergeWanted(objects=numbers)))

    async def _take(self, number: int, path: str, size: int) -> None:
        """One object; raises ProtocolFault for anything but its bytes, in order."""
        fd = await asyncio.to_thread(os.open, path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            offset, last = 0, False
            while not last:
                message = await anext(self._messages, None)
                if message is None:
                    raise PeerUnreachable("lost the Standby in a merge", subject=path)
                piece = message.piece
                end = offset + len(piece.data)
                if (piece.object, piece.offset) != (number, offset) or len(piece.data) > PIECE_MAX or end > size:
                    raise ProtocolFault("refused a piece of an archive", subject=f"object {number}, {offset}")
                await asyncio.to_thread(os.pwrite, fd, piece.data, offset)
                offset, last = end, piece.last
            if offset != size:
                raise ProtocolFault("refused an object of an archive", subject=str(number), reason="it is cut short")
        finally:
            os.close(fd)


# ---- the Standby


class MergeCaller:
    """Sends this node's archives to the Active."""

    def __init__(self, node: Node, link: PeerLink, *, membership: Callable[[], Membership | None]) -> None:
        self._node = node
        self._link = link
        self._kinds = {item.name: item.kind.value for item in node.settings.datasets}
        self._membership = membership

    async def send(
        self,
        archive: Archive,
        force: bool,
        admitted: Callable[[], None],
    ) -> Outcome:
        """Returns when the Active has made all durable. Raises what it refused, or what ended the call."""
        membership = self._membership()
        if membership is None:
            raise WrongState("cannot merge", reason="this node is not paired")
        about = archive.about
        index = os.path.join(archive.folder, FILES if about.kind == "tree" else ROWS)
        begin = pb.MergeBegin(
            protocol=PROTOCOL,
            cluster_id=membership.cluster_id,
            node_id=membership.node_id,
            archive=about.id,
            dataset=about.dataset,
            kind=self._kinds[about.dataset],
            epoch=self._node.epoch,
            force=force,
            index_bytes=await asyncio.to_thread(os.path.getsize, index),
        )
        async with self._link.connection() as channel:
            call = channel.stream_stream(
                f"/{SERVICE}/Merge", pb.MergeMessage.SerializeToString, pb.MergeAnswer.FromString
            )(None)
            try:
                await call.write(pb.MergeMessage(begin=begin))
                return await _conversation(call, archive, index, admitted)
            except asyncio.InvalidStateError as error:
                # The call is over: its status says why.
                code = await call.code()
                raise PeerUnreachable("lost the Active in a merge", reason=await call.details() or code.name) from error
            finally:
                call.cancel()


async def _conversation(call: Any, archive: Archive, index: str, admitted: Callable[[], None]) -> Outcome:
    async for answer in call:
        if answer.WhichOneof("answer") == "merged":
            merged = answer.merged
            return Outcome(
                added=merged.added, present=merged.present, left=merged.left, reasons=list(merged.reasons)
            )  # fmt: skip
        if 0 in answer.wanted.objects:
            admitted()
        for number in answer.wanted.objects:
            path = index if number == 0 else content_path(os.path.join(archive.folder, CONTENTS), number)
            await _send_object(call, number, path)
    raise PeerUnreachable("lost the Active in a merge", reason="it ended the call before it answered")


async def _send_object(call: Any, number: int, path: str) -> None:
    try:
        fd = await asyncio.to_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise HaSyncError("cannot read an archive", subject=path, reason=error.strerror or "") from error
    try:
        offset, last = 0, False
        while not last:
            data = await asyncio.to_thread(os.pread, fd, PIECE_BYTES, offset)
            last = len(data) < PIECE_BYTES
            piece = pb.MergePiece(object=number, offset=offset, data=data, last=last)
            await call.write(pb.MergeMessage(piece=piece))
            offset += len(data)
    finally:
        os.close(fd)


def _plain(text: str) -> str:
    """Names of files need not be text."""
    return text.encode("utf-8", "replace").decode()[:REASON_CHARS_MAX]
