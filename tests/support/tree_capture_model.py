"""A Standby in memory: applies frames of a tree strictly, and compares itself with a real directory.

Strict means: a frame that a correct sink would have to refuse fails the test (wrong hash, missing parent, missing copy
source, positions that do not grow, a block that is in no place).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from typing import Self

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.capture.tree import TreeSource
from ha_sync.config import TreeSettings
from ha_sync.core.dataset import Priority
from ha_sync.core.frame import FRAME_PAYLOAD_MAX, Body, Frame
from ha_sync.core.position import NOWHERE, Answer, Epoch, Position
from ha_sync.files.blocks import block_count, block_hash, content_of, hash_file, whole_hash
from ha_sync.files.metadata import decode_xattrs, read_xattrs

C = pb.TreeChange


@dataclass(frozen=True)
class Thing:
    """One object of the Standby."""

    type: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    xattrs: tuple[tuple[str, bytes], ...] = ()
    content: bytes = b""
    block_size: int = 0
    target: bytes = b""


class Refused(AssertionError):
    """The model would not take this."""


@dataclass
class Model:
    """The Standby."""

    things: dict[bytes, Thing] = field(default_factory=dict)
    partials: dict[bytes, bytearray] = field(default_factory=dict)
    versions: dict[bytes, bytes] = field(default_factory=dict)  # of partials that come in parts
    applied: Position = NOWHERE
    consistent: bool = False
    groups: list[list[pb.TreeChange]] = field(default_factory=list)
    payload_bytes: int = 0
    _group: list[tuple[pb.TreeChange, bytes]] = field(default_factory=list)

    def take(self, frame: Frame) -> bool:
        """Whether a group was completed."""
        assert len(frame.payload) <= FRAME_PAYLOAD_MAX
        if frame.kind is Body.TREE:
            at = 0
            for change in pb.TreeChanges.FromString(frame.body).changes:
                self._group.append((change, bytes(frame.payload[at : at + change.payload_bytes])))
                at += change.payload_bytes
            assert at == len(frame.payload)
            self.payload_bytes += at
        if not frame.group_end:
            return False
        if frame.position.resumes(self.applied) and frame.position.sequence <= self.applied.sequence:
            raise Refused(f"position went from {self.applied} to {frame.position}")
        self._apply()
        self.applied, self.consistent = frame.position, frame.consistent
        return True

    def drop(self) -> None:
        """The connection broke: a group received in part is dropped."""
        self._group = []

    def _apply(self) -> None:
        group, self._group = self._group, []
        self.groups.append([change for change, _ in group])
        before = dict(self.things)
        built = self._contents(group, before)
        for change, payload in group:
            if change.action == C.ACTION_GROW:
                self._grow(change, payload)
            elif change.action == C.ACTION_DELETE:
                self._delete(change.path)
            elif change.action == C.ACTION_META:
                old = self.things.get(change.path)
                if old is None or old.type != change.type:
                    raise Refused(f"metadata of {change.path!r}, which is not there")
                self.things[change.path] = replace(_thing(change, old.content), target=old.target)
            elif not change.more:
                self._put(change, built.get(change.path, b""))

    def _contents(self, group, before: dict[bytes, Thing]) -> dict[bytes, bytes]:
        drafts: dict[bytes, bytearray] = {}
        done: dict[bytes, bytes] = {}
        for change, payload in group:
            if change.action != C.ACTION_PUT or change.type != C.TYPE_FILE:
                continue
            path = change.path
            if path not in drafts:
                drafts[path] = bytearray(self._base(change, before))
            draft = drafts[path]
            draft.extend(bytes(max(0, change.size - len(draft))))
            del draft[change.size :]
            at = 0
            for place, number in enumerate(change.blocks):
                start = number * change.block_size
                end = min(start + change.block_size, change.size)
                start += change.offset if place == 0 else 0
                length = min(end - start, len(payload) - at)
                draft[start : start + length] = payload[at : at + length]
                at += length
            assert at == len(payload), (path, at, len(payload))
            for number in change.zero_blocks:
                start = number * change.block_size
                length = min(change.block_size, change.size - start)
                draft[start : start + length] = bytes(length)
            if not change.more:
                done[path] = _verified(change, bytes(draft))
        return done

    def _base(self, change: pb.TreeChange, before: dict[bytes, Thing]) -> bytes:
        if change.copy_from:
            if change.copy_from not in before:
                raise Refused(f"{change.path!r} is a copy of {change.copy_from!r}, which is not there")
            return before[change.copy_from].content
        if change.path in self.partials:
            return bytes(self.partials[change.path])
        return before[change.path].content if change.path in before else b""

    def _grow(self, change: pb.TreeChange, payload: bytes) -> None:
        if change.offset == 0:
            self.partials[change.path] = bytearray()
            self.versions[change.path] = change.version
        partial = self.partials.get(change.path)
        if partial is None or change.offset > len(partial) or change.version != self.versions[change.path]:
            raise Refused(f"{change.path!r} grows at {change.offset}")
        partial[change.offset : change.offset + len(payload)] = payload

    def _delete(self, path: bytes) -> None:
        below = path + b"/"
        for gone in [p for p in self.things if p == path or p.startswith(below)]:
            del self.things[gone]
        for gone in [p for p in self.partials if p == path or p.startswith(below)]:
            del self.partials[gone]

    def _put(self, change: pb.TreeChange, content: bytes) -> None:
        parent = change.path.rpartition(b"/")[0]
        if change.path and parent and self.things.get(parent, _NOTHING).type != C.TYPE_DIRECTORY:
            raise Refused(f"{change.path!r} has no directory")
        old = self.things.get(change.path)
        if old is not None and C.TYPE_DIRECTORY in {old.type, change.type} and old.type != change.type:
            self._delete(change.path)
        self.things[change.path] = _thing(change, content)
        self.partials.pop(change.path, None)

    def told_partials(self) -> tuple[bytes, ...]:
        """As a sink says it."""
        return tuple(
            pb.Partial(path=path, version=self.versions[path], size=len(partial)).SerializeToString()
            for path, partial in self.partials.items()
            if self.versions[path]
        )

    def inventory(self, *, chunk: int = 500) -> list[bytes]:
        """As a sink says it."""
        ordered = sorted(self.things, key=lambda p: p.replace(b"/", b"\0"))
        chunks = []
        for start in range(0, len(ordered), chunk):
            inventory = pb.TreeInventory()
            for path in ordered[start : start + chunk]:
                thing = self.things[path]
                entry = inventory.entries.add(
                    action=C.ACTION_PUT, type=thing.type, path=path, mode=thing.mode, uid=thing.uid, gid=thing.gid,
                    mtime_ns=thing.mtime_ns, link_target=thing.target,
                )  # fmt: skip
                for name, value in thing.xattrs:
                    entry.xattrs.add(name=name, value=value)
                hashes = b""
                if thing.type == C.TYPE_FILE:
                    content = content_of(thing.content)
                    entry.size, entry.hash, entry.block_size = content.size, content.hash, content.block_size
                    hashes = content.block_hashes if len(content.block_hashes) > 16 else b""
                inventory.block_hashes.append(hashes)
            chunks.append(inventory.SerializeToString())
        return chunks


_NOTHING = Thing(type=0, mode=0, uid=0, gid=0, mtime_ns=0)


def _thing(change: pb.TreeChange, content: bytes) -> Thing:
    return Thing(
        type=change.type, mode=change.mode, uid=change.uid, gid=change.gid, mtime_ns=change.mtime_ns,
        xattrs=tuple((x.name, x.value) for x in change.xattrs), content=content, block_size=change.block_size,
        target=change.link_target,
    )  # fmt: skip


def _verified(change: pb.TreeChange, content: bytes) -> bytes:
    step = change.block_size
    view = memoryview(content)
    hashes = b"".join(block_hash(view[n * step : (n + 1) * step]) for n in range(block_count(len(content), step)))
    if whole_hash(hashes, len(content)) != change.hash:
        raise Refused(f"content of {change.path!r} is not what was announced")
    return content


def tree_of(root: str | os.PathLike[str], *, skip: Callable[[bytes], bool] = lambda _: False) -> dict[bytes, Thing]:
    """A real directory, as the model would hold it."""
    found: dict[bytes, Thing] = {}
    base = os.fsencode(root)

    def add(path: bytes) -> None:
        full = os.path.join(base, path) if path else base
        status = os.lstat(full)
        common = {
            "mode": stat.S_IMODE(status.st_mode), "uid": status.st_uid, "gid": status.st_gid,
            "mtime_ns": status.st_mtime_ns, "xattrs": decode_xattrs(read_xattrs(full)[0]),
        }  # fmt: skip
        if stat.S_ISDIR(status.st_mode):
            found[path] = Thing(type=C.TYPE_DIRECTORY, **common)
            for name in os.listdir(full):
                below = path + b"/" + name if path else name
                if not name.startswith(b".ha-") and not skip(below):
                    add(below)
        elif stat.S_ISREG(status.st_mode):
            with open(full, "rb") as file:
                found[path] = Thing(type=C.TYPE_FILE, content=file.read(), **common)
        elif stat.S_ISLNK(status.st_mode):
            found[path] = Thing(type=C.TYPE_SYMLINK, target=os.readlink(full), **common)

    add(b"")
    return found


def plain(things: dict[bytes, Thing]) -> dict[bytes, Thing]:
    """Without what does not count: block sizes."""
    return {path: replace(thing, block_size=0) for path, thing in things.items()}


def settings_of(root: object, **changes: object) -> TreeSettings:
    """A dataset."""
    given = {"name": "tree", "path": str(root), "priority": Priority.RECORDINGS, **changes}
    return TreeSettings(**given)  # type: ignore[arg-type]


class Pair:
    """A source and a model that follows it."""

    def __init__(self, settings: TreeSettings, catalogue: object, *, model: Model | None = None) -> None:
        self.settings = settings
        self.catalogue = str(catalogue)
        self.model = model or Model()
        self.events: list[tuple[str, str, dict[str, object]]] = []
        self.source = TreeSource(settings, catalogue_path=self.catalogue, report=self._report)
        self.session = None
        self.answer: Answer | None = None
        self.acknowledging = True
        self.unsent: list[Position] = []
        self._task: asyncio.Task[None] | None = None
        self._moved = asyncio.Event()

    def _report(self, severity: str, what: str, fields: dict[str, object]) -> None:
        self.events.append((severity, what, fields))

    async def start(self, *, epoch: int = 2) -> Pair:
        await self.source.open(Epoch(epoch))
        await self.connect()
        return self

    async def connect(self) -> None:
        await self.connect_by_hand()
        self._task = asyncio.create_task(self._follow())

    async def connect_by_hand(self) -> None:
        """The caller takes the frames."""
        self.session = await self.source.subscribe(self.model.applied)
        self.answer = self.session.answer
        self.session.partials(self.model.told_partials())
        if self.answer is Answer.COMPARE:
            await self.session.compare(_chunks(self.model.inventory()))

    async def _follow(self) -> None:
        async for frame in self.session.frames():
            if self.model.take(frame):
                if self.acknowledging:
                    self.session.acknowledge(self.model.applied)
                else:
                    self.unsent.append(self.model.applied)
                self._moved.set()

    async def disconnect(self) -> None:
        if self._task is not None:
            if not self._task.done():
                self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
            self._task = None
        if self.session is not None:
            await self.session.close()
            self.session = None
        self.model.drop()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
        """Waits until the model satisfies the condition; fails loudly where following it failed."""
        async with asyncio.timeout(timeout_s):
            while not condition():
                if self._task is not None and self._task.done():
                    self._task.result()
                self._moved.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.05):
                        await self._moved.wait()

    async def caught_up(self, timeout_s: float = 30.0) -> None:
        """The barrier."""
        async with asyncio.timeout(timeout_s):
            position = await self.source.settled()
        await self.until(lambda: self.model.applied.sequence >= position.sequence, timeout_s)

    async def stop(self) -> None:
        await self.disconnect()
        await self.source.close()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def assert_equal(self, *, skip: Callable[[bytes], bool] = lambda _: False) -> None:
        """The model is what stands in the root."""
        here, there = plain(tree_of(self.settings.path, skip=skip)), plain(self.model.things)
        assert here.keys() == there.keys(), (sorted(here.keys() - there.keys()), sorted(there.keys() - here.keys()))
        different = [path for path in here if here[path] != there[path]]
        assert not different, [(path, brief(here[path]), brief(there[path])) for path in different[:3]]


def brief(thing: Thing) -> tuple[object, ...]:
    """For a message."""
    return (thing.type, oct(thing.mode), thing.mtime_ns, thing.xattrs, len(thing.content), hash(thing.content))


async def _chunks(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


__all__ = ["Model", "Pair", "Refused", "Thing", "hash_file", "plain", "settings_of", "tree_of"]
