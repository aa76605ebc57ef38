"""One dataset's full sync as its publisher sees it: from the answer `compare` until all that differed is acknowledged.

It is complete when the first group that leaves the Standby consistent is durable there. A dataset that the Active is
known to have nothing of yet begins its full sync with its first frame. Bytes as they travel: compressed, with headers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.core.dataset import DatasetName
from ha_sync.core.frame import Frame
from ha_sync.core.position import Position


class FullSyncWatch(Protocol):
    """Is told of every full sync of this Active; each that began ends once."""

    def began(self, dataset: DatasetName, *, peer: str, booted: bool, absent: Callable[[], bool]) -> None:
        """``booted``: it is the first stream since the engine of ``peer`` began.

        ``absent`` says whether there is, as was found meanwhile, nothing of it on the Active: this may go on for ever.
        """

    def ended(self, dataset: DatasetName, *, complete: bool, sent_bytes: int, inventory_bytes: int) -> None:
        """Not complete: the stream ended before; it will begin again."""


class Nobody:
    """Watches nothing."""

    def began(self, dataset: DatasetName, *, peer: str, booted: bool, absent: Callable[[], bool]) -> None:
        """See ``FullSyncWatch``."""

    def ended(self, dataset: DatasetName, *, complete: bool, sent_bytes: int, inventory_bytes: int) -> None:
        """See ``FullSyncWatch``."""


class FullSync:
    """One, of one stream."""

    def __init__(self, watch: FullSyncWatch, subscribe: pb.Subscribe, *, absent: Callable[[], bool]) -> None:
        self._watch = watch
        self._dataset = DatasetName(subscribe.dataset)
        self._peer = subscribe.node_id
        self._booted = subscribe.booted
        self._absent = absent
        self._began = False
        self._over = False
        self._target: Position | None = None
        self._sent_bytes = 0
        self._inventory_bytes = 0
        if not absent():
            self._begin()

    def inventory(self, size: int) -> None:
        """A part of what the Standby has came."""
        self._inventory_bytes += size

    def sent(self, frame: Frame, size: int) -> None:
        """A frame goes out as ``size`` bytes."""
        if self._over or self._target is not None:
            return
        self._begin()
        self._sent_bytes += size
        if frame.consistent and frame.group_end:
            self._target = frame.position

    def acknowledged(self, durable: Position) -> None:
        """So much is durable on the Standby."""
        target = self._target
        if target is not None and durable.resumes(target) and durable.sequence >= target.sequence:
            self._end(complete=True)

    def close(self) -> None:
        """The stream ended."""
        self._end(complete=False)

    def _begin(self) -> None:
        if not self._began:
            self._began = True
            self._watch.began(self._dataset, peer=self._peer, booted=self._booted, absent=self._absent)

    def _end(self, *, complete: bool) -> None:
        if self._began and not self._over:
            self._watch.ended(
                self._dataset,
                complete=complete,
                sent_bytes=self._sent_bytes,
                inventory_bytes=self._inventory_bytes,
            )
        self._over = True
