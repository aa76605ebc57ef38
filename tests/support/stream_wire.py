"""A wire in memory between a subscriber and a publisher: bounded, ordered, and it can be cut."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.config import StreamSettings
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.core.position import Epoch
from ha_sync.errors import PeerUnreachable
from ha_sync.stream.full_sync import FullSyncWatch, Nobody
from ha_sync.stream.gate import Gate
from ha_sync.stream.publisher import Outlet, Publisher
from ha_sync.stream.subscriber import Call, Subscriber, Subscription
from tests.support.memory_dataset import MemorySink, MemorySource

BUFFER = 4  # frames the wire itself holds, as HTTP/2 flow control would


@dataclass
class MemoryEpochs:
    promised: Epoch = field(default_factory=lambda: Epoch(0))
    served: Epoch = field(default_factory=lambda: Epoch(0))

    async def promise(self, epoch: Epoch) -> None:
        assert epoch >= self.promised
        self.promised = epoch


class Wire:
    """Dials run a new publisher; ``cut`` ends the present connection as a pulled cable would."""

    def __init__(self, source: MemorySource, *, settings: StreamSettings | None = None) -> None:
        self.source = source
        self.executor = ThreadPoolExecutor(1)
        self.outlet = Outlet(
            gate=Gate(1 << 20, bulk_budget=1 << 19), executor=self.executor, settings=settings or StreamSettings()
        )
        self.connections = 0
        self.better = asyncio.Event()  # another path waits; a stream that leaves takes it
        self.subscribes: list[pb.Subscribe] = []
        self.serving: asyncio.Task[None] | None = None
        self.up = True
        self.full_syncs: FullSyncWatch = Nobody()
        self.booted = {DatasetName("memory")}

    @contextlib.asynccontextmanager
    async def dial(self) -> AsyncIterator[Call]:
        if not self.up:
            raise PeerUnreachable("cannot reach", subject="the wire", reason="it is cut")
        self.connections += 1
        ends = self.ends = _Ends(self.better)
        self.serving = asyncio.create_task(self._serve(ends))
        self.serving.add_done_callback(lambda _task: ends.closed.set())
        try:
            yield ends
        finally:
            self.serving.cancel()
            await asyncio.gather(self.serving, return_exceptions=True)

    async def _serve(self, ends: _Ends) -> None:
        first = pb.SubscriberMessage.FromString(await ends.up.get())
        self.subscribes.append(first.subscribe)
        publisher = Publisher(
            self.source,
            priority=Priority.CDR,
            epoch=self.source.epoch,
            outlet=self.outlet,
            write=ends.down.put,
            acknowledged=lambda: None,
            full_syncs=self.full_syncs,
        )
        await publisher.serve(first.subscribe, ends.messages())

    def cut(self) -> None:
        """What is on the wire is lost."""
        if self.serving is not None:
            self.ends.closed.set()
            self.serving.cancel()

    def subscriber(self, sink: MemorySink, epochs: MemoryEpochs) -> Subscriber:
        subscription = Subscription(dataset=DatasetName("memory"), kind="sqlite", cluster_id="c", node_id="n")
        return Subscriber(sink, subscription, dial=self.dial, epochs=epochs, executor=self.executor, booted=self.booted)

    @contextlib.asynccontextmanager
    async def feeding(self, sink: MemorySink, epochs: MemoryEpochs | None = None) -> AsyncIterator[Subscriber]:
        subscriber = self.subscriber(sink, epochs or MemoryEpochs())
        running = asyncio.create_task(subscriber.run())
        try:
            yield subscriber
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            self.executor.shutdown()


class _Ends:
    address = "memory:1"

    def __init__(self, better: asyncio.Event) -> None:
        self.better = better
        self.asked = 0  # how often, whether it is quiet
        self.up: asyncio.Queue[bytes] = asyncio.Queue(BUFFER)
        self.down: asyncio.Queue[bytes] = asyncio.Queue(BUFFER)
        self.closed = asyncio.Event()

    async def read(self) -> bytes | None:
        getting = asyncio.ensure_future(self.down.get())
        closing = asyncio.ensure_future(self.closed.wait())
        try:
            await asyncio.wait({getting, closing}, return_when=asyncio.FIRST_COMPLETED)
            if getting.done() and not self.closed.is_set():
                return getting.result()
            raise PeerUnreachable("lost the active", reason="the wire was cut")
        finally:
            getting.cancel()
            closing.cancel()

    async def write(self, data: bytes) -> None:
        if self.closed.is_set():
            raise PeerUnreachable("lost the active", reason="the wire was cut")
        await self.up.put(data)

    async def time_to_leave(self, quiet: Callable[[], bool]) -> str:
        await self.better.wait()
        while not quiet():
            self.asked += 1
            await asyncio.sleep(0)
        self.better.clear()
        return "a better path"

    async def messages(self) -> AsyncIterator[pb.SubscriberMessage]:
        while True:
            yield pb.SubscriberMessage.FromString(await self.up.get())
