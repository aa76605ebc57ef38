"""The node as a storage's sync and its runner see it. Runs in the engine's event loop; sizes in bytes."""

from __future__ import annotations

from collections.abc import Callable

from ha_sync.capture.tree import TreeSource
from ha_sync.capture.tree.terms import Terms
from ha_sync.config import TreeSettings
from ha_sync.core.dataset import DatasetName, Role
from ha_sync.core.examine import Examiner
from ha_sync.core.position import Epoch
from ha_sync.errors import Retryable
from ha_sync.node import Node

BARRIER_S = 120.0


class Stream:
    """A storage's stream, as its sync sees it."""

    def __init__(self, node: Node, name: DatasetName) -> None:
        self._node = node
        self._name = name
        self._before = 0  # bytes of streams that were closed since
        self._last = 0

    @property
    def _source(self) -> TreeSource:
        source = self._node.ends(self._name)[1]
        if not isinstance(source, TreeSource):
            raise Retryable("cannot synchronise", subject=self._name, reason="its capture is not open")
        return source

    @property
    def _terms(self) -> Terms:
        terms = self._source.terms
        if terms is None:
            raise Retryable("cannot synchronise", subject=self._name, reason="its capture is not open")
        return terms

    @property
    def away(self) -> str:
        """Why it is not there."""
        return self._terms.away

    @property
    def admitted(self) -> bool:
        """Whether it was asked for."""
        return self._terms.admitted

    async def admit(self, *, admitted: bool) -> None:
        """It is, or no more."""
        await self._source.admit(admitted=admitted)

    def hold(self, *, held: bool) -> None:
        """Nothing is sent meanwhile."""
        source = self._node.ends(self._name)[1]
        terms = source.terms if isinstance(source, TreeSource) else None
        if terms is not None and terms.held != held:
            terms.held = held
            self._source.rouse()

    @property
    def in_full_sync(self) -> bool:
        """Whether the Standby lacks some of it."""
        return self._source.worker.journal.synced_at is None

    @property
    def connected(self) -> bool:
        """Whether the Standby takes it."""
        return any(item.connected for item in self._node.datasets() if item.settings.name == self._name)

    @property
    def backlog(self) -> int:
        """What the Standby lacks."""
        return self._source.report().backlog

    @property
    def objects(self) -> int:
        """About how many there are."""
        return self._source.expected()

    @property
    def sent_bytes(self) -> int:
        """Since the engine's start."""
        source = self._node.ends(self._name)[1]
        now = source.sent_bytes if isinstance(source, TreeSource) else 0
        if now < self._last:
            self._before += self._last
        self._last = now
        return self._before + now

    async def replicated(self) -> None:
        """The barrier."""
        await self._node.wait_replicated((self._name,), timeout_s=None)

    def book(self) -> TreeSource:
        """For an examination."""
        return self._source


class Host:
    """The node, as one storage's runner sees it."""

    def __init__(self, node: Node, settings: TreeSettings, sync: Callable[[], Examiner]) -> None:
        self._node = node
        self._settings = settings
        self._sync = sync

    @property
    def role(self) -> Role | None:
        """Now."""
        return self._node.role

    @property
    def epoch(self) -> Epoch:
        """Of that role."""
        return self._node.epoch

    def examined(self) -> dict[DatasetName, int]:
        """The storage alone."""
        return {self._settings.name: 0}

    def examiner(self, name: DatasetName) -> Examiner:
        """Its sync."""
        assert name == self._settings.name, name
        return self._sync()

    async def replicated(self, name: DatasetName) -> None:
        """The barrier."""
        missing = await self._node.wait_replicated((name,), timeout_s=BARRIER_S)
        if missing:
            raise Retryable("cannot compare", subject=name, reason="; ".join(missing))
