"""A node's streams while its role or epoch changes: no subscriber stays at a source that is closed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.catalogue.engine import EngineState
from ha_sync.config import load
from ha_sync.core.dataset import Role
from ha_sync.core.position import Epoch
from ha_sync.errors import Retryable, WrongState
from ha_sync.node import Membership, Node
from ha_sync.stream.wire import PROTOCOL
from tests.support.memory_dataset import MemorySession, MemorySource

TOML = """
[node]
state_dir = "{home}/state"
run_dir = "{home}/run"
[[dataset]]
name = "files"
kind = "tree"
path = "{home}/files"
"""


class HeldSession(MemorySession):
    """Its end waits."""

    def __init__(self, source: HeldSource, applied: Any) -> None:
        super().__init__(source, applied)
        self.held = source

    async def close(self) -> None:
        self.held.ending.set()
        await self.held.may_end.wait()


class HeldSource(MemorySource):
    """The ends of its sessions, and its own, wait until a test lets them."""

    def __init__(self) -> None:
        super().__init__()
        self.subscribed, self.ending, self.closing = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.may_end, self.may_close = asyncio.Event(), asyncio.Event()

    async def subscribe(self, applied: Any) -> MemorySession:
        self.sessions += 1
        self.subscribed.set()
        return HeldSession(self, applied)

    async def close(self) -> None:
        self.closing.set()
        await self.may_close.wait()


class HeldNode(Node):
    """Its one source is a ``HeldSource``; a new one at each change of the epoch."""

    sources: list[HeldSource]

    def _new_source(self, settings: Any) -> Any:
        del settings
        self.sources.append(HeldSource())
        return self.sources[-1]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[HeldNode]:
    (tmp_path / "sync.toml").write_text(TOML.format(home=tmp_path))
    (tmp_path / "state").mkdir()
    state = EngineState(str(tmp_path / "state/engine.db"))
    member = Membership(cluster_id="c", node_id="a", peer_id="b", founder=True)
    made = HeldNode(
        load(str(tmp_path / "sync.toml")),
        state=state,
        membership=lambda: member,
        dial=_no_dial,
        report=lambda _severity, _what, _fields: None,
    )
    made.sources = []
    await made.set_role(Role.ACTIVE, Epoch(2))
    await _until(lambda: made.datasets()[0].report.reason == "no standby is connected")
    yield made
    for source in made.sources:
        source.may_end.set()
        source.may_close.set()
    await made.close()
    state.close()


@pytest.mark.req("R26")
@pytest.mark.parametrize("fails", [False, True])
async def test_a_promotion_is_done_when_every_capture_has_begun_or_failed(
    node: HeldNode, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    may_open = asyncio.Event()

    async def opens(_source: HeldSource, _epoch: Epoch) -> None:
        await may_open.wait()
        if fails:
            raise OSError("no such disk")

    monkeypatch.setattr(HeldSource, "open", opens)
    node.sources[0].may_close.set()
    changing = asyncio.create_task(node.set_role(Role.ACTIVE, Epoch(4)))
    await _until(lambda: len(node.sources) == 2)
    assert not changing.done(), "the PBX would be started before its databases are captured"
    may_open.set()
    async with asyncio.timeout(20):
        await changing


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0)


def _no_dial(_name: Any) -> Any:
    raise AssertionError("the Active dials nobody")


async def _nothing_more() -> AsyncIterator[pb.SubscriberMessage]:
    await asyncio.Event().wait()
    yield pb.SubscriberMessage()


def subscriber(node: Node) -> asyncio.Task[None]:
    async def write(_data: bytes) -> None:
        return

    subscribe = pb.Subscribe(protocol=PROTOCOL, cluster_id="c", node_id="b", dataset="files", kind="tree")
    return asyncio.create_task(node.publish(subscribe, _nothing_more(), write))


@pytest.mark.req("R22")
async def test_who_comes_while_the_sources_are_being_closed_is_told_to_come_again(node: HeldNode) -> None:
    source = node.sources[0]
    async with asyncio.timeout(20):
        changing = asyncio.create_task(node.set_role(Role.ACTIVE, Epoch(4)))
        await source.closing.wait()
        with pytest.raises(Retryable):
            await subscriber(node)
        source.may_close.set()
        await changing
    assert source.sessions == 0


@pytest.mark.req("R22")
async def test_who_waited_for_an_older_stream_to_end_gets_the_source_of_the_new_epoch_or_none(node: HeldNode) -> None:
    source = node.sources[0]
    async with asyncio.timeout(20):
        older = subscriber(node)
        await source.subscribed.wait()
        newer = subscriber(node)
        await source.ending.wait()  # the newer one waits for the older one's end
        changing = asyncio.create_task(node.set_role(Role.ACTIVE, Epoch(4)))
        await _until(lambda: node.promised == 4)
        source.may_close.set()
        source.may_end.set()
        await changing
        with pytest.raises(WrongState):
            await older
        await _until(lambda: newer.done() or any(one.sessions for one in node.sources[1:]) or source.sessions > 1)
    assert source.sessions == 1
    newer.cancel()
    for one in node.sources:
        one.may_end.set()
    with contextlib.suppress(Retryable, WrongState, asyncio.CancelledError):
        await newer
