"""``begin`` and ``step``: the arbiter as one pure function.

The driver's duties: hand over events one at a time in order; perform the actions in order before the next event; send
``beat_of(state, now)`` on every path at every beat interval; ``Tick`` at that interval. Invariant: the state that was
given is never changed, so a driver may keep it, and a test may explore from it.
"""

from __future__ import annotations

from dataclasses import replace

from ha_agent.arbiter.actions import (
    Action,
    AddAddress,
    Announce,
    DirectEngine,
    EngineRole,
    Moved,
    Quiesce,
    RemoveAddress,
    RenewAddress,
    ResumeServices,
    SendBeat,
    StartServices,
    StopServices,
    WouldDo,
)
from ha_agent.arbiter.events import Event
from ha_agent.arbiter.facts import Actions, absorb, order_store
from ha_agent.arbiter.state import Book, Settings, State
from ha_agent.arbiter.transitions import TABLE, Row, index
from ha_agent.arbiter.values import NO_EPOCH, Cause, Phase

Index = dict[tuple[Phase, type], tuple[Row, ...]]
INDEX: Index = index(TABLE)
SERIALS_PER_BOOT = 1_000_000

DEEDS = (
    AddAddress,
    RenewAddress,
    RemoveAddress,
    Announce,
    DirectEngine,
    StartServices,
    StopServices,
    Quiesce,
    ResumeServices,
)


def step(state: State, event: Event, rows: Index = INDEX) -> tuple[State, tuple[Action, ...]]:
    """What the event makes of the state, and what is to be done about it."""
    s = state.copy()
    out: Actions = []
    absorb(s, event, out)
    for row in rows[s.phase, type(event)]:
        if all(guard(s, event) for guard in row.guards):
            _take(s, event, row, out)
            break
    return s, _marked(s.settings, out)


def _take(s: State, event: Event, row: Row, out: Actions) -> None:
    before = s.phase
    if row.to is not None:
        s.phase = row.to
        s.since = s.now
    at = len(out)
    for effect in row.effects:
        effect(s, event, out)
    if not row.quiet:
        moved = Moved(row=row.name, why=row.why, before=before, after=s.phase, cause=s.cause, epoch=s.epoch)
        out.insert(at, moved)


def _marked(settings: Settings, out: Actions) -> tuple[Action, ...]:
    if not settings.observe:
        return tuple(out)
    return tuple(WouldDo(deed=action) if isinstance(action, DEEDS) else action for action in out)


def begin(
    settings: Settings,
    book: Book,
    *,
    now: float,
    boot: int,
    link_up: bool,
    address_present: bool = False,
    address_left_s: float = 0.0,
    same_kernel_boot: bool = False,
) -> tuple[State, tuple[Action, ...]]:
    """The first state, from what was stored and from what the kernel has.

    ``boot`` is the boot number of the beats, already stored. ``address_left_s`` is what the kernel says is left of the
    lease. No beat may go out before these actions were ordered: a beat of a starting node says that it holds nothing.
    """
    assert settings.observe == settings.identity.observing, "the peer must know who only observes"
    unsure = (book.promised != NO_EPOCH and not book.active) or not book.clean
    fresh = book.promised == NO_EPOCH
    s = State(
        settings=settings,
        book=book,
        stored=book,
        boot_at=now,
        boot_wait_s=settings.boot_wait_unsure_s if unsure and not fresh else settings.boot_wait_s,
        now=now,
        since=now,
        serial=boot * SERIALS_PER_BOOT,
        link_up=link_up,
        link_since=now,
        followed=book.data,
        holds=address_present,
        directed=book.promised,
    )
    out: Actions = []
    # The lease that is left shows that nobody else may have taken over meanwhile.
    if book.active and same_kernel_boot and address_present and address_left_s > 0:
        _resume(s, min(address_left_s, settings.lease_s), out)
    else:
        out.append(StopServices())
        out.append(DirectEngine(role=EngineRole.STANDBY, epoch=book.promised))
        if address_present:
            s.removed_at = now
            out.append(RemoveAddress())
    if book.clean:
        s.book = replace(s.book, clean=False)
        order_store(s, out)
    return s, _marked(settings, out)


def _resume(s: State, left_s: float, out: Actions) -> None:
    s.phase = Phase.ACTIVE
    s.cause = Cause.RESUMED
    s.epoch = s.followed = s.directed = s.book.served
    s.lease_until = s.now + left_s
    out.append(
        Moved(row="resume", why=RESUME_WHY, before=Phase.STARTING, after=Phase.ACTIVE, cause=s.cause, epoch=s.epoch)
    )
    out.append(Announce(count=1))
    out.append(DirectEngine(role=EngineRole.ACTIVE, epoch=s.epoch))
    out.append(StartServices(epoch=s.epoch, cause=s.cause))
    out.append(SendBeat())


RESUME_WHY = (
    "the agent restarted within the same kernel boot and its lease has not lapsed: it never stopped being Active"
)
