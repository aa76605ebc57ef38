"""What the engine tells its agent of itself, so that one place decides which alarms go out (the agent's).

*Troubles* stand: they are said in each report until they end. What mends itself in moments, as a stream that moves, is
said only when it has stood for ``PATIENCE_S``. *Notices* happened: the newest warnings and errors of the event log,
each once in a call, and again in the next one, because nobody knows what became of the last; their serial tells who has
them already. Overflow: the newest ``NOTICES_MAX``; the event log has all. Seconds are monotonic.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable

from ha_proto.agent.v1 import agent_pb2 as pb
from ha_sync.core.dataset import DatasetState
from ha_sync.node import DatasetStatus

NOTICES_MAX = 64
TROUBLES_MAX = 64
FIELD_MAX = 240
LOOK_EVERY_S = 2.0
PATIENCE_S = 10.0

BROKEN = {
    DatasetState.HALTED: ("error", "dataset halted"),
    DatasetState.FAILED: ("error", "dataset failed"),
    DatasetState.DEGRADED: ("warning", "dataset degraded"),
}

Trouble = tuple[str, str, str, dict[str, str]]
"""Severity, what, subject, fields."""


class Tidings:
    """Of one engine. ``note`` from any thread, the rest in the loop."""

    def __init__(
        self, look: Callable[[], Iterable[Trouble]] = tuple, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """``look`` tells what stands now; it is asked every ``LOOK_EVERY_S`` at most, and does no I/O."""
        self.run = uuid.uuid4().hex
        self._look = look
        self._clock = clock
        self._looked = float("-inf")
        self._since: dict[tuple[str, str], float] = {}
        self._troubles: list[pb.Trouble] = []
        self._notices: deque[pb.Notice] = deque(maxlen=NOTICES_MAX)
        self._serial = 0
        self._lock = threading.Lock()

    def note(self, severity: str, what: str, fields: dict[str, object]) -> None:
        """An event; those that are mere information are none of the agent's business."""
        if severity == "info":
            return
        told = {str(key): _told(value) for key, value in fields.items()}
        with self._lock:
            self._serial += 1
            self._notices.append(pb.Notice(serial=self._serial, severity=severity, what=what, fields=told))

    def after(self, serial: int) -> list[pb.Notice]:
        """What was noted after ``serial``."""
        with self._lock:
            return [notice for notice in self._notices if notice.serial > serial]

    def troubles(self) -> list[pb.Trouble]:
        """What stands."""
        now = self._clock()
        if now - self._looked >= LOOK_EVERY_S:
            self._looked = now
            found = list(self._look())[:TROUBLES_MAX]
            self._since = {(what, subject): self._since.get((what, subject), now) for _, what, subject, _ in found}
            self._troubles = [
                pb.Trouble(severity=severity, what=what, subject=subject, fields=fields)
                for severity, what, subject, fields in found
                if severity == "error" or now - self._since[what, subject] >= PATIENCE_S
            ]
        return self._troubles


def troubles_of(
    datasets: Iterable[DatasetStatus],
    *,
    unreached: str,
    backup: tuple[str, str],
    divergences: tuple[str, ...],
) -> Iterable[Trouble]:
    """``unreached``: why the other node's engine is not reached, where it should be; ``backup``: result, reason."""
    for item in datasets:
        state = item.report.state
        if state in BROKEN:
            severity, what = BROKEN[state]
            yield severity, what, item.settings.name, {"reason": _told(item.report.reason)}
    if unreached:
        yield "warning", "the other node's engine is not reached", "", {"reason": _told(unreached)}
    result, reason = backup
    if result in {"failed", "partial"}:
        yield "error", "the last full backup failed", "", {"result": result, "reason": _told(reason)}
    if divergences:
        fields = {"count": str(len(divergences)), "first": _told(divergences[0])}
        yield "warning", "a divergence waits", "", fields


def _told(value: object) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    # A file's name may be no UTF-8, which a message does not take.
    return str(value)[:FIELD_MAX].encode(errors="backslashreplace").decode()
