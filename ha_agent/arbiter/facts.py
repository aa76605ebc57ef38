"""What an event teaches, whatever the phase: facts are taken in here, before the table chooses an edge.

Evidence for the lease is taken in here too. Invariant: evidence never revives a lease that has lapsed, and none counts
while the carrier is down.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ha_agent.arbiter import events as ev
from ha_agent.arbiter import policy
from ha_agent.arbiter.actions import Action, Alarm, StoreBook, Subject
from ha_agent.arbiter.state import BLOCKED_S, LAN_FRESH_S, NEVER, SETTLE_S, STORE_EVERY_S, SWITCHES_KEPT, State
from ha_agent.arbiter.values import CLAIMS, SERVING, Beat, Epoch, Identity, Permit, Phase, Reason, Switched

Actions = list[Action]


def write(s: State, out: Actions, **changes: Any) -> None:
    """Change the book and order it stored; nothing when nothing changes."""
    book = replace(s.book, **changes)
    if book != s.book:
        s.book = book
        order_store(s, out)


def order_store(s: State, out: Actions) -> None:
    """Order the book, as it is, to be stored."""
    s.store_asked = s.now
    out.append(StoreBook(book=s.book))


def witness(s: State, at: float) -> None:
    """Evidence dated ``at`` that I may go on holding the address."""
    # A lease that lapsed stays lapsed: whatever is read after a stall was sent before it.
    if (s.phase in SERVING or s.phase is Phase.ADDING) and s.link_up and s.now < s.lease_until:
        s.lease_until = max(s.lease_until, at + s.settings.lease_s)


def absorb(s: State, e: ev.Event, out: Actions) -> None:
    """Take the facts of the event into the (copied) state."""
    assert e.now >= s.now, (e.now, s.now)
    if e.now - s.now > s.settings.late_s:
        s.judge_after = e.now + SETTLE_S
    s.now = e.now
    taker = TAKERS.get(type(e))
    if taker is not None:
        taker(s, e, out)


def _tick(s: State, e: ev.Tick, out: Actions) -> None:
    if s.phase in SERVING and s.link_up and ((s.stored.single and s.book.single) or not policy.gateway_usable(s)):
        witness(s, s.now)  # nobody else could say anything: the carrier is the evidence
    if s.stored != s.book and s.store_failed and s.now - s.store_asked >= STORE_EVERY_S:
        order_store(s, out)
    if s.phase not in SERVING or s.peer is None or not s.peer.serves:
        _alarm(s, out, Subject.DUAL_ACTIVE, None)
    _alarm(s, out, Subject.HELD, Reason.HELD if policy.held(s) else None)
    _alarm(s, out, Subject.FAULT_NOT_SWITCHED, _fault_not_switched(s))
    _alarm(s, out, Subject.NOBODY_ELIGIBLE, _nobody_eligible(s))
    if s.foreign is not None and not policy.blocked(s):
        s.foreign = None
    _alarm(s, out, Subject.FOREIGN_HOLDER, Reason.FOREIGN_HOLDER if s.foreign is not None else None)


def _fault_not_switched(s: State) -> Reason | None:
    if s.phase not in SERVING or not s.faults:
        return None
    return Reason.FAULTY


def _nobody_eligible(s: State) -> Reason | None:
    peer = s.peer
    if peer is None or s.now - s.heard_at > s.settings.timeout_s or peer.serves or s.phase in SERVING:
        return None
    return None if peer.sound or policy.sound(s) else Reason.UNSOUND


def _alarm(s: State, out: Actions, subject: Subject, reason: Reason | None) -> None:
    stands = subject.value in s.raised
    if stands == (reason is not None):
        return
    s.raised = s.raised ^ {subject.value}
    out.append(Alarm(subject=subject, raised=not stands, reasons=(reason,) if reason else (), mac=s.foreign))


def _beat(s: State, e: ev.BeatHeard, out: Actions) -> None:
    beat = e.beat
    s.peer = beat
    s.heard_at = s.now
    s.echoed_at = max(s.echoed_at, e.echoed_at)
    if beat.identity != s.peer_identity:
        s.peer_identity = beat.identity
        _compare(s, beat.identity, out)
    if s.phase in SERVING and beat.serves:
        _alarm(s, out, Subject.DUAL_ACTIVE, Reason.PEER_HEARD)
    witness(s, e.echoed_at)
    if s.permit is Permit.CONSENT and s.phase is Phase.CLAIMING and beat.consent == s.epoch:
        s.claim_evidence = max(s.claim_evidence, e.echoed_at)
    if beat.promised > s.book.promised:
        write(s, out, promised=beat.promised)
    if beat.serves:
        s.served_at = s.now
    if beat.serves and beat.epoch > s.followed:
        s.followed = beat.epoch
        s.peer_held = True
    _merge(s, beat)


def _compare(s: State, theirs: Identity, out: Actions) -> None:
    s.contradictions = policy.contradictions(s.settings.identity, theirs)
    if s.contradictions or Subject.CONTRADICTION.value in s.raised:
        s.raised = s.raised - {Subject.CONTRADICTION.value} | (
            {Subject.CONTRADICTION.value} if s.contradictions else frozenset()
        )
        out.append(Alarm(subject=Subject.CONTRADICTION, raised=bool(s.contradictions), reasons=s.contradictions))


def _merge(s: State, beat: Beat) -> None:
    """What both nodes should know alike: automatic switches, their release, maintenance."""
    s.released = max(s.released, beat.released)
    if beat.switches:
        known = {one.epoch for one in s.switches}
        for told in beat.switches:
            if told.epoch not in known:
                note_switch(s, told.epoch, s.now - told.at)
                # It served since I did, although none of its beats of then came through.
                s.peer_held = s.peer_held or told.epoch > s.book.served
    if beat.maintenance_serial > s.maintenance_serial:
        s.maintenance_serial = beat.maintenance_serial
        s.maintenance_until = s.now + beat.maintenance_left_s


def note_switch(s: State, epoch: Epoch, at: float) -> None:
    """Remember an automatic switch; the newest few are enough to know that there were two."""
    everything = (*s.switches, Switched(epoch=epoch, at=at))
    s.switches = tuple(sorted(everything, key=lambda one: one.epoch)[-SWITCHES_KEPT:])


def _link(s: State, e: ev.LinkChanged, out: Actions) -> None:
    if e.up and not s.link_up:
        s.link_since = s.now
        s.neighbour_at = NEVER
    if s.link_up and not e.up:
        s.link_lost_at = s.now
    s.link_up = e.up


def _lan(s: State, e: ev.LanAnswered, out: Actions) -> None:
    cut_off = not policy.lan_seen(s) or (e.gateway and s.gateway_at == NEVER)
    if e.gateway:
        s.gateway_at = max(s.gateway_at, e.asked_at)
        if s.now - e.asked_at <= LAN_FRESH_S:
            witness(s, e.asked_at)
    else:
        s.neighbour_at = max(s.neighbour_at, e.asked_at)
    # Who was cut off has not heard a silence: it counts from here.
    if cut_off and policy.lan_seen(s):
        s.lan_since = s.now


def _probed(s: State, e: ev.ProbeDone, out: Actions) -> None:
    clear = e.answered_by is None and e.sent
    if clear and e.asked_at != s.probe_asked:
        return
    s.probe_clear = e.asked_at if clear else NEVER
    s.probe_cleared_at = s.now if clear else NEVER
    if e.answered_by is None:
        return
    # The kernel of a frozen peer answers until its lease lapses; what answers after that has an agent that renews.
    if s.settings.peer_mac in {None, e.answered_by} and s.now - s.heard_at >= s.settings.timeout_s:
        s.peer_answered_at = s.now
    if e.answered_by != s.settings.peer_mac:
        s.foreign = e.answered_by
        s.blocked_until = s.now + BLOCKED_S


def _added(s: State, e: ev.AddressAdded, out: Actions) -> None:
    s.holds = True


def _gone(s: State, e: ev.AddressGone, out: Actions) -> None:
    s.holds = False


def _address_failed(s: State, e: ev.AddressFailed, out: Actions) -> None:
    out.append(Alarm(subject=Subject.ADDRESS_CALL, raised=True, reasons=(Reason.ADDRESS_FAILED,)))


def _foreign(s: State, e: ev.ForeignSeen, out: Actions) -> None:
    s.foreign = e.mac
    s.blocked_until = s.now + BLOCKED_S


def _stored(s: State, e: ev.BookStored, out: Actions) -> None:
    s.stored = e.book
    if s.store_failed:
        s.store_failed = False
        out.append(Alarm(subject=Subject.STORE, raised=False))


def _store_failed(s: State, e: ev.BookFailed, out: Actions) -> None:
    if not s.store_failed:
        out.append(Alarm(subject=Subject.STORE, raised=True, reasons=(Reason.STORE_FAILED,)))
    s.store_failed = True


def _engine(s: State, e: ev.EngineReported, out: Actions) -> None:
    s.engine = e.engine
    if e.engine.current:
        s.current_at = s.now
    # An engine that has seen a higher epoch refuses to serve below it: then the next one is above that.
    promised = max(s.book.promised, e.engine.promised)
    write(s, out, data=e.engine.data, sound=e.engine.sound, promised=promised)


def _engine_lost(s: State, e: ev.EngineLost, out: Actions) -> None:
    s.engine = None


def _health(s: State, e: ev.HealthReported, out: Actions) -> None:
    s.faults = e.faults
    if s.spent:
        s.spent = s.spent & {fault.cause for fault in e.faults}


def _maintenance(s: State, e: ev.MaintenanceSet, out: Actions) -> None:
    s.maintenance_until = s.now + e.seconds
    s.maintenance_serial += 1


def _window(s: State, e: ev.WindowSet, out: Actions) -> None:
    s.settings = replace(s.settings, identity=replace(s.settings.identity, upgrading=e.open))
    if s.peer_identity is not None:
        _compare(s, s.peer_identity, out)


def _release(s: State, e: ev.HoldReleased, out: Actions) -> None:
    s.released = max(s.released, s.book.promised)


TAKERS: dict[type, Callable[[State, Any, Actions], None]] = {
    ev.Tick: _tick,
    ev.BeatHeard: _beat,
    ev.LinkChanged: _link,
    ev.LanAnswered: _lan,
    ev.ProbeDone: _probed,
    ev.AddressAdded: _added,
    ev.AddressGone: _gone,
    ev.AddressFailed: _address_failed,
    ev.ForeignSeen: _foreign,
    ev.BookStored: _stored,
    ev.BookFailed: _store_failed,
    ev.EngineReported: _engine,
    ev.EngineLost: _engine_lost,
    ev.HealthReported: _health,
    ev.MaintenanceSet: _maintenance,
    ev.WindowSet: _window,
    ev.HoldReleased: _release,
}

assert CLAIMS.isdisjoint(SERVING)
