"""A model of the replication engine: who has which data, how far, and whether it may serve."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ha_agent.arbiter.actions import EngineRole
from ha_agent.arbiter.state import Engine
from ha_agent.arbiter.values import Digest, Epoch

BEHIND_MAX = 60


@dataclass(slots=True)
class EngineModel:
    """One node's engine. ``data``, ``progress`` and ``sound`` are on disk."""

    rng: random.Random
    data: int = 0
    progress: int = 0
    sound: bool = True
    role: EngineRole = EngineRole.STANDBY
    epoch: int = 0  # the newest it was told; lower ones are refused
    up: bool = True
    attached_at: float = 0.0
    quiesced: bool = False
    slow: bool = False
    backup: bool = False
    sync_until: float | None = None
    current: bool = True
    reported: Engine | None = None
    reported_at: float = -1e9

    def run(self, now: float, services: bool, peer: EngineModel | None) -> None:
        """A moment of work; ``peer`` is the other engine if it can be reached."""
        if not self.up:
            return
        if self.role is EngineRole.ACTIVE:
            self.data = max(self.data, self.epoch)
            self.current = True
            if services and not self.quiesced:
                self.progress += self.rng.randrange(4)
            return
        if peer is None or not peer.up or peer.role is not EngineRole.ACTIVE or peer.epoch < self.epoch:
            self.sync_until = None
            self.current = False  # no Active, no stream
            return
        if self.data != peer.data:
            self._sync(now, peer)
            return
        step = 0 if self.slow else 1000
        self.progress = min(self.progress + step, peer.progress) if self.progress <= peer.progress else peer.progress
        self.current = peer.progress - self.progress < BEHIND_MAX

    def _sync(self, now: float, peer: EngineModel) -> None:
        if self.sync_until is None:
            self.sync_until = now + self.rng.uniform(0.2, 4.0)
            self.current = False
            if self.rng.random() < 0.3:
                self.sound = False  # marked inconsistent until it is through
        if now >= self.sync_until:
            self.data, self.progress, self.sound = peer.data, peer.progress, peer.sound
            self.current = True
            self.sync_until = None

    def digest(self) -> Digest:
        """Equal data, equal digest."""
        return Digest(f"{self.data}:{self.progress}")

    def report(self) -> Engine:
        """What the agent is told."""
        return Engine(
            data=Epoch(self.data),
            sound=self.sound,
            current=self.current,
            progress=self.progress,
            digest=self.digest(),
            backup=self.backup,
        )
