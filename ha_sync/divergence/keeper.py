"""Saves what a former Active wrote and its peer never acknowledged, before anything of the new Active is applied.

Invariants: while a dataset bears the mark of service (``serving``), ``save`` must have returned before its sink is
opened; an archive is durable under its name before the mark goes; a crash in between repeats the work or finds it done.
Nothing that the peer lacks: no archive. A saving that a change of role overtakes is given up: it replaced nothing.
Blocking; every method from any thread.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import apsw

from ha_sync.config import DatasetSettings, Settings, SqliteSettings, TreeSettings
from ha_sync.core.acknowledged import Acknowledged, PagesAcknowledged, RowsAcknowledged
from ha_sync.core.dataset import Report
from ha_sync.core.position import Epoch
from ha_sync.divergence import saving_rows, serving
from ha_sync.divergence.archive import CONTENTS, COPY, FILES, MERGEABLE, ROWS, About, Archive, Archives
from ha_sync.divergence.saving_rows import Taken
from ha_sync.divergence.saving_tree import take_tree
from ha_sync.divergence.serving import Serving
from ha_sync.errors import Retryable
from ha_sync.files.blocks import MIB
from ha_sync.logs.writer import wall_clock

NAMED_MAX = 5


@dataclass(slots=True, kw_only=True)
class _Draft:
    """An archive while it is built."""

    settings: DatasetSettings
    place: str
    folder: str
    serving: Serving
    kind: str
    counts: dict[str, int]
    size: int = 0
    left_out: tuple[str, ...] = ()
    left_out_count: int = 0
    trouble: str = ""


class Keeper:
    """See the module."""

    def __init__(self, archives: Archives, *, cluster: Callable[[], str], report: Report) -> None:
        self._cluster = cluster
        self.archives = archives
        self._report = report
        self._lock = threading.Lock()  # datasets are saved at the same time, and share the room
        self._claims: dict[str, int] = {}  # bytes of what is being built
        self._turns: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)  # by dataset
        self._given_up: set[str] = set()  # datasets whose saving must end

        self.leaving: Callable[[], Awaitable[None]] = _nothing  # the role is about to change
        self.promoted: Callable[[], Awaitable[None]] = _nothing  # before the PBX starts; bounded by itself

    @classmethod
    def of(cls, settings: Settings, *, cluster: Callable[[], str], report: Report) -> Keeper:
        """With this node's archives. ``cluster`` is the pair that it belongs to now, or empty."""

        def dropped(archive: Archive) -> None:
            about = archive.about
            report("info", "a merged divergence made room", {"dataset": about.dataset, "id": about.id})

        folder = os.path.join(settings.node.state_dir, "divergence")
        archives = Archives(folder, bytes_max=settings.divergence.max_mib * MIB, dropped=dropped)
        return cls(archives, cluster=cluster, report=report)

    def serve(self, settings: DatasetSettings, place: str, epoch: Epoch, *, based: bool) -> None:
        """Marks the dataset as served here; durable when it returns. ``based``: it was a copy of the peer's."""
        with self._turn_of(settings):
            serving.begin(place, epoch, based=based, cluster=self._cluster())

    def is_own(self, settings: DatasetSettings, place: str) -> bool:
        """Whether nothing was applied to the dataset since this node served it."""
        with self._turn_of(settings):
            return serving.load(place) is not None

    @contextlib.contextmanager
    def _turn_of(self, settings: DatasetSettings) -> Iterator[None]:
        """Ends a saving that is going on."""
        self._given_up.add(settings.name)
        try:
            with self._turns[settings.name]:
                yield
        finally:
            self._given_up.discard(settings.name)

    def save(
        self, settings: DatasetSettings, place: str, acknowledged: Callable[[str], Acknowledged | None]
    ) -> Archive | None:
        """Saves what the peer lacks of the dataset whose state is in ``place``, if this node served it.

        ``acknowledged(place)`` tells what the peer is known to have of a database. Raises Retryable or OperatorNeeded
        where it cannot be saved now: nothing may be applied then.
        """
        with self._turns[settings.name]:
            mark = serving.load(place)
            if mark is None:
                return None
            if mark.cluster and self._cluster() not in {"", mark.cluster}:
                serving.end(place)  # of another pair: what was given up when this one was joined
                return None
            made = self.archives.made_for(mark.id, settings.name)
            if made is None:
                made = self._made(settings, place, mark, acknowledged)
            serving.end(place)
            return made

    def _made(
        self,
        settings: DatasetSettings,
        place: str,
        mark: Serving,
        acknowledged: Callable[[str], Acknowledged | None],
    ) -> Archive | None:
        draft = _Draft(
            settings=settings,
            place=place,
            folder=self.archives.stage(settings.name),
            serving=mark,
            kind="tree",
            counts={},
        )
        try:
            if isinstance(settings, TreeSettings):
                worth = self._tree(draft, settings)
            else:
                worth = self._database(draft, settings, acknowledged(place))
            return self._finish(draft) if worth else None
        except FileNotFoundError as error:
            if os.path.lexists(settings.path):
                raise _not_now(settings, error) from error
            fields: dict[str, object] = {"dataset": settings.name, "path": settings.path}
            self._report("error", "a former active's data is gone: nothing of it could be saved", fields)
            return None
        except (OSError, apsw.Error, sqlite3.Error) as error:
            raise _not_now(settings, error) from error
        finally:
            self._claims.pop(settings.name, None)
            self.archives.drop_stage(settings.name)

    # ---- by kind

    def _tree(self, draft: _Draft, settings: TreeSettings) -> bool:
        taken = take_tree(
            settings,
            catalogue_path=os.path.join(draft.place, "catalogue.db"),
            index_path=os.path.join(draft.folder, FILES),
            contents=os.path.join(draft.folder, CONTENTS),
            room=lambda size: self._takes(draft, size),
            goes_on=lambda: self._require_wanted(settings),
        )
        draft.counts = {"files": taken.files, "deleted": taken.gone, "objects": taken.objects}
        draft.left_out, draft.left_out_count = tuple(taken.left_out), taken.left_out_count
        return bool(taken.objects or taken.left_out_count)

    def _database(self, draft: _Draft, settings: SqliteSettings, acknowledged: Acknowledged | None) -> bool:
        draft.kind = "rows"
        try:
            if isinstance(acknowledged, RowsAcknowledged):
                taken = self._rows(draft, settings, acknowledged)
            else:
                draft.kind = "pages"
                if not self._pages(draft, settings, acknowledged):
                    return False
                taken = self._rows_of_copy(draft, settings)
        except saving_rows.UNREADABLE as error:
            size = saving_rows.copy_raw(settings.path, draft.folder)
            draft.counts = {"files": 1 if size else 0}
            draft.trouble = f"the database cannot be read: {error}"
            return True
        if taken.full:
            draft.left_out_count += 1
            draft.left_out += (f"rows of {settings.path}: no room",)
        draft.counts = {"rows": taken.rows, "deleted": taken.gone, "tables": len(taken.tables)}
        # A copy without a row is another file, but nothing that anybody lacks.
        return not taken.nothing

    def _rows(self, draft: _Draft, settings: SqliteSettings, known: RowsAcknowledged) -> Taken:
        room = self._room(draft, os.path.getsize(settings.path))
        return saving_rows.take_rows(
            settings,
            known=known,
            serving=draft.serving,
            closed=settings.priority in MERGEABLE,
            target=os.path.join(draft.folder, ROWS),
            room=room,
        )

    def _pages(self, draft: _Draft, settings: SqliteSettings, known: PagesAcknowledged | None) -> bool:
        return saving_rows.copy_if_other(settings.path, os.path.join(draft.folder, COPY), known=known)

    def _rows_of_copy(self, draft: _Draft, settings: SqliteSettings) -> Taken:
        copy = os.path.join(draft.folder, COPY)
        room = self._room(draft, 2 * os.path.getsize(copy))
        if os.path.getsize(copy) > room:
            os.unlink(copy)
            return Taken(full=True)
        return saving_rows.take_everything(
            settings, copy, target=os.path.join(draft.folder, ROWS), room=max(0, room - os.path.getsize(copy))
        )

    def _require_wanted(self, settings: DatasetSettings) -> None:
        if settings.name in self._given_up:
            raise Retryable("gave up saving", subject=settings.path, reason="the role changes; nothing was replaced")

    # ---- room

    def _takes(self, draft: _Draft, size: int) -> bool:
        """Whether so many more bytes may be kept; then they count."""
        fits = self._room(draft, size) >= size
        if fits:
            draft.size += size
            self._claims[draft.settings.name] = draft.size
        return fits

    def _room(self, draft: _Draft, wanted: int) -> int:
        """What is left beside what the drafts hold, this one too."""
        with self._lock:
            claimed = sum(self._claims.values())
            room = max(0, self.archives.room(wanted + claimed) - claimed)
            if isinstance(draft.settings, SqliteSettings):
                self._claims[draft.settings.name] = min(room, wanted)
            return room

    # ---- the end

    def _finish(self, draft: _Draft) -> Archive:
        settings = draft.settings
        about = About(
            id=self.archives.free_id(draft.serving.epoch, settings.name),
            dataset=settings.name,
            kind=draft.kind,
            priority=settings.priority.name.lower(),
            epoch=draft.serving.epoch,
            serving=draft.serving.id,
            saved_unix_s=wall_clock(),
            path=settings.path,
            counts=draft.counts,
            size=_bytes_below(draft.folder),
            left_out=draft.left_out,
            left_out_count=draft.left_out_count,
            trouble=draft.trouble,
            cluster=draft.serving.cluster or self._cluster(),
        )
        archive = self.archives.finish(draft.folder, about, summary_of(about))
        fields: dict[str, object] = {"dataset": about.dataset, "id": about.id, **about.counts}
        if about.trouble:
            fields["trouble"] = about.trouble
        self._report("error", "divergence saved: the other node never got this", fields)
        if about.left_out_count:
            named = "; ".join(about.left_out[:NAMED_MAX])
            self._report(
                "error",
                "divergence does not fit: part of it is not kept",
                {"dataset": about.dataset, "id": about.id, "objects": about.left_out_count, "which": named},
            )
        return archive


async def _nothing() -> None:
    """Until somebody merges."""


def _not_now(settings: DatasetSettings, error: Exception) -> Retryable:
    return Retryable(
        "cannot save what the other node lacks of",
        subject=settings.path,
        reason=str(error),
        hint="nothing is replaced before it is saved; it is tried again",
    )


def summary_of(about: About) -> str:
    """For a person who finds the folder."""
    when = dt.datetime.fromtimestamp(about.saved_unix_s, tz=dt.UTC).isoformat(timespec="seconds")
    lines = [
        f"What this node wrote to {about.dataset} as Active of epoch {about.epoch} and the other node never got.",
        f"From: {about.path}",
        f"Saved: {when}",
        *(f"{name}: {count}" for name, count in about.counts.items()),
    ]
    if about.trouble:
        lines.append(f"Trouble: {about.trouble}")
    if about.left_out_count:
        lines.append(f"Not kept, for want of room or because it could not be read: {about.left_out_count}")
        lines += [f"  {name}" for name in about.left_out]
    what = "is merged by itself where that harms nobody" if about.mergeable else "is left to you"
    lines.append(f"It {what}: `ha-sync divergence show {about.id} --dataset {about.dataset}`.")
    return "\n".join(lines) + "\n"


def _bytes_below(folder: str) -> int:
    return sum(
        os.lstat(os.path.join(parent, name)).st_size for parent, _, names in os.walk(folder) for name in names
    )  # fmt: skip
