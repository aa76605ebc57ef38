"""Writes the full syncs of this Active into the backup log: those of several datasets that overlap are one run.

A run begins with the first dataset whose stream begins with a compare, and ends when none has been comparing for
``settle_s``: streams of one Standby come one after another, and a stream that breaks comes again within a second. Its
end is the moment when the last one was done. Datasets of which the Active has nothing yet keep no run open. *done*: all
are complete; *partial*: some are; *failed*: none is. Its trigger is *restore* where this node has just restored a
package, else *boot* where the Standby's engine had just begun, else *rejoin*. In the engine's event loop only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from ha_sync.core.dataset import DatasetName
from ha_sync.logs.runs import Kind, Result, RunId, RunLog, Tally, Trigger

SETTLE_S: Final = 3.0


@dataclass(slots=True, kw_only=True)
class _Run:
    id: RunId
    last_end: float  # monotonic
    comparing: dict[DatasetName, Callable[[], bool]] = field(default_factory=dict)  # and whether it is absent
    complete: set[DatasetName] = field(default_factory=set)
    broken: set[DatasetName] = field(default_factory=set)
    sent_bytes: int = 0
    inventory_bytes: int = 0
    look: asyncio.TimerHandle | None = None  # whether it has settled


class FullSyncs:
    """See the module; a ``stream.full_sync.FullSyncWatch``."""

    def __init__(
        self, log: RunLog, *, settle_s: float = SETTLE_S, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._log = log
        self._settle_s = settle_s
        self._monotonic = monotonic
        self._run: _Run | None = None
        self._restored = False

    def restored(self) -> None:
        """A package was restored: the next full sync follows from that."""
        self._restored = True

    def began(self, dataset: DatasetName, *, peer: str, booted: bool, absent: Callable[[], bool]) -> None:
        """A dataset's compare has begun."""
        now = self._monotonic()
        if self._run is not None and self._restored:
            self._cut_short(Result.CANCELLED, "a package was restored")
        run = self._run
        if run is None:
            trigger = Trigger.RESTORE if self._restored else Trigger.BOOT if booted else Trigger.REJOIN
            self._restored = False
            run = self._run = _Run(id=self._log.begin(Kind.FULL_SYNC, trigger, now=now, peer=peer), last_end=now)
        run.comparing[dataset] = absent
        self._look_later(run)

    def ended(self, dataset: DatasetName, *, complete: bool, sent_bytes: int, inventory_bytes: int) -> None:
        """It is complete, or its stream ended before."""
        run = self._run
        if run is None or dataset not in run.comparing:  # of a run that a restore has ended
            return
        del run.comparing[dataset]
        run.last_end = self._monotonic()
        run.sent_bytes += sent_bytes
        run.inventory_bytes += inventory_bytes
        (run.complete if complete else run.broken).add(dataset)
        (run.broken if complete else run.complete).discard(dataset)
        self._look_later(run)

    def close(self) -> None:
        """The engine stops: after the streams, before the log."""
        self._cut_short(Result.INTERRUPTED, "the engine was stopped")

    def _cut_short(self, result: Result, error: str) -> None:
        run = self._run
        if run is not None and (run.comparing or run.broken):
            self._end(result, error)
        elif run is not None:
            self._settled()

    def _look_later(self, run: _Run) -> None:
        if run.look is not None:
            run.look.cancel()
        run.look = asyncio.get_running_loop().call_later(self._settle_s, self._look)

    def _look(self) -> None:
        run = self._run
        assert run is not None
        if all(absent() for absent in run.comparing.values()):
            run.comparing.clear()
            self._settled()
        else:
            self._look_later(run)

    def _settled(self) -> None:
        run = self._run
        assert run is not None
        if not run.broken:
            self._end(Result.DONE, "")
            return
        result = Result.PARTIAL if run.complete else Result.FAILED
        self._end(result, f"the stream ended before all was on the Standby: {', '.join(sorted(run.broken))}")

    def _end(self, result: Result, error: str) -> None:
        run, self._run = self._run, None
        assert run is not None
        if run.look is not None:
            run.look.cancel()
        datasets = run.complete | run.broken | set(run.comparing)
        self._log.end(
            run.id,
            result,
            now=self._monotonic() if run.comparing else run.last_end,
            tally=Tally(bytes_sent=run.sent_bytes),
            error=error,
            facts={"datasets": ", ".join(sorted(datasets)), "inventory_bytes": run.inventory_bytes},
        )
