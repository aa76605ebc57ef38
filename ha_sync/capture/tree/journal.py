"""Sequences, what is dirty, what is on its way, and what the Standby has: the bookkeeping of one tree.

Invariants
- A sequence is never used twice, not even after a crash: they are reserved ahead, durably.
- Every path that the Standby does not have as it is here is dirty, held, or in flight; a scan finds the same again.
- What leaves in a group stands in the catalogue's dirty set first, so a crash between sending and the acknowledgement
  is known afterwards.
- A path is not sent again while an earlier change of it is in flight (*held*): what the Standby will build upon is then
  known.
- A group's position is above all earlier ones and below every unsent live change, so its acknowledgement covers
  everything noticed up to it, held paths and the *bulk* (the catalogue's dirty set) excepted.
- What a session that broke had sent goes again as bulk, in groups with higher positions than before, and so does what
  leaves the live changes for the bulk. Until all of it was acknowledged, no acknowledgement counts for more than there
  was then (``covered``).

Live changes wait in memory, LIVE_MAX at the most; beyond that they join the bulk. Blocking; one thread.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from ha_sync.capture.tree.reading import Outcome
from ha_sync.capture.tree.scan import signatures
from ha_sync.catalogue.tree import NOTHING_SENT, Row, TreeCatalogue, key_of, path_of
from ha_sync.core.position import Epoch, Incarnation, Position, Sequence, new_incarnation

LIVE_MAX = 20_000
FLYING_MAX = 16_384
"""Paths sent and not acknowledged, each of which takes a kilobyte of memory until then; beyond it no bulk is sent."""

RESERVE = 1_000_000
SYNCING = "on"
FELL = "fell:"
"""Begins the notes of directories whose deletion is in flight."""

PAGE = 2000
BULK_TAKEN_MIN = 100
Notice = tuple[Sequence, float]
"""A sequence and when its change was noticed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """A group that was sent."""

    sequence: Sequence
    outcomes: tuple[Outcome, ...]


class Journal:
    """See the module."""

    def __init__(self, catalogue: TreeCatalogue) -> None:
        self._catalogue = catalogue
        self._captured = 0
        self._reserved = 0
        self._reserved_within = False
        self._epoch = Epoch(0)
        self._incarnation = Incarnation(b"")
        self.live: dict[bytes, tuple[Sequence, float]] = {}
        self.held: dict[bytes, float] = {}
        self._flights: deque[Flight] = deque()
        self._flying: dict[bytes, int] = {}  # path: groups in flight that hold it
        self._marks: dict[bytes, Sequence] = {}  # path: the newest mark that a group in flight brings up to date
        self._falling: dict[bytes, int] = {}  # directories being deleted
        self.building: set[bytes] = set()  # paths of the group that is being read
        self.building_falls: set[bytes] = set()  # directories that it deletes
        self.counted: set[bytes] = set()  # paths whose loss was judged, until the Standby has lost them too
        self.resend: set[bytes] = set()  # what the Standby has of these cannot be used: sent whole
        self.acknowledged = Sequence(0)
        self.sent = Sequence(0)
        self._cursor = Sequence(0)
        self._taken, self._useful = 0, LIVE_MAX  # of the bulk: handed out last, and how many to read next
        self.bulk = 0  # paths in the catalogue's dirty set that were not handed out
        self.synced_at: Sequence | None = None  # from here on the Standby is consistent; None: a sync is going on
        self.peer_known = False
        self._floor: Sequence | None = None  # acknowledged when something was overtaken; None: nothing is
        self._overtaken_at = Sequence(0)  # the newest sequence then
        self._again_at: Sequence | None = None  # with this one all that goes again was sent; None: not yet

    # ---- beginning

    def open(self, epoch: Epoch, *, trusted: bool) -> None:
        """Goes on in the stored journal if it is this epoch's and can be trusted; else begins a new one."""
        stored = self._catalogue.position("captured")
        if trusted and stored.epoch == epoch and stored.incarnation:
            self._epoch, self._incarnation = epoch, stored.incarnation
            # Everything up to the reserved sequence may have been used before a crash.
            self._captured = self._reserved = stored.sequence
            self.acknowledged = self._catalogue.position("acknowledged").sequence
            self.peer_known = self._catalogue.get("peer_known") == "1"
            self.synced_at = self._stored_sync()
        else:
            self._epoch, self._incarnation = epoch, new_incarnation()
            self._captured = self._reserved = 0
            self.acknowledged = Sequence(0)
            self.peer_known = False
            with self._catalogue.transaction(durable=False):
                self._forget_fallen()
                self._catalogue.clear_dirty()
                self._catalogue.put("peer_known", "0")
                self._catalogue.put("syncing", SYNCING)
            self.synced_at = None
        self.sent = Sequence(self._captured)
        self._floor = None
        self._reserve()
        self.bulk = self._catalogue.dirty_count()

    def _stored_sync(self) -> Sequence | None:
        stored = self._catalogue.get("syncing")
        if stored is None or stored == SYNCING or int(stored) > self.acknowledged:
            return None
        return Sequence(int(stored))

    def _reserve(self) -> None:
        self._reserved = self._captured + RESERVE
        # The caller's transaction may hold more marks than were reserved. Its end is not ours to see, so what is
        # reserved in it serves its own marks, and is stored once more by itself before anything else is numbered.
        self._reserved_within = self._catalogue.in_transaction
        own = contextlib.nullcontext() if self._reserved_within else self._catalogue.transaction(durable=True)
        with own:
            self._catalogue.put_position("captured", self._position(self._reserved))
            self._catalogue.put_position("acknowledged", self._position(self.acknowledged))

    def _position(self, sequence: int) -> Position:
        return Position(epoch=self._epoch, incarnation=self._incarnation, sequence=Sequence(sequence))

    def position(self, sequence: Sequence) -> Position:
        """In this journal."""
        return self._position(sequence)

    @property
    def captured(self) -> Position:
        """The newest sequence."""
        return self._position(self._captured)

    def next_sequence(self) -> Sequence:
        """A fresh one."""
        if self._captured >= self._reserved or (self._reserved_within and not self._catalogue.in_transaction):
            self._reserve()
        self._captured += 1
        return Sequence(self._captured)

    # ---- noticing

    def mark(self, path: bytes, noticed: float) -> Notice | None:
        """A path changed now; None where an earlier change of it is still in flight."""
        if self.flies(path):
            self.held.setdefault(path, noticed)
            return None
        waiting = self.live.pop(path, None)
        if waiting is not None and waiting[1]:
            noticed = min(noticed or waiting[1], waiting[1])
        sequence = self.next_sequence()
        self.live[path] = (sequence, noticed)
        return sequence, noticed

    def mark_bulk(self, paths: Iterable[bytes]) -> None:
        """Paths that differ, of which nobody knows since when. In the caller's transaction, or by itself."""
        marks = [(path, self.next_sequence()) for path in paths]
        self._catalogue.mark_dirty(marks)
        self.bulk += len(marks)

    def spill(self) -> None:
        """Moves what is live into the bulk: the Standby is away, or far behind."""
        if len(self.live) <= LIVE_MAX:
            return
        with self._catalogue.transaction(durable=False):
            self.mark_bulk(self.live)
        self.live.clear()
        self._overtaken()

    def defer(self, paths: Iterable[bytes]) -> None:
        """These live paths wait with the bulk: they are so large that everything else goes first."""
        deferred = [path for path in paths if self.live.pop(path, None) is not None]
        if deferred:
            with self._catalogue.transaction(durable=False):
                self.mark_bulk(deferred)
            self._overtaken()

    def hold(self) -> None:
        """Live paths below a directory whose removal is in flight wait for its acknowledgement."""
        if not self._falling:
            return
        for path in [path for path in self.live if self.flies(path)]:
            self.held.setdefault(path, self.live.pop(path)[1])

    def release(self) -> list[Notice]:
        """Held paths whose earlier change was acknowledged become live."""
        free = [path for path in self.held if not self.flies(path)]
        notices = [self.mark(path, self.held.pop(path)) for path in free]
        return [notice for notice in notices if notice is not None and notice[1]]

    def flies(self, path: bytes) -> bool:
        """Whether a change of this path, or the removal of a directory above it, is in flight."""
        if path in self._flying or path in self.building:
            return True
        if self._falling or self.building_falls:
            while path:
                path = path.rpartition(b"/")[0]
                if path in self._falling or path in self.building_falls:
                    return True
        return False

    def flying_below(self, path: bytes) -> list[bytes]:
        """Paths of what is in flight or being read at and below ``path``: no catalogue tells of them yet."""
        below = path + b"/" if path else b""
        paths = (*self._flying, *self.building)
        return [each for each in paths if each.startswith(below) or each == path]

    def falls(self, path: bytes, *, is_directory: bool) -> None:
        """The group that is being read deletes this; what stood below a directory is noted nowhere else."""
        self.building_falls.add(path)
        if is_directory:
            self._catalogue.put(FELL + path.hex(), "")

    def distrust_fallen(self) -> None:
        """The Standby may have deleted these directories already: all that we know below them is dirty."""
        for name, _ in self._catalogue.values_with_prefix(FELL):
            known = signatures(self._catalogue, key_of(bytes.fromhex(name.removeprefix(FELL))))
            with self._catalogue.transaction(durable=False):
                while page := [path_of(row[0]) for row in islice(known, PAGE)]:
                    self.mark_bulk(page)

    def _forget_fallen(self) -> None:
        for name, _ in self._catalogue.values_with_prefix(FELL):
            self._catalogue.forget(name)

    def built(self) -> None:
        """The group that was being read is complete, or dropped."""
        self.building = set()
        self.building_falls = set()

    # ---- sending

    def take_bulk(self, limit: int) -> list[tuple[bytes, Sequence]]:
        """The next dirty paths of the catalogue that are neither live nor in flight."""
        taken: list[tuple[bytes, Sequence]] = []
        limit = min(limit, self._useful)
        while len(taken) < limit and (page := self._catalogue.dirty(after=self._cursor, limit=limit - len(taken))):
            self._cursor = page[-1][1]
            self.bulk = max(0, self.bulk - len(page))
            for path, sequence in page:
                if path in self.live or path in self.held or self._marks.get(path, NOTHING_SENT) >= sequence:
                    continue
                if self.flies(path):
                    self.held[path] = 0.0
                else:
                    taken.append((path, sequence))
        if len(taken) < limit:
            self.bulk = 0
        self._taken, self._useful = len(taken), 4 * limit
        return taken

    def put_back(self, last: Sequence, count: int) -> None:
        """What was taken of the bulk after ``last`` is handed out later."""
        self._cursor = last
        self.bulk += count
        # What a group cannot carry would be read from the catalogue again for each group.
        self._useful = max(BULK_TAKEN_MIN, 2 * (self._taken - count))

    def leave(self, paths: Iterable[tuple[bytes, Sequence]]) -> None:
        """These live paths are about to be sent."""
        with self._catalogue.transaction(durable=False):
            self._catalogue.mark_dirty(paths)

    def flew(self, sequence: Sequence, outcomes: list[Outcome]) -> None:
        """A group was handed to the stream."""
        self._flights.append(Flight(sequence=sequence, outcomes=tuple(outcomes)))
        for outcome in outcomes:
            self._marks[outcome.path] = max(outcome.mark, self._marks.get(outcome.path, NOTHING_SENT))
            if not outcome.sent:
                continue
            self._flying[outcome.path] = self._flying.get(outcome.path, 0) + 1
            if outcome.row is None:
                self._falling[outcome.path] = self._falling.get(outcome.path, 0) + 1
        self.sent = max(self.sent, sequence)

    @property
    def in_flight(self) -> int:
        """Paths sent and not acknowledged."""
        return len(self._flying)

    @property
    def crowded(self) -> bool:
        """Whether the bulk waits until the Standby has acknowledged some of what is on its way."""
        return self.in_flight >= FLYING_MAX

    # ---- acknowledgements

    def acknowledge(self, sequence: Sequence) -> None:
        """Everything sent up to ``sequence`` is durable on the Standby."""
        done: list[Outcome] = []
        while self._flights and self._flights[0].sequence <= sequence:
            flight = self._flights.popleft()
            done += flight.outcomes
            self._landed(flight)
        self.acknowledged = max(self.acknowledged, sequence)
        self.settle(done)
        self.look_whether_all_went_again()

    def _landed(self, flight: Flight) -> None:
        for outcome in flight.outcomes:
            if self._marks.get(outcome.path, NOTHING_SENT) <= outcome.mark:
                self._marks.pop(outcome.path, None)
            if outcome.sent:
                _less(self._flying, outcome.path)
                if outcome.row is None:
                    _less(self._falling, outcome.path)

    def settle(self, outcomes: list[Outcome]) -> None:
        """The Standby has these: they become what is known of it."""
        catalogue = self._catalogue
        with catalogue.transaction(durable=False):
            rows: list[Row] = []
            for outcome in outcomes:
                if outcome.row is not None:
                    rows.append(outcome.row)
                    continue
                self.counted.discard(outcome.path)
                # In order: a directory that was removed and made again keeps what came after.
                catalogue.put_rows(rows)
                rows = []
                if outcome.below:
                    catalogue.remove_below(outcome.path)
                    catalogue.forget(FELL + outcome.path.hex())
                else:
                    catalogue.remove_entries((outcome.path,))
            catalogue.put_rows(rows)
            catalogue.clean((outcome.path, outcome.mark) for outcome in outcomes)
            catalogue.put_position("acknowledged", self._position(self.acknowledged))

    def ground(self) -> None:
        """The session is over: what was in flight still stands in the dirty set and is handed out anew."""
        if self.synced_at is not None and self.acknowledged < self.synced_at:
            self.synced_at = None
        self.built()
        self._flights.clear()
        self._flying.clear()
        self._marks.clear()
        self._falling.clear()
        self._cursor = Sequence(0)
        self.bulk = self._catalogue.dirty_count()
        self.release()
        if self.bulk or self.live:
            self._overtaken()

    def _overtaken(self) -> None:
        """What was numbered goes under higher positions than those of what was numbered later."""
        if self._floor is None:
            self._floor = self.acknowledged
        self._overtaken_at, self._again_at = Sequence(self._captured), None

    def look_whether_all_went_again(self) -> None:
        """What was overtaken counts as acknowledged when the groups that hold it are."""
        if self._floor is None:
            return
        handed_out = self.synced_at is not None and not (self.bulk or self.held or self.building)
        if self._again_at is None and handed_out:
            self._again_at = max(self._overtaken_at, self.sent)
        if self._again_at is not None and self.acknowledged >= self._again_at:
            self._floor = None

    def covered(self, acknowledged: Position | None) -> Position | None:
        """How much of what is acknowledged can be relied on. May be called in another thread."""
        floor = self._floor
        if acknowledged is None or floor is None or acknowledged.sequence <= floor:
            return acknowledged
        return self._position(floor)

    def forget_dirty(self) -> None:
        """A scan of everything follows: what is dirty is found anew. What is in flight is looked at again."""
        with self._catalogue.transaction(durable=False):
            self._catalogue.clear_dirty()
            self._catalogue.mark_dirty((path, self.next_sequence()) for path in self._flying)
        self.live.clear()
        self.held.clear()
        self.counted.clear()
        self.bulk = self._catalogue.dirty_count()

    # ---- compare

    def begin_sync(self) -> None:
        """A compare begins: what is dirty is found anew."""
        self.live.clear()
        self.held.clear()
        self.counted.clear()
        self.built()
        self._flights.clear()
        self._flying.clear()
        self._marks.clear()
        self._falling.clear()
        self._cursor = Sequence(self._captured)
        self.bulk = 0
        self._overtaken()
        self.synced_at = None
        self.peer_known = True
        with self._catalogue.transaction(durable=False):
            self._forget_fallen()
            self._catalogue.clear_dirty()
            self._catalogue.put("peer_known", "1")
            self._catalogue.put("syncing", SYNCING)

    def end_sync(self) -> None:
        """Everything that differed was handed out: from the present position on the Standby is consistent."""
        self.synced_at = Sequence(self._captured)
        self._catalogue.put("syncing", str(self.synced_at))

    @property
    def idle(self) -> bool:
        """Whether nothing waits, is being read, or is on its way, appended bytes included."""
        return not (self.backlog or self.building or self._flights)

    @property
    def backlog(self) -> int:
        """Paths that the Standby does not have as they are here."""
        return len(self.live) + len(self.held) + self.bulk + len(self._flying)


def _less(counts: dict[bytes, int], path: bytes) -> None:
    left = counts[path] - 1
    if left:
        counts[path] = left
    else:
        del counts[path]
