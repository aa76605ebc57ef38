"""The Standby's end of a database captured as pages.

Invariants: what stands at the path is always one whole content that the Active once had (or the node's own file, before
the first sync), byte-equal to it, read-only; a position is reported only when that content is durable. The file is
never replaced while another program has it open: its rows would go to a deleted file (PBX.md 5). All blocking work
runs in one thread. The Standby's file is opened through SQLite only where the node's own rows are taken out or put
back, and never while a descriptor of ours is being closed on it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

import apsw

from ha_proto.sync.v1 import replication_pb2 as wire
from ha_sync.apply.pages.judge import block_size_of, by_remedy, file_is, inode_of, is_content, only_change
from ha_sync.apply.pages.ledger import Intent, Ledger, Published
from ha_sync.apply.pages.publish import WRITE_BITS, Draft, Place, Spare, Witness
from ha_sync.config import SqliteSettings
from ha_sync.core.dataset import DatasetReport, DatasetState, Finished, Report
from ha_sync.core.frame import Body, Frame
from ha_sync.core.position import NOWHERE, Answer, Epoch, Position
from ha_sync.database import keeping
from ha_sync.database.connection import open_standby
from ha_sync.database.holders import Holder, holders
from ha_sync.database.locality import Locality
from ha_sync.database.notice import CHANGES_AND_OPENS, LOST, OPENED, FolderNotice
from ha_sync.database.soundness import damage_of_file
from ha_sync.errors import Fenced, HaSyncError, ProtocolFault, RepairNeeded
from ha_sync.files.blocks import MIB, hash_file

CHECK_ALWAYS_BYTES = MIB
CHECK_EVERY_S = 60.0
HOLDER_TICK_S = 0.5
GUARD_TICK_S = 10.0
WHOLE_FILE = (b"",)

_Result = TypeVar("_Result")


class PagesSink:
    """A `Sink` (core/dataset.py)."""

    def __init__(self, settings: SqliteSettings, *, state_path: str | os.PathLike[str], report: Report) -> None:
        self._settings = settings
        self._place = Place(settings.path)
        self._locality = Locality.of(settings)
        self._state_path = os.fspath(state_path)
        self._keeping = f"{self._state_path}.own"
        self._report_event = report
        self._executor: ThreadPoolExecutor | None = None
        self._notice: FolderNotice | None = None
        self._guard: asyncio.Task[None] | None = None
        self._stirred = asyncio.Event()
        self._ledger = Ledger()
        self._epoch = Epoch(0)
        self._base_fd = -1  # of the published file, kept open so that we never open it by name
        self._witness: Witness | None = None
        self._trusted = False  # the file at the path is what was published
        self._draft: Draft | None = None
        self._spare: Spare | None = None
        self._described = b""  # hash of the file as the last inventory told it
        self._suspect = True  # somebody may have the file open
        self._tampered_told = False
        self._holders: tuple[Holder, ...] = ()
        self._trouble = ""
        self._syncing = False
        self._last_check = float("-inf")
        self._durable: Callable[[Position], None] = lambda _: None
        self._needed: Callable[[tuple[bytes, ...]], None] = lambda _: None
        self._counts = {"published": 0, "renewed": 0, "checks": 0, "tampered": 0}

    # ---- Sink: life -----------------------------------------------------------------------------------------------

    async def open(self, epoch: Epoch, *, active_at: str) -> None:  # noqa: ARG002 - a file's mode carries no message
        """Finishes or forgets what a crash left half done, and guards the copy."""
        assert self._executor is None, "opened twice"
        self._epoch = epoch
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"pages-{self._settings.name}")
        await self._work(self._recover)
        await self._listen()
        self._guard = asyncio.create_task(self._watch_over(), name=f"pages guard {self._settings.name}")

    async def close(self) -> None:
        """Stops; the copy stays read-only."""
        if self._executor is None:
            return
        await self._stop_guard()
        await self._work(self._let_go)
        self._executor.shutdown(wait=False)
        self._executor = None

    async def promote(self) -> tuple[Finished, ...]:
        """The copy becomes this node's own database, with its own node-local rows."""
        await self._stop_guard()
        return await self._work(self._become_own)

    async def detach(self) -> tuple[str, ...]:
        """Gives the file its mode back; nothing of ours is inside it."""
        await self._stop_guard()

        def restore() -> tuple[str, ...]:
            swept = self._place.sweep()
            removed = [f"{swept} temporary files beside {self._place.path}"] if swept else []
            if self._ledger.published is not None and self._give_mode_back():
                removed.append(f"read-only mode of {self._place.path}")
            self._let_go()
            self._remember(Ledger(own_kept=self._ledger.own_kept))
            return tuple(removed)

        return await self._work(restore)

    async def resume(self, *, accept_deletes: bool) -> None:  # noqa: ARG002 - the protocol's
        """Nothing of this kind halts: looks at once whether the copy is untouched."""
        self._suspect = True
        self._stirred.set()

    # ---- Sink: the stream -----------------------------------------------------------------------------------------

    @property
    def applied(self) -> Position:
        """Nowhere while the file is not known to be what was published: a compare is small and mends it."""
        return self._ledger.position if self._ledger.published is not None and self._trusted else NOWHERE

    async def partials(self) -> tuple[bytes, ...]:
        """A copy comes whole or not at all."""
        return ()

    async def begin(self, answer: Answer, method: str) -> None:  # noqa: ARG002 - one method
        """Drops a group that came in part."""
        await self._work(self._drop_draft)
        self._syncing = answer is Answer.COMPARE

    async def inventory(self) -> AsyncIterator[bytes]:
        """One chunk with one entry, or none where there is no file."""
        chunk = await self._work(self._describe)
        if chunk:
            yield chunk

    async def receive(self, frame: Frame) -> None:
        """Stages a piece; the last one of a group returns when the content is durable.

        Waits as long as another program has the file open.
        """
        if frame.position.epoch < self._epoch:
            raise Fenced("cannot apply a change", subject=self._place.path, reason="of a lower epoch")
        if self.applied.resumes(frame.position) and frame.position.sequence < self.applied.sequence:
            raise ProtocolFault("cannot apply a change", subject=self._place.path, reason="its sequence goes back")
        if frame.kind is Body.NOTHING:
            await self._guarded(lambda: self._adopt(frame.position))
        elif frame.kind is Body.TREE:
            await self._guarded(lambda: self._stage(frame))
            if not frame.group_end:
                return
            await self._await_free()
            await self._guarded(lambda: self._publish(frame.position))
        else:
            raise ProtocolFault("cannot apply a frame", subject=self._place.path, reason=f"kind {frame.kind.name}")
        self._syncing = False
        self._durable(self.applied)

    async def examined(self, job: Callable[[str, Published | None], _Result]) -> _Result:
        """Runs ``job`` with the path and what was published there, while nothing of ours touches the file."""
        return await self._work(lambda: job(self._place.path, self._ledger.published))

    def on_durable(self, callback: Callable[[Position], None]) -> None:
        """``callback`` hears of every new position."""
        self._durable = callback

    def on_failure(self, callback: Callable[[Exception], None]) -> None:
        """Never called: ``receive`` itself raises what a group fails with."""

    def on_need(self, callback: Callable[[tuple[bytes, ...]], None]) -> None:
        """``callback`` hears when the file must come whole."""
        self._needed = callback

    def report(self) -> DatasetReport:
        """State, reason and figures."""
        state, reason = self._state()
        return DatasetReport(
            state=state,
            reason=reason,
            method="pages",
            position=self.applied,
            consistent=self._trusted or self._ledger.published is None,
            counts=tuple(self._counts.items()),
        )

    def _state(self) -> tuple[DatasetState, str]:
        if self._holders:
            names = ", ".join(str(holder) for holder in self._holders[:3])
            return DatasetState.WAITING, f"{names} has the file open: stop it, the copy cannot be replaced under it"
        if self._trouble:
            return DatasetState.DEGRADED, self._trouble
        if self._syncing:
            return DatasetState.SYNCING, ""
        if self._ledger.published is None:
            return DatasetState.WAITING, "nothing received yet"
        return DatasetState.STREAMING, ""

    # ---- in the thread: receiving ---------------------------------------------------------------------------------

    def _stage(self, frame: Frame) -> None:
        change = only_change(frame)
        if self._draft is None:
            if self._suspect:
                # Whoever opened the file may still have the one that was published before: it must not change.
                self._drop_spare()
            self._draft = self._new_draft(change)
        self._draft.take(change, memoryview(frame.payload))
        if change.more == frame.group_end:
            raise ProtocolFault("cannot take a change", reason="the group ends where its content does not")

    def _new_draft(self, change: wire.TreeChange) -> Draft:
        if self._trusted and self._base_fd >= 0:
            spare, self._spare = self._spare, None
            self._counts["renewed"] += spare is not None
            return Draft(self._place, self._base_fd, change, spare=spare)
        # The node's own file, or a copy that somebody changed: what the inventory described stands at the path.
        self._drop_spare()
        try:
            fd = os.open(self._place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return Draft(self._place, None, change)
        try:
            return Draft(self._place, fd, change)
        finally:
            os.close(fd)

    def _publish(self, position: Position) -> None:
        draft = self._draft
        assert draft is not None
        draft.finish()
        change = draft.change
        self._check(self._place.in_folder(draft.name), change.size)
        self._keep_own_rows()
        content = Published(
            position=position,
            size=change.size,
            block_size=change.block_size,
            whole=change.hash,
            uid=change.uid,
            gid=change.gid,
            mode=change.mode,
        )
        intent = Intent(name=draft.name, inode=os.fstat(draft.fd).st_ino, content=content)
        self._remember(replace(self._ledger, intent=intent))
        self._place.remove_companions()
        kept = self._place.take_place(draft.name, keep_old=self._trusted and self._base_fd >= 0 and change.size > MIB)
        self._draft = None
        self._keep_spare(draft if kept else None)
        self._hold(draft.fd)
        # On disk the intent stands for this until the next change: recovery finds its inode in place.
        self._ledger = replace(self._ledger, published=content, intent=None, position=position)
        self._counts["published"] += 1

    def _adopt(self, position: Position) -> None:
        """Only the position moves; after a compare it says that the file here is the Active's already."""
        if self._ledger.published is not None and self._trusted:
            moved = replace(self._ledger.published, position=position)
            self._remember(replace(self._ledger, published=moved, position=position))
            return
        # First of all: the own file's journal or log may hold more than the file itself.
        self._keep_own_rows()
        fd = os.open(self._place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        status = os.fstat(fd)
        found = hash_file(fd, block_size=block_size_of(fd, self._ledger.published))
        if found.hash != self._described:
            os.close(fd)
            raise RepairNeeded("cannot take over a database", subject=self._place.path, reason="it changed meanwhile")
        self._place.remove_companions()
        content = Published(
            position=position,
            size=found.size,
            block_size=found.block_size,
            whole=found.hash,
            uid=status.st_uid,
            gid=status.st_gid,
            mode=self._true_mode(status),
        )
        os.fchmod(fd, content.mode & ~WRITE_BITS)
        self._hold(fd)
        self._remember(replace(self._ledger, published=content, intent=None, position=position))

    def _check(self, path: str, size: int) -> None:
        now = time.monotonic()
        if size > CHECK_ALWAYS_BYTES and now - self._last_check < CHECK_EVERY_S:
            return
        self._last_check = now
        self._counts["checks"] += 1
        if damage := damage_of_file(path):
            raise RepairNeeded("cannot publish a database", subject=self._place.path, reason=damage[:200])

    def _keep_own_rows(self) -> None:
        """Before the node's own file is replaced for the first time."""
        own = self._ledger.published is None and self._ledger.intent is None
        if not own or not os.path.exists(self._place.path):
            return
        try:
            rows = keeping.take_out(self._place.path, self._keeping, self._locality)
        except apsw.Error as error:
            self._tell("warning", "own database cannot be read: node-local rows are not kept", reason=str(error))
            keeping.drop(self._keeping)
            self._ledger = replace(self._ledger, own_kept=False)
            return
        self._ledger = replace(self._ledger, own_kept=True)
        if rows:
            self._tell("info", "node-local rows kept", rows=rows)

    def _describe(self) -> bytes:
        try:
            fd = os.open(self._place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return b""
        try:
            status = os.fstat(fd)
            content = hash_file(fd, block_size=block_size_of(fd, self._ledger.published))
        finally:
            os.close(fd)
        self._described = content.hash
        if content.size == 0:
            return b""
        entry = wire.TreeChange(
            action=wire.TreeChange.ACTION_PUT,
            type=wire.TreeChange.TYPE_DATABASE,
            mode=self._true_mode(status),
            uid=status.st_uid,
            gid=status.st_gid,
            size=content.size,
            hash=content.hash,
            block_size=content.block_size,
        )
        return wire.TreeInventory(entries=[entry], block_hashes=[content.block_hashes]).SerializeToString()

    # ---- in the thread: life --------------------------------------------------------------------------------------

    def _recover(self) -> None:
        self._ledger = Ledger.load(self._state_path)
        if self._ledger.intent is not None:
            self._finish_intent(self._ledger.intent)
        self._place.sweep()
        published = self._ledger.published
        if published is None:
            return
        try:
            fd = os.open(self._place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            self._tell("warning", "copy of a database is gone", reason=error.strerror or "")
            return
        if is_content(hash_file(fd, block_size=published.block_size), published):
            os.fchmod(fd, published.mode & 0o7777 & ~WRITE_BITS)
            self._hold(fd)
        else:
            os.close(fd)
            self._tell("warning", "copy of a database was changed while the engine was down")

    def _finish_intent(self, intent: Intent) -> None:
        done = replace(self._ledger, published=intent.content, intent=None, position=intent.content.position)
        if inode_of(self._place.path) == intent.inode:
            self._remember(done)
            return
        temporary = self._place.in_folder(intent.name)
        if inode_of(temporary) == intent.inode and file_is(temporary, intent.content):
            # Companions of the old file may be gone already: only forward is safe.
            self._place.remove_companions()
            self._place.take_place(intent.name)
            self._remember(done)
            return
        self._remember(replace(self._ledger, intent=None))

    def _become_own(self) -> tuple[Finished, ...]:
        self._drop_draft()
        self._let_go()
        if not os.path.exists(self._place.path):
            return ()
        finished: list[Finished] = []
        path, published = self._place.path, self._ledger.published
        interrupted = os.path.exists(f"{path}-journal") or os.path.exists(f"{path}-wal")
        if published is not None:
            self._give_mode_back()
        try:
            db = open_standby(path, create=False)
            try:
                db.execute("SELECT count(*) FROM sqlite_schema").fetchall()
            finally:
                db.close()
            if interrupted:
                finished.append(Finished(what="journal resolved", subject=path))
            if published is not None:
                finished.extend(keeping.put_back(path, self._keeping, self._locality))
        except apsw.Error as error:
            # The promotion goes on: a database in doubt is better than none, and the kept rows stay where they are.
            self._tell("error", "database cannot be finished at promotion", reason=str(error))
            finished.append(Finished(what="database could not be finished", subject=path, detail=str(error)))
            self._remember(Ledger(own_kept=self._ledger.own_kept))
            return tuple(finished)
        if published is not None:
            self._give_mode_back()
        # Only now: until here a crash repeats the whole.
        self._remember(Ledger())
        keeping.drop(self._keeping)
        return tuple(finished)

    def _give_mode_back(self) -> bool:
        published = self._ledger.published
        if published is None or not os.path.exists(self._place.path):
            return False
        os.chmod(self._place.path, published.mode & 0o7777)
        return True

    def _true_mode(self, status: os.stat_result) -> int:
        published = self._ledger.published
        guarded = published is not None and status.st_mode & 0o7777 == published.mode & ~WRITE_BITS
        return published.mode if published is not None and guarded else status.st_mode & 0o7777

    def _remember(self, ledger: Ledger) -> None:
        ledger.store(self._state_path)
        self._ledger = ledger

    def _hold(self, fd: int) -> None:
        if self._base_fd >= 0:
            os.close(self._base_fd)
        self._base_fd = fd
        self._witness = Witness.of(os.fstat(fd))
        self._trusted = True
        self._tampered_told = False

    def _let_go(self) -> None:
        self._drop_draft()
        self._drop_spare()
        if self._base_fd >= 0:
            os.close(self._base_fd)
            self._base_fd = -1
        self._trusted = False

    def _keep_spare(self, draft: Draft | None) -> None:
        """The file that was published until now bears the draft's name; ``None``: it is gone."""
        if draft is None:
            return
        self._spare = Spare(
            name=draft.name,
            fd=os.open(self._place.in_folder(draft.name), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW),
            block_size=draft.change.block_size,
            behind=frozenset(draft.touched),
        )

    def _drop_spare(self) -> None:
        spare, self._spare = self._spare, None
        if spare is not None:
            os.close(spare.fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._place.in_folder(spare.name))

    def _drop_draft(self) -> None:
        if self._draft is not None:
            self._draft.discard()
            self._draft = None

    # ---- guarding -------------------------------------------------------------------------------------------------

    async def _await_free(self) -> None:
        """Until no other program has the file open."""
        while self._suspect or self._holders:
            self._suspect = False
            found = await self._work(lambda: holders(self._place.path))
            if found and found != self._holders:
                names = ", ".join(str(holder) for holder in found)
                self._tell("error", "a program has the Standby's database open", holders=names)
            self._holders = found
            if found:
                await asyncio.sleep(HOLDER_TICK_S)

    async def _watch_over(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
                async with asyncio.timeout(GUARD_TICK_S):
                    await self._stirred.wait()
            self._stirred.clear()
            if self._notice is not None and not self._notice.alive:
                stale, self._notice = self._notice, None
                stale.stop()
            if self._notice is None:
                await self._listen()
            if await self._work(self._is_tampered):
                self._tell("warning", "copy of a database was tampered with: it is fetched anew")
                self._needed(WHOLE_FILE)

    def _is_tampered(self) -> bool:
        """Whether the published file was changed, told once; a mere change of its mode is undone here."""
        published = self._ledger.published
        if published is None or self._base_fd < 0 or self._tampered_told:
            return False
        try:
            found: os.stat_result | None = os.stat(self._place.path)
        except OSError:
            found = None
        if found is not None and Witness.of(found) == self._witness:
            return False
        self._counts["tampered"] += 1
        in_place = found is not None and self._witness is not None and found.st_ino == self._witness.inode
        if in_place and is_content(hash_file(self._base_fd, block_size=published.block_size), published):
            os.fchmod(self._base_fd, published.mode & 0o7777 & ~WRITE_BITS)
            self._witness = Witness.of(os.fstat(self._base_fd))
            self._tell("warning", "mode of a guarded database was changed: put back")
            return False
        self._tampered_told = True
        self._trusted = False
        return True

    async def _listen(self) -> None:
        main = os.fsencode(self._place.name)
        names = frozenset({main, main + b"-journal", main + b"-wal"})
        notice = FolderNotice(self._place.folder, names, self._on_heard, mask=CHANGES_AND_OPENS)
        try:
            await self._work(notice.start)
        except OSError:
            return  # without notices every publication asks /proc, and the guard's tick looks at the file
        self._notice = notice
        self._suspect = True
        notice.hear()

    def _on_heard(self, name: bytes, mask: int, at: float) -> None:  # noqa: ARG002 - the listener's shape
        if mask == LOST or (mask & OPENED and name == os.fsencode(self._place.name)):
            self._suspect = True
        if mask == LOST or mask & ~OPENED:
            self._stirred.set()

    async def _stop_guard(self) -> None:
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await guard
        notice, self._notice = self._notice, None
        if notice is not None:
            notice.stop()

    # ---- carrying out ---------------------------------------------------------------------------------------------

    async def _guarded(self, job: Callable[[], None]) -> None:
        """Runs a job of the stream; whatever goes wrong leaves no draft behind and is said by its remedy."""
        if self._notice is None:
            self._suspect = True
        try:
            await self._work(job)
        except OSError as error:
            self._trouble = error.strerror or str(error)
            await self._work(self._drop_draft)
            raise by_remedy(error, self._place.path) from error
        except HaSyncError as error:
            await self._work(self._drop_draft)
            if isinstance(error, RepairNeeded):
                self._trouble = error.reason
                self._needed(WHOLE_FILE)
            raise
        self._trouble = ""

    async def _work(self, job: Callable[[], _Result]) -> _Result:
        assert self._executor is not None, "not open"
        future = asyncio.get_running_loop().run_in_executor(self._executor, job)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            with contextlib.suppress(Exception):
                await future
            raise

    def _tell(self, severity: str, what: str, **fields: object) -> None:
        self._report_event(severity, what, {"dataset": self._settings.name, "path": self._place.path, **fields})
