"""Decides when a path of a tree may be read. Pure: fed with events and the time, asked what is due.

    closed, moved in        at once; where ``quiet_s`` is set, the whole set when nothing happened for that long
    gone                    after DELETE_QUIET_S without further deletes, so that a mass delete is judged as one
    created, not closed     looked at after LOOK_AFTER_S (a link or a symlink is never closed); where files grow, read
                            then if nothing was written to it
    held open and written   when quiet for OPEN_QUIET_S, or OPEN_MAX_S after its first unread change
    growing                 its new bytes every GROW_EVERY_S; the whole at close, or when idle for GROWING_IDLE_S, or at
                            a barrier when nobody has it open
    mailbox                 when no folder of it is locked any more; LOCK_MAX_S is the bounded wait
    costly                  not again before COST_SHARE of the time has paid for its last reading

Paths are bytes, times monotonic seconds given by the caller. Every method is O(1) in the number of paths, except
``due``, which looks at the open ones when their time has come, and ``doubt``. Not thread-safe.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

LOOK_AFTER_S = 0.02
OPEN_QUIET_S = 1.0
OPEN_MAX_S = 5.0
GROW_EVERY_S = 0.2
GROWING_IDLE_S = 30.0
DELETE_QUIET_S = 0.1
DELETE_MAX_S = 2.0
UNIT_QUIET_S = 0.05
UNIT_MAX_S = 2.0
LOCK_MAX_S = 5.0
QUIET_MAX_S = 2.0
"""A set that never gets quiet is read after this (or ten times its ``quiet_s``, if that is longer)."""

COST_SHARE = 0.03
"""A path may cost this share of the time: reading that took 3 ms is not repeated for 100 ms."""

COST_MIN_S = 0.0005
COST_WAIT_MAX_S = 30.0
COSTLY_MAX = 4096
"""Costly paths remembered; beyond it the oldest are forgotten, which only means reading them sooner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleRules:
    """How a dataset behaves."""

    quiet_s: float = 0.0
    growing: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitDue:
    """A mailbox whose changed messages may be read."""

    mailbox: bytes
    paths: dict[bytes, float]  # when each was noticed
    overdue: bool  # still locked: read anyway, and say so


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """What may be read now."""

    ready: dict[bytes, float]  # path: when its change was noticed
    units: tuple[UnitDue, ...] = ()
    grow: tuple[bytes, ...] = ()  # open files with new bytes
    look: tuple[bytes, ...] = ()  # not closed: a symlink, a link, cut short, or a file being written?
    left: tuple[bytes, ...] = ()  # written and not closed: has anybody got it open? Asked once of each


@dataclass(slots=True, kw_only=True)
class _Open:
    first: float  # of the oldest change that was not read
    last: float
    written: bool = False
    log: bool = False  # published as it is now and then, although the dataset grows
    asked: bool = False  # whether anybody has it open: who has will close it, and that is told


@dataclass(slots=True, kw_only=True)
class _Unit:
    first: float
    last: float
    paths: dict[bytes, float] = field(default_factory=dict)
    locks: dict[bytes, float] = field(default_factory=dict)
    unlocked: bool = False


class Settle:
    """See the module."""

    def __init__(self, rules: SettleRules) -> None:
        self._rules = rules
        self._quiet_max_s = max(QUIET_MAX_S, 10 * rules.quiet_s)
        self._ready: dict[bytes, float] = {}
        self._quiet: dict[bytes, float] = {}
        self._quiet_first = self._quiet_last = 0.0
        self._gone: dict[bytes, float] = {}
        self._gone_first = self._gone_last = 0.0
        self._open: dict[bytes, _Open] = {}
        self._open_at = math.inf
        self._looks: dict[bytes, float] = {}
        self._grow: dict[bytes, None] = {}
        self._grow_at = math.inf
        self._grown_at = -math.inf
        self._units: dict[bytes, _Unit] = {}
        self._costly: dict[bytes, float] = {}
        self._delayed: dict[bytes, float] = {}

    # ---- what happened

    def closed(self, path: bytes, now: float) -> None:
        """The path is whole: closed after writing, moved here, or its metadata changed."""
        self._open.pop(path, None)
        self._looks.pop(path, None)
        self._grow.pop(path, None)
        self._gone.pop(path, None)
        self._shippable(path, now)

    def _shippable(self, path: bytes, now: float) -> None:
        if self._rules.quiet_s > 0:
            if not self._quiet:
                self._quiet_first = now
            self._quiet_last = now
            self._quiet.setdefault(path, now)
        else:
            self._ready.setdefault(path, now)

    def changed(self, path: bytes, now: float) -> None:
        """Its metadata changed; a file that is being written is read later anyway."""
        if path not in self._open:
            self.closed(path, now)

    def opened(self, path: bytes, now: float) -> None:
        """The path was created and may still be written."""
        self._gone.pop(path, None)
        self._looks[path] = now + LOOK_AFTER_S
        self._touch(path, now)

    def modified(self, path: bytes, now: float) -> None:
        """Its content changed, and it is open."""
        self._touch(path, now).written = True
        if self._rules.growing:
            self._grow[path] = None
            self._grow_at = max(now, self._grown_at + GROW_EVERY_S)

    def _touch(self, path: bytes, now: float) -> _Open:
        self._quiet_last = now
        state = self._open.get(path)
        if state is None:
            state = self._open[path] = _Open(first=now, last=now)
        state.last = now
        self._open_at = min(self._open_at, self._open_due(state))
        return state

    def _open_due(self, state: _Open) -> float:
        if self._rules.growing and not state.log:
            return state.last + GROWING_IDLE_S
        return min(state.last + OPEN_QUIET_S, state.first + OPEN_MAX_S)

    def retry(self, path: bytes, now: float) -> None:
        """It changed while it was read: nobody may ever tell that it is closed, so it is read when it is quiet."""
        known = path in self._open
        self._touch(path, now)
        if not known:
            self._open[path].log = True
            self._open_at = min(self._open_at, self._open_due(self._open[path]))

    def publish_open(self, path: bytes, now: float) -> None:
        """This file is no recording in progress: publish it now and then while it is open."""
        state = self._open.get(path)
        if state is not None and not state.log:
            state.log = True
            self._open_at = min(self._open_at, self._open_due(state), now + OPEN_QUIET_S)

    def gone(self, path: bytes, now: float) -> None:
        """The path was removed or moved away."""
        self._open.pop(path, None)
        self._looks.pop(path, None)
        self._grow.pop(path, None)
        self._ready.pop(path, None)
        if self._rules.quiet_s > 0:
            self._shippable(path, now)
            return
        if not self._gone:
            self._gone_first = now
        self._gone_last = now
        self._gone.setdefault(path, now)

    def doubt(self, path: bytes) -> None:
        """What stands below ``path`` is told anew (another directory, lost events): its files may be open no more.

        Whoever is still writing says so again; what is wrongly taken for open waits for a close that never comes.
        """
        below = path + b"/" if path else b""
        for each in [each for each in self._open if each.startswith(below)]:
            del self._open[each]
            self._looks.pop(each, None)
            self._grow.pop(each, None)

    def unit_changed(self, mailbox: bytes, path: bytes, now: float) -> None:
        """A message of a mailbox was closed, moved or removed."""
        unit = self._unit(mailbox, now)
        if not unit.paths:
            unit.first = now
        unit.last = now
        unit.paths.setdefault(path, now)

    def locked(self, mailbox: bytes, folder: bytes, now: float) -> None:
        """A folder of a mailbox is locked: a look now would mix messages."""
        unit = self._unit(mailbox, now)
        unit.unlocked = False
        unit.locks.setdefault(folder, now)

    def unlocked(self, mailbox: bytes, folder: bytes, now: float) -> None:
        """The lock of a folder is gone."""
        unit = self._unit(mailbox, now)
        unit.locks.pop(folder, None)
        unit.unlocked = not unit.locks

    def _unit(self, mailbox: bytes, now: float) -> _Unit:
        unit = self._units.get(mailbox)
        if unit is None:
            unit = self._units[mailbox] = _Unit(first=now, last=now)
        return unit

    def spent(self, path: bytes, cost_s: float, now: float) -> None:
        """Reading this path took so long."""
        if cost_s < COST_MIN_S:
            return
        if len(self._costly) >= COSTLY_MAX:
            del self._costly[next(iter(self._costly))]
        self._costly[path] = now + min(cost_s / COST_SHARE, COST_WAIT_MAX_S)

    # ---- what is due

    def due(self, now: float) -> Due:
        """Takes what may be read now."""
        ready, self._ready = self._ready, {}
        if self._quiet and self._quiet_due() <= now:
            ready.update(self._quiet)
            self._quiet = {}
        if self._gone and self._gone_due() <= now:
            ready.update(self._gone)
            self._gone = {}
        if self._open_at <= now:
            self._take_open(ready, now)
        look = self._take_looks(ready, now)
        if self._costly:
            self._delay(ready, now)
        return Due(ready=ready, units=self._take_units(now), grow=self._take_grown(now), look=look)

    def flush(self) -> Due:
        """Takes everything that waits only for quiet; a locked mailbox and files being written stay."""
        ready = {**self._delayed, **self._ready, **self._quiet, **self._gone}
        for path in [p for p, state in self._open.items() if state.log or not self._rules.growing]:
            ready.setdefault(path, self._open.pop(path).first)
        self._delayed, self._ready, self._quiet, self._gone = {}, {}, {}, {}
        units = []
        for mailbox, unit in list(self._units.items()):
            if not unit.locks:
                units.append(UnitDue(mailbox=mailbox, paths=unit.paths, overdue=False))
                del self._units[mailbox]
        looks = self._take_looks(ready, math.inf)
        grow, self._grow, self._grow_at = tuple(self._open), {}, math.inf
        # A file that was cut short is told to be written and never to be closed: whoever looks knows what it was.
        looks += tuple(path for path in grow if path not in looks)
        left = tuple(path for path, state in self._open.items() if not state.asked)
        for path in left:
            self._open[path].asked = True
        return Due(ready=ready, units=tuple(u for u in units if u.paths), grow=grow, look=looks, left=left)

    def _quiet_due(self) -> float:
        return min(self._quiet_last + self._rules.quiet_s, self._quiet_first + self._quiet_max_s)

    def _gone_due(self) -> float:
        return min(self._gone_last + DELETE_QUIET_S, self._gone_first + DELETE_MAX_S)

    def _take_open(self, ready: dict[bytes, float], now: float) -> None:
        soonest = math.inf
        for path, state in list(self._open.items()):
            at = self._open_due(state)
            if at <= now:
                ready.setdefault(path, state.last)
                del self._open[path]
            else:
                soonest = min(soonest, at)
        self._open_at = soonest

    def _delay(self, ready: dict[bytes, float], now: float) -> None:
        for path, at in [(p, t) for p, t in self._costly.items() if p in ready or p in self._delayed or t <= now]:
            if at <= now:
                del self._costly[path]
                if path in self._delayed:
                    ready[path] = self._delayed.pop(path)
            elif path in ready:
                noticed = ready.pop(path)
                self._delayed.setdefault(path, noticed)

    def _unit_due(self, unit: _Unit) -> float:
        if unit.locks:
            return max(min(unit.locks.values()), unit.first if unit.paths else 0.0) + LOCK_MAX_S
        if unit.unlocked:
            return 0.0
        return min(unit.last + UNIT_QUIET_S, unit.first + UNIT_MAX_S)

    def _take_units(self, now: float) -> tuple[UnitDue, ...]:
        taken: list[UnitDue] = []
        for mailbox, unit in list(self._units.items()):
            if self._unit_due(unit) > now:
                continue
            if unit.paths:
                taken.append(UnitDue(mailbox=mailbox, paths=unit.paths, overdue=bool(unit.locks)))
            del self._units[mailbox]
        return tuple(taken)

    def _take_grown(self, now: float) -> tuple[bytes, ...]:
        if self._grow_at > now:
            return ()
        taken, self._grow, self._grow_at, self._grown_at = tuple(self._grow), {}, math.inf, now
        return taken

    def _take_looks(self, ready: dict[bytes, float], now: float) -> tuple[bytes, ...]:
        taken: list[bytes] = []
        # In order of creation, so the first that is not due ends it.
        for path, at in self._looks.items():
            if at > now:
                break
            taken.append(path)
        for path in taken:
            del self._looks[path]
            # Nobody writes to it: a name that a whole file was given, which is never closed.
            if self._rules.growing and path in self._open and not self._open[path].written:
                ready.setdefault(path, self._open.pop(path).first)
        return tuple(path for path in taken if path not in ready)

    def next_at(self) -> float:
        """When something will be due; infinity where nothing waits."""
        if self._ready:
            return 0.0
        at = min(self._open_at, self._grow_at)
        if self._quiet:
            at = min(at, self._quiet_due())
        if self._gone:
            at = min(at, self._gone_due())
        if self._looks:
            at = min(at, next(iter(self._looks.values())))
        if self._delayed:
            at = min(at, *(self._costly.get(path, 0.0) for path in self._delayed))
        if self._units:
            at = min(at, *(self._unit_due(unit) for unit in self._units.values()))
        return at

    def is_open(self, path: bytes) -> bool:
        """Whether the path is being written, as far as is known."""
        return path in self._open

    @property
    def waiting(self) -> int:
        """Changes noticed that are not due yet (open files not counted)."""
        units = sum(len(unit.paths) for unit in self._units.values())
        return len(self._ready) + len(self._quiet) + len(self._gone) + len(self._delayed) + units
