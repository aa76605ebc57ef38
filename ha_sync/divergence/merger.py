"""Sees to it that this node's archives are merged: by themselves as soon as that is possible, or when a person asks.

A Standby sends an archive to the Active as soon as that answers, be its own copy in step or not: what is missing there
is decided there, and what comes back by the stream need not be sent twice. An Active merges its own archives here.
*Merged* is noted durably only after the durable answer; what is put off is tried again after RETRY_S, and its reason is
shown meanwhile. Runs in the event loop; seconds are monotonic.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ha_sync.config import DatasetSettings, Merge, Settings
from ha_sync.core.dataset import Report, Role
from ha_sync.divergence.archive import Archive, Archives, Standing, State
from ha_sync.divergence.merging import Local, Merging
from ha_sync.divergence.outcome import Outcome
from ha_sync.errors import Fenced, HaSyncError, OperatorNeeded, PeerUnreachable, Refused, WrongState
from ha_sync.logs.runs import Kind, Result, RunId, RunLog, Tally, Trigger

log = logging.getLogger(__name__)

LOOK_S = 1.0
RETRY_S = 30.0
PROMOTED_S = 5.0
"""So long the phones wait at a promotion for what could not be merged while the PBX had it open."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What the merger needs to know of the node, and its way to the other one."""

    role: Callable[[], Role | None]
    send: Callable[[Archive, bool, Callable[[], None]], Awaitable[Outcome]]  # to the Active; see ``_logged``
    peer: Callable[[], str]  # for the log
    cluster: Callable[[], str]  # the pair of this node; empty: none


class Merger:
    """See the module."""

    def __init__(
        self,
        settings: Settings,
        archives: Archives,
        merging: Merging,
        *,
        around: Around,
        runs: RunLog,
        report: Report,
    ) -> None:
        self._settings = settings
        self._datasets: dict[str, DatasetSettings] = {item.name: item for item in settings.datasets}
        self.archives = archives
        self.merging = merging
        self._around = around
        self._runs = runs
        self._report = report
        self._waiting: dict[str, str] = {}  # by the archive's folder
        self._again_at: dict[str, float] = {}
        self._merges = asyncio.Lock()
        self.notices: tuple[str, ...] = ()  # for the status

    # ---- by itself

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._look()
            except HaSyncError as error:
                log.warning("divergences cannot be looked at", extra={"reason": error.sentence()})
            except OSError as error:
                log.warning("divergences cannot be looked at", extra={"reason": str(error)})
            await asyncio.sleep(LOOK_S)

    async def _look(self) -> None:
        archives = await self._noticed()
        if self._settings.divergence.merge is Merge.MANUAL:
            return
        for archive in archives:
            if archive.to_merge and time.monotonic() >= self._again_at.get(archive.folder, 0.0):
                with contextlib.suppress(HaSyncError):  # kept as the reason why it waits
                    await self.merge(archive, trigger=Trigger.REJOIN)
                await self._noticed()

    async def _noticed(self) -> list[Archive]:
        """All archives; the status tells of those with which somebody has still something to do."""
        archives = await asyncio.to_thread(self.archives.listed)
        self.notices = tuple(self.notice(item) for item in archives if item.open)
        return archives

    async def recover(self) -> None:
        """At the start of the engine, before anything is merged: what a crash left of a merge goes."""
        freed = await asyncio.to_thread(self.merging.recover, self._settings.datasets)
        if freed:
            self._report("warning", "a mailbox that a merge had locked is free again", {"folder": freed})

    async def promoted(self) -> None:
        """This node is Active and its PBX does not run yet: what waited for that is merged, for a bounded time."""
        if self._settings.divergence.merge is Merge.MANUAL:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PROMOTED_S):
                for archive in await asyncio.to_thread(self.archives.listed):
                    if archive.to_merge:
                        with contextlib.suppress(HaSyncError):
                            await self.merge(archive, trigger=Trigger.REJOIN)

    # ---- one archive

    async def merge(self, archive: Archive, *, trigger: Trigger, force: bool = False) -> Archive:
        """Merges it, wherever the Active is. Raises HaSyncError with the reason why it waits or cannot be done."""
        async with self._merges:
            try:
                self._require_mergeable(archive)
                outcome = await self._logged(archive, trigger=trigger, force=force)
            except HaSyncError as error:
                self._waiting[archive.folder] = error.sentence()
                soon = isinstance(error, (PeerUnreachable, Fenced))
                self._again_at[archive.folder] = time.monotonic() + (LOOK_S if soon else RETRY_S)
                raise
            self._waiting.pop(archive.folder, None)
            return await self._noted(archive, outcome)

    def _require_mergeable(self, archive: Archive) -> None:
        about = archive.about
        subject = f"{about.dataset} of {about.id}"
        if not about.mergeable:
            raise Refused(
                "will not merge", subject=subject, reason="configuration is left to a person",
                hint=f"see `ha-sync divergence show {about.id}`, enter what is right on the Active, then discard it",
            )  # fmt: skip
        if about.trouble:
            raise OperatorNeeded("cannot merge", subject=subject, reason=about.trouble)
        if about.cluster and about.cluster != self._around.cluster():
            raise Refused("will not merge", subject=subject, reason="it is of another pair than this node belongs to")
        if about.dataset not in self._datasets:
            raise OperatorNeeded("cannot merge", subject=subject, reason="sync.toml has no such dataset any more")
        if self._around.role() is None:
            raise WrongState("puts off merging", subject=subject, reason="this node has no role yet")

    async def _logged(self, archive: Archive, *, trigger: Trigger, force: bool) -> Outcome:
        """A run of the backup log, which begins when the Active has said that it may be: not for every try."""
        about = archive.about
        settings = self._datasets[about.dataset]
        local = self._around.role() is Role.ACTIVE
        facts = {"dataset": about.dataset, "archive": about.id}
        run: list[RunId] = []

        def admitted() -> None:
            peer = "" if local else self._around.peer()
            run.append(self._runs.begin(Kind.MERGE, trigger, now=time.monotonic(), peer=peer, facts=facts))

        def end(result: Result, *, tally: Tally | None = None, reason: str = "", error: str = "") -> None:
            for each in run:
                self._runs.end(each, result, now=time.monotonic(), tally=tally, reason=reason, error=error)

        try:
            if local:
                await self.merging.require(settings, force=force)
                admitted()
                outcome = await self.merging.merge(settings, Local(archive), force=force)
            else:
                outcome = await self._around.send(archive, force, admitted)
        except HaSyncError as error:
            end(Result.FAILED, error=error.sentence())
            raise
        except BaseException:
            end(Result.CANCELLED)
            raise
        tally = Tally(
            objects=outcome.added + outcome.present + outcome.left,
            differing=outcome.added + outcome.left,
            repaired=outcome.added,
        )
        end(Result.PARTIAL if outcome.left else Result.DONE, tally=tally, reason="; ".join(outcome.reasons[:3]))
        return outcome

    async def _noted(self, archive: Archive, outcome: Outcome) -> Archive:
        about = archive.about
        left = outcome.left + about.left_out_count
        standing = Standing(
            state=State.PARTIAL if left else State.MERGED,
            added=archive.standing.added + outcome.added,
            present=outcome.present,
            left=outcome.left,
            reasons=tuple(outcome.reasons),
        )
        noted = await asyncio.to_thread(self.archives.note, archive, standing)
        fields: dict[str, object] = {
            "dataset": about.dataset, "id": about.id, "added": outcome.added, "present": outcome.present,
            "left": outcome.left,
        }  # fmt: skip
        self._report("warning" if left else "info", "divergence merged", fields)
        return noted

    async def discard(self, archive: Archive) -> None:
        """Removes it for good."""
        async with self._merges:
            await asyncio.to_thread(self.archives.remove, archive)
            self._waiting.pop(archive.folder, None)
        about = archive.about
        fields: dict[str, object] = {"dataset": about.dataset, "id": about.id, "state": archive.standing.state.value}
        self._report("warning", "divergence discarded", fields)

    # ---- telling

    def waiting(self, archive: Archive) -> str:
        """Why it is not merged yet; empty where it is, or where nobody would merge it."""
        if not archive.to_merge:
            return ""
        if self._settings.divergence.merge is Merge.MANUAL:
            return f"`ha-sync divergence merge {archive.about.id}`"
        return self._waiting.get(archive.folder, "it is about to be merged")

    def notice(self, archive: Archive) -> str:
        """For the status, until it is merged or discarded."""
        about = archive.about
        what = f"divergence {about.id} of {about.dataset}"
        if archive.to_merge:
            return f"{what}: {self.waiting(archive)}"
        return f"{what} is left to you: `ha-sync divergence show {about.id} --dataset {about.dataset}`"
