"""Who lives: what the beats that the gate let in prove, and on which paths. Pure; monotonic seconds of this node.

A beat is *life* if it echoes a beat of my present boot: then its sender was alive after I sent that one. Evidence for
a lease is dated when I sent the echoed beat, never when the echo was read: a stalled node reads old echoes late.
Content is taken only from the newest (boot, sequence) over all paths: a slow path never brings an old role back.

Invariants: evidence never lies after the beat that carried it; a beat that is not life changes nothing but counters;
at most ``SENT_MAX`` own beats are remembered (older echoes prove nothing that matters: longer than any lease).
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from dataclasses import dataclass, field

from ha_agent.heartbeat.beat import NO_BOOT, Boot, Envelope, PathId, Sequence

NO_SEQUENCE = Sequence(0)
SENT_MAX = 1024


class Way(enum.Enum):
    """The state of one path."""

    UNKNOWN = "unknown"  # nothing heard since the start, and not long enough waited
    BOTH = "both"  # heard, and heard there
    HALF = "half"  # heard, but the peer does not hear me on it
    LOST = "lost"  # nothing heard for half the timeout


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one admitted beat is worth."""

    life: bool  # echoes my present boot
    newest: bool  # newer than all beats heard before, on whatever path
    echoed_at: float  # when I sent the newest of my beats that it echoes; -inf without life


@dataclass(frozen=True, slots=True, kw_only=True)
class WayChanged:
    """An edge of a path's state, for alarms."""

    path: PathId
    before: Way
    after: Way


NOTHING = Verdict(life=False, newest=False, echoed_at=float("-inf"))


@dataclass(slots=True)
class _Path:
    heard_at: float = float("-inf")  # a beat that was life
    sequence: Sequence = NO_SEQUENCE  # newest of the peer's boot, life or not
    heard_there_at: float = float("-inf")  # when I sent the newest beat that the peer heard on this path
    way: Way = Way.UNKNOWN
    beats: int = 0  # that were life


@dataclass(slots=True)
class Detector:
    """The memory of one pair of boots. One for the life of the agent."""

    boot: Boot  # mine
    paths: tuple[PathId, ...]
    timeout_s: float
    started_at: float
    peer_boot: Boot = NO_BOOT
    newest: Sequence = NO_SEQUENCE
    best_echo: Sequence = NO_SEQUENCE
    sent: OrderedDict[Sequence, float] = field(default_factory=OrderedDict)
    known: dict[PathId, _Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.known = {path: _Path() for path in self.paths}

    def sending(self, sequence: Sequence, *, now: float) -> None:
        """A beat of mine is about to leave. Called before it leaves: evidence may be too old, never too young."""
        self.sent[sequence] = now
        if len(self.sent) > SENT_MAX:
            self.sent.popitem(last=False)

    def heard(self, envelope: Envelope, *, now: float) -> Verdict:
        """What a beat proves. The gate has let it in; its path is one of mine."""
        path = self.known.get(envelope.path)
        if path is None:
            return NOTHING
        echoed, echoed_at = self._echoed(envelope)
        if not self._follows(envelope, echoed) or envelope.sequence <= path.sequence:
            return NOTHING
        path.sequence = envelope.sequence
        if echoed_at is None:
            return NOTHING  # what a node says that has not heard me in this boot may have been said long ago
        path.heard_at = now
        path.beats += 1
        self.best_echo = max(self.best_echo, echoed)
        self._note_echoes(envelope)
        newest = envelope.sequence > self.newest
        if newest:
            self.newest = envelope.sequence
        return Verdict(life=True, newest=newest, echoed_at=echoed_at)

    def _echoed(self, envelope: Envelope) -> tuple[Sequence, float | None]:
        """The newest of my beats of this boot that it echoes, and when I sent it."""
        if envelope.echo_boot != self.boot:
            return NO_SEQUENCE, None
        echoed = max((echo.sequence for echo in envelope.echoes), default=NO_SEQUENCE)
        return echoed, self.sent.get(echoed)

    def _follows(self, envelope: Envelope, echoed: Sequence) -> bool:
        """Whether the beat is of the peer's present boot, or of a new one.

        A lower boot is a replay, unless it echoes what no earlier beat could: then the peer lost its number.
        """
        if envelope.boot == self.peer_boot:
            return True
        if envelope.boot < self.peer_boot and echoed <= self.best_echo:
            return False
        self.peer_boot = envelope.boot
        self.newest = NO_SEQUENCE
        for path in self.known.values():
            path.sequence = NO_SEQUENCE
        return True

    def _note_echoes(self, envelope: Envelope) -> None:
        for echo in envelope.echoes:
            path = self.known.get(echo.path)
            at = self.sent.get(echo.sequence)
            if path is not None and at is not None:
                path.heard_there_at = max(path.heard_there_at, at)

    def age_s(self, path: PathId, *, now: float) -> float:
        """How long ago a beat that is life came on this path."""
        return now - self.known[path].heard_at

    def look(self, *, now: float) -> tuple[WayChanged, ...]:
        """The paths whose state has changed since the last look."""
        changed = []
        for number, path in self.known.items():
            way = self._way(path, now=now)
            if way is not path.way:
                changed.append(WayChanged(path=number, before=path.way, after=way))
                path.way = way
        return tuple(changed)

    def _way(self, path: _Path, *, now: float) -> Way:
        limit_s = self.timeout_s / 2
        if now - max(path.heard_at, self.started_at) >= limit_s:
            return Way.LOST
        if path.heard_at == float("-inf"):
            return Way.UNKNOWN
        half = now - max(path.heard_there_at, self.started_at) >= limit_s
        return Way.HALF if half else Way.BOTH
