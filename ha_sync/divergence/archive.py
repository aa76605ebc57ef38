"""The archives of one node: ``<state_dir>/divergence/<id>/<dataset>/``, made whole or not at all.

An archive is built in a hidden folder, synced, and renamed; ``about.json`` in it never changes, ``state.json`` tells
what became of it. What is in the folder beside these:

    rows.db      rows of a database, as an image (``database/image.py``): new rows and keys that are gone
    copy.db      the whole database as it was, where it was captured as pages
    files.db     the objects of a tree (``tree_index``), contents below ``files/``
    summary.txt  the same for a person

Sizes in bytes, times in Unix seconds, for people only. Blocking.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field

from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.core.position import Epoch
from ha_sync.database.durable import sync_folder, write_durably
from ha_sync.errors import ConfigFault

FORMAT = 1
ABOUT, STATE, SUMMARY = "about.json", "state.json", "summary.txt"
ROWS, COPY, FILES, CONTENTS = "rows.db", "copy.db", "files.db", "files"
STAGING = ".staging-"
LEFT_OUT_MAX = 1000
"""Names of what had no room; more are only counted."""
REASONS_MAX = 100

_ID = re.compile(r"[0-9]{1,19}(-[0-9]{1,6})?")

MERGEABLE = frozenset({Priority.CDR, Priority.VOICEMAIL, Priority.RECORDINGS})


class State(enum.Enum):
    """What became of an archive."""

    KEPT = "kept"  # nothing yet
    PARTIAL = "partial"  # merged, but for what a person must decide
    MERGED = "merged"


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """What an archive holds; written once."""

    id: str
    dataset: DatasetName
    kind: str  # rows | pages | tree
    priority: str
    epoch: Epoch
    serving: str  # the beginning as Active that it is of
    saved_unix_s: float
    path: str  # of the dataset
    counts: dict[str, int] = field(default_factory=dict)
    size: int = 0
    left_out: tuple[str, ...] = ()
    left_out_count: int = 0
    trouble: str = ""  # why it is not what it should be
    cluster: str = ""  # the pair that it belongs to; empty: none was formed yet

    @property
    def mergeable(self) -> bool:
        """Whether its content may be merged by what it is; all else is for a person."""
        return Priority[self.priority.upper()] in MERGEABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What became of it."""

    state: State = State.KEPT
    added: int = 0
    present: int = 0
    left: int = 0
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """One archive on disk."""

    about: About
    standing: Standing
    folder: str

    @property
    def open(self) -> bool:
        """Whether somebody has still something to do with it."""
        return self.standing.state is not State.MERGED

    @property
    def to_merge(self) -> bool:
        """Whether it can still be merged by itself."""
        return self.about.mergeable and self.standing.state is State.KEPT and not self.about.trouble


class Archives:
    """All of them. The engine and nobody else writes here."""

    def __init__(self, folder: str, *, bytes_max: int, dropped: Callable[[Archive], None]) -> None:
        self.folder = folder
        self._bytes_max = bytes_max
        self._dropped = dropped  # told of an archive that made room for another

    def listed(self) -> list[Archive]:
        """Oldest first."""
        found = []
        for id_ in _names(self.folder):
            for dataset in _names(os.path.join(self.folder, id_)) if _ID.fullmatch(id_) else ():
                archive = _read(os.path.join(self.folder, id_, dataset))
                if archive is not None:
                    found.append(archive)
        return sorted(found, key=lambda item: (item.about.saved_unix_s, item.about.id, item.about.dataset))

    def get(self, id_: str, dataset: str = "") -> list[Archive]:
        """Those of one id, or one of them; raises ConfigFault where there is none."""
        found = [item for item in self.listed() if item.about.id == id_]
        if not found:
            known = ", ".join(dict.fromkeys(item.about.id for item in self.listed())) or "none"
            raise ConfigFault("the command line", (f"id: {id_!r} is no archive of this node; there are: {known}",))
        chosen = [item for item in found if not dataset or item.about.dataset == dataset]
        if not chosen:
            known = ", ".join(item.about.dataset for item in found)
            raise ConfigFault("the command line", (f"dataset: {dataset!r} is not in archive {id_}; it has: {known}",))
        return chosen

    def made_for(self, serving: str, dataset: DatasetName) -> Archive | None:
        """The one that was finished before a crash could remove the mark."""
        same = (item for item in self.listed() if item.about.dataset == dataset)
        return next((item for item in same if item.about.serving == serving), None)

    def free_id(self, epoch: Epoch, dataset: DatasetName) -> str:
        """The epoch, or the epoch and a number where that has one of this dataset already."""
        id_, number = str(epoch), 1
        while os.path.lexists(os.path.join(self.folder, id_, dataset)):
            number += 1
            id_ = f"{epoch}-{number}"
        return id_

    def room(self, wanted: int) -> int:
        """How many bytes may be added: what is merged gives way, oldest first, until ``wanted`` fit."""
        archives = self.listed()
        free = self._bytes_max - sum(item.about.size for item in archives)
        for item in archives:
            if free >= wanted:
                break
            if item.standing.state is State.MERGED:
                self.remove(item)
                self._dropped(item)
                free += item.about.size
        return max(0, free)

    def stage(self, dataset: DatasetName) -> str:
        """An empty folder to build in; what a crash left there is thrown away: its source still stands."""
        folder = os.path.join(self.folder, f"{STAGING}{dataset}")
        shutil.rmtree(folder, ignore_errors=True)
        os.makedirs(folder, mode=0o700)
        return folder

    def finish(self, staged: str, about: About, summary: str) -> Archive:
        """Makes it durable under its name."""
        write_durably(os.path.join(staged, SUMMARY), summary.encode("utf-8", "surrogateescape"))
        write_durably(os.path.join(staged, ABOUT), json.dumps(_plain(about)).encode())
        sync_below(staged)
        parent = os.path.join(self.folder, about.id)
        os.makedirs(parent, mode=0o700, exist_ok=True)
        sync_folder(self.folder)
        target = os.path.join(parent, about.dataset)
        os.rename(staged, target)
        sync_folder(parent)
        return Archive(about=about, standing=Standing(), folder=target)

    def drop_stage(self, dataset: DatasetName) -> None:
        """Nothing was worth keeping."""
        shutil.rmtree(os.path.join(self.folder, f"{STAGING}{dataset}"), ignore_errors=True)

    @staticmethod
    def note(archive: Archive, standing: Standing) -> Archive:
        """What became of it, durably."""
        kept = dataclasses.replace(standing, reasons=standing.reasons[:REASONS_MAX])
        text = json.dumps(dataclasses.asdict(kept) | {"state": kept.state.value})
        write_durably(os.path.join(archive.folder, STATE), text.encode())
        return dataclasses.replace(archive, standing=kept)

    def remove(self, archive: Archive) -> None:
        """For good. Renamed away first: a crash leaves no half archive that looks whole."""
        gone = os.path.join(self.folder, f"{STAGING}removed")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(archive.folder, gone)
        with contextlib.suppress(OSError):
            os.rmdir(os.path.dirname(archive.folder))
        sync_folder(self.folder)
        shutil.rmtree(gone, ignore_errors=True)


def sync_below(folder: str) -> None:
    """Every file and folder below."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            fd = os.open(os.path.join(parent, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(parent)


def _names(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _plain(about: About) -> dict[str, object]:
    return {"format": FORMAT, **dataclasses.asdict(about)}


def _read(folder: str) -> Archive | None:
    try:
        with open(os.path.join(folder, ABOUT), "rb") as file:
            kept = json.loads(file.read())
        if kept.pop("format") != FORMAT:
            return None
        about = About(**kept | {"left_out": tuple(kept["left_out"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Archive(about=about, standing=_standing(folder), folder=folder)


def _standing(folder: str) -> Standing:
    """Of a state that cannot be read nothing is known: merging again does no harm."""
    try:
        with open(os.path.join(folder, STATE), "rb") as file:
            kept = json.loads(file.read())
        return Standing(**kept | {"state": State(kept["state"]), "reasons": tuple(kept["reasons"])})
    except (OSError, ValueError, KeyError, TypeError):
        return Standing()
