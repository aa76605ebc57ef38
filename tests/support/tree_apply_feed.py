"""Builds tree frames by hand, as a correct Active would, and runs a sink on them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.apply.tree import TreeSink
from ha_sync.config import TreeSettings
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.core.frame import Body, Frame
from ha_sync.core.position import Answer, Epoch, Incarnation, Position, Sequence
from ha_sync.files.blocks import block_count, block_hash, block_size_for, content_of, whole_hash

EPOCH = Epoch(2)
INCARNATION = Incarnation(b"i" * 16)
T0 = 1_700_000_000_000_000_000

Part = tuple[pb.TreeChange, bytes]


def at(sequence: int, *, epoch: int = EPOCH, incarnation: bytes = INCARNATION) -> Position:
    return Position(epoch=Epoch(epoch), incarnation=Incarnation(incarnation), sequence=Sequence(sequence))


def put(path: bytes, content: bytes, *, mode: int = 0o644, mtime_ns: int = T0, unit: int = 0, **more: object) -> Part:
    told = content_of(content)
    change = pb.TreeChange(
        action=pb.TreeChange.ACTION_PUT, type=pb.TreeChange.TYPE_FILE, path=path, mode=mode, uid=os.getuid(),
        gid=os.getgid(), mtime_ns=mtime_ns, size=told.size, hash=told.hash, block_size=told.block_size, unit=unit,
        blocks=range(block_count(told.size, told.block_size)), payload_bytes=told.size,
    )  # fmt: skip
    for name, value in more.items():
        setattr(change, name, value)
    return change, content


def put_blocks(path: bytes, content: bytes, sent: Iterable[int], *, step: int | None = None, **more: object) -> Part:
    """Only some blocks travel; the others come from what the Standby has."""
    step = step or block_size_for(len(content))
    hashes = b"".join(block_hash(content[i : i + step]) for i in range(0, len(content), step))
    sent = list(sent)
    payload = b"".join(content[n * step : (n + 1) * step] for n in sent)
    change, _ = put(path, b"", **more)  # type: ignore[arg-type]
    change.size, change.hash, change.block_size = len(content), whole_hash(hashes, len(content)), step
    del change.blocks[:]
    change.blocks.extend(sent)
    change.payload_bytes = len(payload)
    return change, payload


def copy(path: bytes, source: bytes, content: bytes, **more: object) -> Part:
    change, _ = put_blocks(path, content, (), **more)
    change.copy_from = source
    return change, b""


def directory(path: bytes, *, mode: int = 0o755, mtime_ns: int = T0) -> Part:
    return _plain(pb.TreeChange.ACTION_PUT, pb.TreeChange.TYPE_DIRECTORY, path, mode=mode, mtime_ns=mtime_ns)


def link(path: bytes, target: bytes) -> Part:
    change, _ = _plain(pb.TreeChange.ACTION_PUT, pb.TreeChange.TYPE_SYMLINK, path, mode=0o777)
    change.link_target = target
    return change, b""


def delete(path: bytes, kind: int = pb.TreeChange.TYPE_FILE, *, unit: int = 0) -> Part:
    return pb.TreeChange(action=pb.TreeChange.ACTION_DELETE, type=kind, path=path, unit=unit), b""


def meta(path: bytes, *, mode: int, mtime_ns: int = T0, kind: int = pb.TreeChange.TYPE_FILE) -> Part:
    return _plain(pb.TreeChange.ACTION_META, kind, path, mode=mode, mtime_ns=mtime_ns)


def grow(path: bytes, offset: int, data: bytes, *, mode: int = 0o644) -> Part:
    change, _ = _plain(pb.TreeChange.ACTION_GROW, pb.TreeChange.TYPE_FILE, path, mode=mode)
    change.offset, change.payload_bytes = offset, len(data)
    return change, data


def _plain(action: int, kind: int, path: bytes, *, mode: int, mtime_ns: int = T0) -> Part:
    change = pb.TreeChange(
        action=action, type=kind, path=path, mode=mode, uid=os.getuid(), gid=os.getgid(), mtime_ns=mtime_ns
    )  # type: ignore[arg-type]
    return change, b""


def frame(parts: Iterable[Part], position: Position, *, end: bool = True, consistent: bool = True) -> Frame:
    parts = list(parts)
    return Frame(
        position=position,
        kind=Body.TREE,
        body=pb.TreeChanges(changes=[change for change, _ in parts]).SerializeToString(),
        payload=b"".join(payload for _, payload in parts),
        group_end=end,
        consistent=consistent,
    )


def settings(path: str, **more: object) -> TreeSettings:
    return TreeSettings(name=DatasetName("files"), path=path, priority=Priority.VOICEMAIL, **more)  # type: ignore[arg-type]


@dataclass
class Standby:
    """A sink under test, and what it said."""

    sink: TreeSink
    events: list[tuple[str, str, dict[str, object]]] = field(default_factory=list)
    needs: list[bytes] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    sequence: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def begin(self, answer: Answer = Answer.RESUME) -> None:
        await self.sink.begin(answer, "tree")

    async def group(self, *parts: Part, consistent: bool = True) -> None:
        """One group in one frame; returns when it is durable or refused."""
        await self.send(*parts, consistent=consistent)
        await self.until(lambda: bool(self.failures) or self.sink.applied.sequence >= self.sequence)

    async def send(self, *parts: Part, end: bool = True, consistent: bool = True) -> None:
        self.sequence += end
        position = at(self.sequence if end else self.sequence + 1)
        await self.sink.receive(frame(parts, position, end=end, consistent=consistent))

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not condition():
                self.changed.clear()
                # What only the report tells (a look of the guard) makes no call: it is asked again.
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.changed.wait(), 0.1)

    async def inventory(self) -> dict[bytes, tuple[pb.TreeChange, bytes]]:
        found: dict[bytes, tuple[pb.TreeChange, bytes]] = {}
        async for chunk in self.sink.inventory():
            message = pb.TreeInventory.FromString(chunk)
            for entry, hashes in zip(message.entries, message.block_hashes, strict=True):
                found[entry.path] = (entry, hashes)
        return found


async def standby(config: TreeSettings, catalogue: str, *, begin: bool = True, **more: object) -> Standby:
    def report(severity: str, what: str, fields: dict[str, object]) -> None:
        made.events.append((severity, what, fields))
        made.changed.set()

    sink = TreeSink(config, catalogue_path=catalogue, report=report, **more)  # type: ignore[arg-type]
    made = Standby(sink=sink)
    sink.on_durable(lambda _: made.changed.set())

    def need(paths: tuple[bytes, ...]) -> None:
        made.needs += paths
        made.changed.set()

    def failed(error: Exception) -> None:
        made.failures.append(error)
        made.changed.set()

    sink.on_need(need)
    sink.on_failure(failed)
    await sink.open(EPOCH, active_at="192.0.2.1")
    made.sequence = sink.applied.sequence
    if begin:
        await made.begin()
    return made


def tree_of(path: str) -> dict[str, object]:
    """What a program sees: every object that is not ours, with content and permission bits."""
    found: dict[str, object] = {}
    for folder, folders, files in os.walk(path):
        folders[:] = [name for name in folders if not name.startswith(".ha-")]
        for name in folders + files:
            if name.startswith(".ha-"):
                continue
            full = os.path.join(folder, name)
            status = os.lstat(full)
            relative = os.path.relpath(full, path)
            if stat.S_ISLNK(status.st_mode):
                found[relative] = ("link", os.readlink(full))
            elif stat.S_ISDIR(status.st_mode):
                found[relative] = ("directory", stat.S_IMODE(status.st_mode))
            else:
                with open(full, "rb") as file:
                    found[relative] = ("file", stat.S_IMODE(status.st_mode), file.read())
    return found
