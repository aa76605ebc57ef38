"""The ledger replayed: of every row, file, folder and recording, which contents it has had, in order, and since when.

A *thing* (row, file, folder) has versions; version 0 is "not there". A version is *doubtful* when it was announced and
never completed: a crash came in between, so it may be there or not, and for files and folders anything in between may
be there. A *growing file* has pieces, and places: rotation renames it. Pure but for reading the ledger's lines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, TypeVar

from ha_sync.sample import settings as names
from ha_sync.sample.ledger import Line

NEVER: Final = float("inf")
ABSENT: Final = None

Place = TypeVar("Place")
RowPlace = tuple[str, str, str]  # database, table, key text


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One content of a thing."""

    since_s: float  # when it was committed; NEVER when in doubt
    digest: str | None  # None: not there
    transaction: int = 0  # joins the rows of one transaction; 0: none
    order: int = 0  # line of the ledger

    @property
    def doubtful(self) -> bool:
        """Announced, never completed."""
        return self.since_s == NEVER


@dataclass(slots=True, kw_only=True)
class Folder:
    """A mailbox folder's states: sorted message digests."""

    states: list[tuple[float, tuple[str, ...]]] = field(default_factory=list)
    doubtful: bool = False  # the last change was never completed


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Bytes that were appended to a growing file."""

    since_s: float
    offset: int
    size: int
    digest: str


@dataclass(slots=True, kw_only=True)
class Growing:
    """A file that only grows, under the paths that it had."""

    places: list[tuple[float, str]]
    pieces: list[Piece] = field(default_factory=list)
    closed: Piece | None = None  # size = whole size of the finished recording


@dataclass(slots=True)
class History:
    """All of it."""

    rows: dict[RowPlace, list[Version]] = field(default_factory=dict)
    files: dict[str, list[Version]] = field(default_factory=dict)
    folders: dict[str, Folder] = field(default_factory=dict)
    growing: list[Growing] = field(default_factory=list)
    in_doubt: set[str] = field(default_factory=set)  # paths whose last change was never completed
    held: int = 0
    rejected: list[str] = field(default_factory=list)  # what the PBX lost by itself, with the reason
    stopped: bool = False  # the last run ended with a clean stop


def kind_of(path: str) -> str:
    """The name of the dataset that a path or database belongs to, as in ``sync_toml``."""
    databases = {names.CONFIG_DB: "config", names.CDR_DB: "cdr", names.CEL_DB: "cel", names.ASTDB: "astdb"}
    folders = {
        names.ETC_DIR: "config-files",
        names.CSV_DIR: "cdr-csv",
        names.VOICEMAIL_DIR: "voicemail",
        names.MONITOR_DIR: "recordings",
        names.OUTGOING_DIR: "spool",
    }
    return databases.get(path) or folders[path.partition("/")[0]]


def replay(lines: Iterable[Line]) -> History:
    """Read the lines in order. Announcements that nobody completed become doubtful versions."""
    return _Replay().run(lines)


class _Replay:
    def __init__(self) -> None:
        self._history = History()
        self._announced: dict[int, Line] = {}
        self._living: dict[str, Growing] = {}
        self._order = 0

    def run(self, lines: Iterable[Line]) -> History:
        for line in lines:
            self._order += 1
            # An unknown kind is a mistake of ours and must not pass for "nothing happened".
            getattr(self, f"_on_{line['k']}")(line)
        for mark in sorted(self._announced):
            self._leave_in_doubt(mark, self._announced[mark])
        return self._history

    def _leave_in_doubt(self, mark: int, line: Line) -> None:
        if line["k"] == "tx":
            self._add_rows(line, NEVER, mark)
            return
        for path in line["paths"]:
            if path in self._history.folders:
                self._history.folders[path].doubtful |= not line.get("superseded", False)
            elif line["t"] >= self._last_change(path):
                self._history.in_doubt.add(path)

    def _last_change(self, path: str) -> float:
        versions = self._history.files.get(path)
        return versions[-1].since_s if versions else 0.0

    def _on_start(self, _: Line) -> None:
        self._history.stopped = False
        self._living = {
            place: growing for place, growing in self._living.items() if kind_of(place) == "cdr-csv"
        }  # a new run never goes on with a dead run's recording

    def _on_stop(self, _: Line) -> None:
        self._history.stopped = True

    def _on_row(self, line: Line) -> None:
        place = (line["db"], line["table"], line["key"])
        self._add(self._history.rows, place, Version(since_s=line["t"], digest=line["d"], order=self._order))

    def _on_tx(self, line: Line) -> None:
        self._announced[line["id"]] = line

    def _on_try(self, line: Line) -> None:
        self._announced[line["id"]] = line

    def _on_done(self, line: Line) -> None:
        self._add_rows(self._announced.pop(line["id"]), line["t"], line["id"])

    def _on_undone(self, line: Line) -> None:
        self._announced.pop(line["id"])

    def _on_lost(self, line: Line) -> None:
        self._history.rejected.append(f"{line['what']}: {line['why']}")

    def _on_held(self, _: Line) -> None:
        self._history.held += 1

    def _on_file(self, line: Line) -> None:
        self._announced.pop(line.get("id", 0), None)
        self._add(self._history.files, line["p"], Version(since_s=line["t"], digest=line["d"], order=self._order))

    def _on_gone(self, line: Line) -> None:
        self._announced.pop(line.get("id", 0), None)
        if kind_of(line["p"]) != "spool":  # held files are not judged
            self._add(self._history.files, line["p"], Version(since_s=line["t"], digest=ABSENT, order=self._order))

    def _on_folder(self, line: Line) -> None:
        self._announced.pop(line.get("id", 0), None)
        folder = self._history.folders.setdefault(line["p"], Folder())
        folder.states.append((line["t"], tuple(sorted(line["messages"]))))
        for earlier in self._announced.values():  # a crash long ago, and the folder was stated anew since
            if earlier["k"] == "try" and line["p"] in earlier["paths"]:
                self._announced[earlier["id"]] = {**earlier, "superseded": True}

    def _on_append(self, line: Line) -> None:
        growing = self._living.get(line["p"])
        if growing is not None and growing.pieces and line["o"] < growing.pieces[-1].offset:
            self._renamed_in_a_crash(growing, line)
            growing = None
        if growing is None:
            growing = self._living[line["p"]] = Growing(places=[(line["t"], line["p"])])
            self._history.growing.append(growing)
        growing.pieces.append(Piece(since_s=line["t"], offset=line["o"], size=line["n"], digest=line["d"]))

    def _renamed_in_a_crash(self, growing: Growing, line: Line) -> None:
        # Killed between the rename and its line: the file began anew, so its announcement was carried out.
        for announced in self._announced.values():
            if announced["k"] == "try" and announced["paths"][0] == line["p"]:
                growing.places.append((announced["t"], announced["paths"][1]))

    def _on_closed(self, line: Line) -> None:
        growing = self._living.pop(line["p"], None)
        if growing is None:  # closed without a sound
            growing = Growing(places=[(line["t"], line["p"])])
            self._history.growing.append(growing)
        growing.closed = Piece(since_s=line["t"], offset=0, size=line["n"], digest="")

    def _on_move(self, line: Line) -> None:
        self._announced.pop(line["id"], None)
        growing = self._living.pop(line["p"], None)
        if growing is not None:
            growing.places.append((line["t"], line["to"]))

    def _add_rows(self, line: Line, since_s: float, mark: int) -> None:
        mentioned = set()
        for table, key, row in line["rows"]:
            place = (line["db"], table, key)
            mentioned.add(place)
            version = Version(since_s=since_s, digest=row, transaction=mark, order=self._order)
            self._add(self._history.rows, place, version)
        if line.get("snapshot"):
            for place in self._places_of(line["db"]):
                if place not in mentioned and self._history.rows[place][-1].digest is not ABSENT:
                    version = Version(since_s=since_s, digest=ABSENT, transaction=mark, order=self._order)
                    self._add(self._history.rows, place, version)

    def _places_of(self, database: str) -> Iterator[RowPlace]:
        return (place for place in list(self._history.rows) if place[0] == database)

    @staticmethod
    def _add(things: dict[Place, list[Version]], place: Place, version: Version) -> None:
        things.setdefault(place, [Version(since_s=0.0, digest=ABSENT)]).append(version)
