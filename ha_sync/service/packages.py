"""Export, check and restore of packages, as the control API offers them (R24).

One at a time. A restore goes in this order, and each step is undone by what comes after it in reverse:

1. the package is checked whole, and its content staged beside the data (a process of its own);
2. the services are stopped: by the agent, or, where the role is given by hand, somebody has stopped them before;
3. the captures are closed; nobody may have the data open any more;
4. the names are changed (``swap``);
5. a higher epoch is promised, durably; then the restore is committed. Before that moment whatever happens, also the end
   of the call, brings back the data of before; from then on nothing stops it;
6. the epoch is raised, every capture begins a new incarnation, the services start, the Standby compares;
7. the old data is removed.

One event loop; durations from the monotonic clock.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import os
import shutil
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from typing import Any, Final, TypeVar

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.apply.pages.ledger import Ledger
from ha_sync.backup.package.occupants import occupants
from ha_sync.backup.package.plan import DatasetPlan, plan_of, plans_out
from ha_sync.backup.package.swap import Swap, recover, sweep
from ha_sync.backup.package.work import Work
from ha_sync.capture.tree.guard import RESTORED
from ha_sync.config import DatasetSettings, SqliteSettings
from ha_sync.core.dataset import DatasetName, Report, Role
from ha_sync.core.examine import Fault, Finding, Side
from ha_sync.core.position import Epoch
from ha_sync.errors import ConfigFault, HaSyncError, Refused, WrongState
from ha_sync.logs.runs import Kind, Result, RunId, RunLog, Tally, Trigger
from ha_sync.node import Membership, Node
from ha_sync.service.attach import AgentLink
from ha_sync.service.package_told import told_of

TICK_S: Final = 0.25
RAISE_TOLD_S: Final = 30.0
SPOOL: Final = "spool"

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageParts:
    """What a package needs of the engine."""

    node: Node
    agent: AgentLink
    log: RunLog
    report: Report
    membership: Callable[[], Membership | None]
    by_hand: Callable[[], bool]  # the role is given by hand, not by an agent
    restored: Callable[[], None]  # the full sync that comes next follows from a restore


@dataclass(slots=True, kw_only=True)
class _Progress:
    phase: str = "verifying"
    done_bytes: int = 0
    expected_bytes: int = 0
    package: pb.PackageTold | None = None
    restored: pb.PackageRestored | None = None

    def told(self, what: str, value: Any) -> None:
        if what == "expect":
            self.expected_bytes = int(value["content_bytes"])
        elif what == "done":
            self.done_bytes = int(value)

    def message(self) -> pb.PackageProgress:
        return pb.PackageProgress(
            phase=self.phase,
            done_bytes=self.done_bytes,
            expected_bytes=self.expected_bytes,
            package=self.package,
            restored=self.restored,
        )


@dataclass(slots=True, kw_only=True)
class _Restored:
    """A restore that is past its commit."""

    run: RunId
    file: str
    swap: Swap
    progress: _Progress
    result: dict[str, Any] = field(default_factory=dict)


class Packages:
    """One per engine."""

    def __init__(self, parts: PackageParts) -> None:
        self._parts = parts
        self._state_dir = parts.node.settings.node.state_dir
        self._spool = os.path.join(self._state_dir, SPOOL)
        self._busy = ""
        self._restoring: asyncio.Task[None] | None = None
        self._finishing: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._interrupted = ""
        parts.agent.restoring.on_interrupt = self._interrupt

    async def recover(self) -> None:
        """Before any data is looked at: what a crash left of a restore is finished or undone. Raises OperatorNeeded."""
        outcome = await asyncio.to_thread(recover, self._state_dir)
        if outcome:
            self._parts.report("warning", "a restore was cut off by the end of the engine", {"outcome": outcome})
        await asyncio.to_thread(shutil.rmtree, self._spool, ignore_errors=True)
        self._begin_sweep()

    async def close(self) -> None:
        """Ends what runs: a restore is undone, or finished at the next start."""
        tasks = (self._restoring, self._finishing, self._sweeping)
        running = [task for task in tasks if task is not None and not task.done()]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    # ---- export

    async def export(self, request: pb.ExportPackageRequest) -> AsyncGenerator[pb.ExportPackageResponse, None]:
        """What there is, the bytes, and what was packed."""
        node, log = self._parts.node, self._parts.log
        self._require_exportable(allow_standby=request.allow_standby)
        with self._occupied("an export", alone=False):
            plans = self._plans()
            now = time.monotonic()
            facts = {"datasets": ", ".join(plan.name for plan in plans)}
            run = log.begin(Kind.EXPORT, Trigger.MANUAL, now=now, facts=facts)
            end = partial(log.end, run)
            result: dict[str, Any] = {}
            try:
                async with contextlib.aclosing(self._packed(plans, result)) as responses:
                    async for response in responses:
                        yield response
            except HaSyncError as error:
                end(Result.FAILED, now=time.monotonic(), error=error.sentence())
                raise
            except (asyncio.CancelledError, GeneratorExit):
                end(Result.CANCELLED, now=time.monotonic())
                raise
            except BaseException as error:
                end(Result.FAILED, now=time.monotonic(), error=repr(error))
                raise
            side = Side.STANDBY if node.role is Role.STANDBY else Side.ACTIVE
            for dataset, subject, fault, detail in result["faults"]:
                finding = Finding(
                    dataset=DatasetName(dataset), subject=subject, fault=Fault(fault), side=side, detail=detail
                )
                log.found(run, finding)
            faults = len(result["faults"])
            end(
                Result.PARTIAL if faults else Result.DONE,
                now=time.monotonic(),
                tally=Tally(
                    objects=result["entries"],
                    unverified=faults + result["moving_count"],
                    bytes_read=result["content_bytes"],
                    bytes_sent=result["package_bytes"],
                ),
                facts={**facts, "blake2b": result["digest"], "moving": result["moving_count"]},
            )
            yield pb.ExportPackageResponse(exported=_exported(result, run))

    async def _packed(
        self, plans: tuple[DatasetPlan, ...], result: dict[str, Any]
    ) -> AsyncGenerator[pb.ExportPackageResponse, None]:
        os.makedirs(self._spool, mode=0o700, exist_ok=True)
        task = {"do": "export", "plans": plans_out(plans), "head": self._head(), "spool": self._spool}
        expected: list[pb.PackageExpected] = []

        def told(what: str, value: Any) -> None:
            if what == "expect":
                expected.append(pb.PackageExpected(objects=value["objects"], content_bytes=value["content_bytes"]))

        try:
            async with Work(task, told=told) as work:
                await work.begun()
                for one in expected:
                    yield pb.ExportPackageResponse(expected=one)
                async for piece in work.output():
                    yield pb.ExportPackageResponse(data=piece)
                result.update(await work.result())
        finally:
            await asyncio.to_thread(shutil.rmtree, self._spool, ignore_errors=True)

    def _require_exportable(self, *, allow_standby: bool) -> None:
        node = self._parts.node
        if node.role is Role.ACTIVE:
            return
        if node.role is Role.STANDBY and not allow_standby:
            raise WrongState(
                "cannot export", reason="this node is the Standby", hint="ask the Active, or say --from-standby"
            )
        membership = self._parts.membership()
        founder = membership is not None and membership.founder
        if node.role is None or not node.standing(founder=founder).sound:
            raise WrongState("cannot export", reason="the data of this node is not consistent")

    def _head(self) -> dict[str, object]:
        node, agent, membership = self._parts.node, self._parts.agent, self._parts.membership()
        return {
            "made_by": version("ha-sync"),
            "cluster_id": membership.cluster_id if membership is not None else "",
            "node_id": membership.node_id if membership is not None else "",
            "node": node.settings.node.name,
            "role": node.role.value if node.role else "",
            "epoch": node.epoch,
            "model": agent.model,
            "firmware": agent.firmware,
            "created": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        }

    def _plans(self) -> tuple[DatasetPlan, ...]:
        return tuple(
            plan_of(
                one.settings,
                position=f"{one.report.position.epoch}/{one.report.position.incarnation.hex()[:8]}/"
                f"{one.report.position.sequence}",
                mode=self._guarded_mode(one.settings),
            )
            for one in self._parts.node.datasets()
        )

    def _guarded_mode(self, settings: DatasetSettings) -> int | None:
        """Of a Standby's file whose own mode keeps programs from writing to it."""
        if self._parts.node.role is not Role.STANDBY or not isinstance(settings, SqliteSettings):
            return None
        ledger = Ledger.load(os.path.join(self._state_dir, "datasets", settings.name, "sink-pages"))
        return None if ledger.published is None else ledger.published.mode & 0o7777

    # ---- verify

    async def verify(self, request: pb.VerifyPackageRequest) -> AsyncGenerator[pb.PackageProgress, None]:
        """Reads all of it. Raises Refused where it is damaged."""
        progress = _Progress()
        async with Work(self._task("verify", request), told=progress.told) as work:
            working = asyncio.ensure_future(work.result())
            try:
                async for message in _shown(working, progress):
                    yield message
            finally:
                working.cancel()
                await asyncio.gather(working, return_exceptions=True)
        progress.package = told_of(working.result())
        progress.phase = "done"
        yield progress.message()

    def _task(self, do: str, request: pb.VerifyPackageRequest | pb.RestorePackageRequest) -> dict[str, Any]:
        if not os.path.isabs(request.path):
            raise ConfigFault("the call", (f"path: {request.path!r} is not absolute",))
        membership, agent = self._parts.membership(), self._parts.agent
        return {
            "do": do,
            "path": request.path,
            "plans": plans_out(self._plans()),
            "datasets": list(request.datasets),
            "foreign": request.foreign,
            "facts": {
                "cluster_id": membership.cluster_id if membership is not None else "",
                "model": agent.model,
                "firmware": agent.firmware,
            },
        }

    # ---- restore

    async def restore(self, request: pb.RestorePackageRequest) -> AsyncGenerator[pb.PackageProgress, None]:
        """Progress, and at last what was restored."""
        with self._occupied("a restore", alone=True):
            progress = _Progress()
            self._interrupted = ""
            restoring = self._restoring = asyncio.create_task(self._restore(request, progress), name="restore")
            try:
                async for message in _shown(restoring, progress):
                    yield message
            finally:
                restoring.cancel()
                await _to_its_end(restoring)
            yield progress.message()

    async def _restore(self, request: pb.RestorePackageRequest, progress: _Progress) -> None:
        log = self._parts.log
        facts = {"file": request.path, "datasets": ", ".join(request.datasets) or "all"}
        run = log.begin(Kind.RESTORE, Trigger.MANUAL, now=time.monotonic(), facts=facts)
        swap = Swap(self._state_dir, self._plans())
        done = _Restored(run=run, file=request.path, swap=swap, progress=progress)
        try:
            await self._exchange(request, done)
        except HaSyncError as error:
            refused = isinstance(error, (Refused, WrongState, ConfigFault))
            result = Result.REFUSED if refused else Result.FAILED
            log.end(run, result, now=time.monotonic(), error=error.sentence())
            raise
        except asyncio.CancelledError:
            log.end(run, Result.CANCELLED, now=time.monotonic(), error=self._interrupted)
            if self._interrupted:
                raise WrongState("the restore was given up", reason=self._interrupted) from None
            raise
        except BaseException as error:
            log.end(run, Result.FAILED, now=time.monotonic(), error=repr(error))
            raise
        self._finishing = asyncio.create_task(self._finish(done), name="restore: finish")
        await asyncio.shield(self._finishing)

    async def _exchange(self, request: pb.RestorePackageRequest, done: _Restored) -> None:
        """Up to the commit; whatever is raised before it leaves everything as it was."""
        parts, swap, progress = self._parts, done.swap, done.progress
        by_hand = parts.by_hand()
        await self._require_restorable(by_hand=by_hand)
        task = self._task("stage", request)
        asked = False
        try:
            await _whole(asyncio.to_thread(swap.begin))
            async with Work(task, told=progress.told) as work:
                done.result = await work.result()
            progress.package = told_of(done.result)
            chosen = tuple(done.result["chosen"])
            swap.choose(chosen)
            progress.phase = "stopping"
            if not by_hand:
                asked = True
                await parts.agent.restoring.stop_services()
            progress.phase = "exchanging"
            await self._exchange_names(swap, chosen)
        finally:
            if not swap.committed:
                await self._give_up(swap)
                if asked and not swap.is_open:
                    parts.agent.restoring.over()
                self._begin_sweep()

    async def _exchange_names(self, swap: Swap, chosen: tuple[str, ...]) -> None:
        node = self._parts.node
        async with node.still() as stillness:
            try:
                await self._require_nobody(chosen)
                await _whole(asyncio.to_thread(swap.exchange, **self._captures(chosen)))
                await _whole(self._commit(swap))
            except BaseException as failed:
                if not swap.committed:
                    await self._give_up(swap)
                    raise
                # Too late to be given up: the new data is the data, and what is left is done at the next start at last.
                if not isinstance(failed, asyncio.CancelledError):
                    self._parts.report("error", "a restore is not tidied yet", {"reason": str(failed)})
            finally:
                stillness.exchanged = swap.committed or swap.is_open

    async def _give_up(self, swap: Swap) -> None:
        """Brings the data of before back. Where the disk does not let it, nothing captures or uses what is there."""
        try:
            await _whole(asyncio.to_thread(swap.give_up))
        except OSError as error:
            hint = "mend the disk and restart the engine: it tries again before it does anything else"
            fields: dict[str, object] = {"reason": str(error), "hint": hint}
            self._parts.report("error", "a restore could not be undone", fields)

    async def _commit(self, swap: Swap) -> None:
        # First the epoch: one that a crash makes useless is skipped, but data of a restore never bears the old one.
        await self._parts.node.promise(Epoch(self._parts.node.promised + 1))
        await asyncio.to_thread(swap.commit)
        self._parts.restored()
        await asyncio.to_thread(swap.forget)

    async def _finish(self, done: _Restored) -> None:
        parts, progress, result = self._parts, done.progress, done.result
        progress.phase = "raising"
        try:
            await self._raise_epoch()
        except Exception as error:
            reason = f"the data was exchanged, but the epoch could not be raised: {error}"
            parts.log.end(done.run, Result.FAILED, now=time.monotonic(), error=reason)
            raise
        finally:
            parts.agent.restoring.over()
        staged = result["staged"]
        epoch = parts.node.epoch
        parts.log.end(
            done.run,
            Result.DONE,
            now=time.monotonic(),
            tally=Tally(objects=staged["entries"], bytes_read=staged["content_bytes"]),
            facts={"file": done.file, "datasets": ", ".join(result["chosen"]), "epoch": epoch},
        )
        parts.report("warning", "data was restored from a package", {"file": done.file, "epoch": epoch})
        progress.restored = pb.PackageRestored(
            epoch=epoch,
            entries=staged["entries"],
            content_bytes=staged["content_bytes"],
            left_out=staged["left_out"],
            not_applied=staged["not_applied"],
            datasets=result["chosen"],
            run=done.run,
            notes=result["notes"],
        )
        progress.phase = "done"
        self._begin_sweep()

    def _begin_sweep(self) -> None:
        """Minutes, where there are a million files: nobody waits for it but the next restore."""
        if self._sweeping is None or self._sweeping.done():
            self._sweeping = asyncio.create_task(self._sweep(), name="restore: sweep")

    async def _sweep(self) -> None:
        stopped = threading.Event()
        sweeping = asyncio.ensure_future(asyncio.to_thread(sweep, self._state_dir, stop=stopped.is_set))
        try:
            await asyncio.shield(sweeping)
        except asyncio.CancelledError:
            stopped.set()
            await asyncio.gather(sweeping, return_exceptions=True)
            raise
        except (OSError, HaSyncError) as error:
            fields: dict[str, object] = {"reason": str(error), "hint": "it is tried again when the engine starts"}
            self._parts.report("error", "what a restore left could not be removed", fields)

    async def _raise_epoch(self) -> None:
        """The captures begin in it. With an agent it is the agent's to choose: it sees what is promised."""
        parts, node = self._parts, self._parts.node
        before = node.served
        if parts.by_hand():
            await _whole(node.set_role(Role.ACTIVE, Epoch(node.promised + 1)))
            return
        told_at = time.monotonic() + RAISE_TOLD_S
        while node.role is Role.ACTIVE and not before < node.epoch <= parts.agent.promoted:
            if time.monotonic() >= told_at:
                told_at = float("inf")
                parts.report("error", "the agent does not raise the epoch after a restore", {"epoch": before})
            await asyncio.sleep(TICK_S / 2)

    async def _require_restorable(self, *, by_hand: bool) -> None:
        parts = self._parts
        if parts.node.role is not Role.ACTIVE:
            raise WrongState("cannot restore", reason="this node is not the Active", hint="restore on the Active")
        if by_hand:
            await self._require_nobody(tuple(plan.name for plan in self._plans()))
        elif not parts.agent.attached:
            raise WrongState(
                "cannot restore",
                reason="the agent of this node is gone, so nobody stops the services",
                hint="is `ha-agent run` running?",
            )

    async def _require_nobody(self, names: tuple[str, ...]) -> None:
        plans = [plan for plan in self._plans() if plan.name in names]
        found = await asyncio.to_thread(occupants, plans)
        if found:
            raise Refused("cannot restore", reason="; ".join(found), hint="stop these programs first")

    def _captures(self, names: tuple[str, ...]) -> dict[str, tuple[bytes, ...]]:
        """What the captures remember of the data: with it gone each begins a new incarnation, and trusts nothing.

        Their trees are marked: what the Standby has more than a restored tree is no accident.
        """
        forget, mark = [], []
        for plan in self._plans():
            folder = os.path.join(self._state_dir, "datasets", plan.name)
            if plan.name in names and os.path.isdir(folder):
                files = [file for file in os.listdir(folder) if file.startswith(("source", "catalogue"))]
                forget += [os.fsencode(os.path.join(folder, file)) for file in files]
                if plan.kind == "tree":
                    mark.append(os.fsencode(os.path.join(folder, f"catalogue.db{RESTORED}")))
        return {"forget": tuple(forget), "mark": tuple(mark)}

    def _interrupt(self, reason: str) -> None:
        if self._restoring is not None and not self._restoring.done() and self._parts.agent.restoring.serial:
            self._interrupted = reason
            self._restoring.cancel()

    @contextlib.contextmanager
    def _occupied(self, what: str, *, alone: bool) -> Iterator[None]:
        tasks = (self._finishing, self._sweeping if alone else None)
        behind = any(task is not None and not task.done() for task in tasks)
        if self._busy or behind:
            busy = f"{self._busy} is going on" if self._busy else "a restore is still tidied up"
            raise WrongState(f"cannot begin {what}", reason=busy, hint="try again in a while")
        self._busy = what
        try:
            yield
        finally:
            self._busy = ""


async def _shown(work: asyncio.Future[Any], progress: _Progress) -> AsyncGenerator[pb.PackageProgress, None]:
    """The progress again and again until the work is done; raises what it raises."""
    while not work.done():
        yield progress.message()
        await asyncio.wait([work], timeout=TICK_S)
    work.result()


async def _whole(work: Coroutine[Any, Any, _T]) -> _T:
    """To its end, also when the caller is cancelled: he is told afterwards. Only for what is short, or ends itself."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await _to_its_end(task)
        raise


async def _to_its_end(task: asyncio.Future[Any]) -> None:
    wanted: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as cancelled:
            wanted = cancelled
    if wanted is not None:
        raise wanted


def _exported(result: dict[str, Any], run: RunId) -> pb.PackageExported:
    return pb.PackageExported(
        entries=result["entries"],
        content_bytes=result["content_bytes"],
        package_bytes=result["package_bytes"],
        blake2b=result["digest"],
        moving=result["moving"],
        moving_count=result["moving_count"],
        faults=[
            pb.PackageFault(dataset=dataset, subject=subject, fault=fault, detail=detail)
            for dataset, subject, fault, detail in result["faults"]
        ],
        absent=result["absent"],
        run=run,
    )
