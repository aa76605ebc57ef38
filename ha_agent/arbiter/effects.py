"""What the rows of the table do: fill in the copied state and name the actions.

An effect never looks whether it may: its row's guards did.
"""

from __future__ import annotations

from typing import Any

from ha_agent.arbiter import guards, policy
from ha_agent.arbiter.actions import (
    AddAddress,
    Alarm,
    Announce,
    DirectEngine,
    EngineRole,
    Probe,
    Quiesce,
    Refused,
    RemoveAddress,
    RenewAddress,
    ResumeServices,
    SendBeat,
    StartServices,
    StopServices,
    Subject,
)
from ha_agent.arbiter.facts import Actions, note_switch, write
from ha_agent.arbiter.state import BLOCKED_S, NEVER, PROBE_FRESH_S, RETRY_S, State
from ha_agent.arbiter.values import NO_EPOCH, Cause, Digest, Offer, Permit, Phase, Reason, Refusal

PROBES_ALONE = 3
PROBES_LAST = 1
PROBE_WAIT_S = 0.1
PROBE_LAST_WAIT_S = 0.05
ANNOUNCEMENTS = 5


# -- letting go ---------------------------------------------


def let_go(s: State, e: Any, out: Actions) -> None:
    """Drop the address at once, and the role with it."""
    remove(s, e, out)
    out.append(StopServices())
    out.append(DirectEngine(role=EngineRole.STANDBY, epoch=s.book.promised))
    s.directed = s.book.promised
    forget_attempts(s)
    write(s, out, active=False, single=False)
    out.append(SendBeat())


def remove(s: State, e: Any, out: Actions) -> None:
    """Order the address to be deleted; until that is certain it counts as held."""
    s.removed_at = s.now
    out.append(RemoveAddress())


def leave(s: State, e: Any, out: Actions) -> None:
    """Stop cleanly."""
    remove(s, e, out)
    out.append(StopServices())
    forget_attempts(s)
    write(s, out, active=False, clean=True)
    out.append(SendBeat())


def block(s: State, e: Any, out: Actions) -> None:
    """For a moment another node should try."""
    s.blocked_until = s.now + BLOCKED_S


def forget_attempts(s: State) -> None:
    """Whatever was being tried is over."""
    s.offer = None
    s.lossy = False
    s.quiesced = False
    s.permit = Permit.NONE
    s.claim_evidence = NEVER
    s.forced = False
    s.accept_dual = False
    s.accepts = 0


def give_up_claim(s: State, e: Any, out: Actions) -> None:
    """Back to following or waiting; the epoch stays reserved and is never used."""
    forget_attempts(s)
    s.epoch = NO_EPOCH


# -- serving ---------------------------------------------


def renew(s: State, e: Any, out: Actions) -> None:
    """Prolong the lease as far as the evidence carries."""
    s.renewed_at = s.now
    out.append(RenewAddress(valid_until=s.lease_until))


def announce(s: State, e: Any, out: Actions) -> None:
    """Tell the LAN again who holds the address."""
    s.announced_at = s.now
    out.append(Announce(count=ANNOUNCEMENTS))


def raise_epoch(s: State, e: Any, out: Actions) -> None:
    """Reserve the next epoch of this station for the service that goes on."""
    epoch = s.settings.station.next_above(s.book.promised)
    write(s, out, promised=epoch, served=epoch)


def become_single(s: State, e: Any, out: Actions) -> None:
    """Durably alone, in a new epoch."""
    epoch = s.settings.station.next_above(s.book.promised)
    write(s, out, promised=epoch, served=epoch, single=True)


def end_single(s: State, e: Any, out: Actions) -> None:
    """The peer is back: carrier alone is no evidence any more."""
    write(s, out, single=False)


def adopt_epoch(s: State, e: Any, out: Actions) -> None:
    """Serve in the epoch that is durable now."""
    s.epoch = s.followed = s.directed = s.stored.served
    out.append(DirectEngine(role=EngineRole.ACTIVE, epoch=s.epoch))
    out.append(SendBeat())


# -- hand-over, Active's side ---------------------------------------------


def begin_planned(s: State, e: Any, out: Actions) -> None:
    """Stop the PBX before anything is given away."""
    s.cause = Cause.FORCED if e.force else Cause.PLANNED
    s.forced = e.force
    s.lossy = e.accept_data_loss
    s.quiesced = True
    s.offer_deadline = s.now + s.settings.drain_s
    out.append(Quiesce(deadline=s.now + s.settings.drain_s / 2, end_backup=e.force))


def offer_drained(s: State, e: Any, out: Actions) -> None:
    """Everything is captured: these positions are final."""
    _offer(s, out, digest=e.digest)


def offer_undrained(s: State, e: Any, out: Actions) -> None:
    """The administrator accepted the loss of what could not be drained; what still runs is stopped for good."""
    out.append(StopServices())
    _offer(s, out, digest=Digest(""))


def offer_for_fault(s: State, e: Any, out: Actions) -> None:
    """Offer at once: what is broken cannot be drained."""
    s.cause = Cause.FAULT
    _offer_now(s, out)


def offer_for_link(s: State, e: Any, out: Actions) -> None:
    """Offer at once: nobody reaches the PBX here any more."""
    s.cause = Cause.LINK
    _offer_now(s, out)


def _offer_now(s: State, out: Actions) -> None:
    s.lossy = True
    s.offer_deadline = s.now + s.settings.timeout_s
    _offer(s, out, digest=Digest(""))


def _offer(s: State, out: Actions, *, digest: Digest) -> None:
    s.serial += 1
    s.offer = Offer(serial=s.serial, digest=digest, lossy=s.lossy, forced=s.forced, cause=s.cause)
    out.append(SendBeat())


def give_up_offer(s: State, e: Any, out: Actions) -> None:
    """Go on serving; nothing was given away."""
    if s.quiesced:
        out.append(ResumeServices())
    if s.cause in {Cause.PLANNED, Cause.FORCED}:
        peer_reasons = s.peer.reasons if s.peer is not None else ()
        out.append(Refused(reason=_why_given_up(s, e), peer_reasons=peer_reasons))
    forget_attempts(s)
    s.retry_at = s.now + RETRY_S
    s.cause = Cause.NONE
    out.append(SendBeat())


def _why_given_up(s: State, e: Any) -> Reason:
    if guards.peer_lost(s, e):
        return Reason.PEER_LOST
    if guards.peer_refuses(s, e):
        return Reason.PEER_REFUSED
    return _GIVEN_UP.get(type(e).__name__, Reason.DEADLINE)


_GIVEN_UP = {"QuiesceFailed": Reason.QUIESCE_FAILED, "SwitchCancelled": Reason.CANCELLED}


def grant(s: State, e: Any, out: Actions) -> None:
    """No way back: break here, so that the peer may make."""
    assert s.peer is not None
    s.granted = s.peer.candidate
    s.token = s.offer.serial if s.offer is not None else 0
    if s.cause is Cause.FAULT:
        s.spent = s.spent | {fault.cause for fault in s.faults if fault.switches}
    quiesced = s.quiesced
    remove(s, e, out)
    if not quiesced:
        out.append(StopServices())
    forget_attempts(s)
    write(s, out, active=False, single=False)


def go(s: State, e: Any, out: Actions) -> None:
    """The *go*: consent to the peer's epoch, repeated in every beat. From here on an ordinary Standby."""
    s.consent = s.granted
    s.granted = NO_EPOCH
    s.epoch = NO_EPOCH
    s.directed = s.consent
    out.append(DirectEngine(role=EngineRole.STANDBY, epoch=s.consent))
    out.append(SendBeat())


# -- hand-over, Standby's side ---------------------------------------------


def accept(s: State, e: Any, out: Actions) -> None:
    """Reserve an epoch for the offer; the answer goes out when it is durable."""
    assert s.peer is not None
    assert s.peer.offer is not None
    s.accepts = s.peer.offer.serial
    s.cause = s.peer.offer.cause
    s.forced = s.peer.offer.forced
    s.refuses = None
    _reserve(s, out)


def refuse_offer(s: State, e: Any, out: Actions) -> None:
    """Say why not; the Active goes on serving."""
    assert s.peer is not None
    assert s.peer.offer is not None
    reason = guards.offer_hindrance(s)
    assert reason is not None
    s.refuses = Refusal(serial=s.peer.offer.serial, reason=reason)
    out.append(SendBeat())


# -- election and claims ---------------------------------------------


def _reserve(s: State, out: Actions) -> None:
    # Never the same number twice, not even after a claim that came to nothing.
    s.epoch = s.settings.station.next_above(s.book.promised)
    s.consent = NO_EPOCH
    s.token = 0
    write(s, out, promised=s.epoch)


def stand(s: State, e: Any, out: Actions) -> None:
    """Ask for the peer's consent."""
    assert s.peer is not None
    s.cause = Cause.REBOOT if s.peer.phase is Phase.STARTING and s.peer_held else Cause.ELECTION
    s.accepts = 0
    s.forced = False
    _reserve(s, out)


def stand_forced(s: State, e: Any, out: Actions) -> None:
    """Ask for the peer's consent in the name of the administrator."""
    s.cause = Cause.FORCED
    s.accepts = 0
    s.forced = True
    _reserve(s, out)


def speak_up(s: State, e: Any, out: Actions) -> None:
    """Let the peer hear of it without waiting for the next beat."""
    out.append(SendBeat())


def consent(s: State, e: Any, out: Actions) -> None:
    """Promise the peer's epoch durably and leave the role to it."""
    assert s.peer is not None
    s.consent = s.peer.candidate
    s.token = 0
    s.epoch = NO_EPOCH
    forget_attempts(s)
    if s.stored.promised >= s.consent:
        out.append(SendBeat())


def probe(s: State, e: Any, out: Actions) -> None:
    """Look whether anybody answers for the cluster IP."""
    _probe(s, out, count=PROBES_ALONE, wait_s=PROBE_WAIT_S)


def _probe(s: State, out: Actions, *, count: int, wait_s: float) -> None:
    s.probe_asked = s.now
    out.append(Probe(asked_at=s.now, count=count, wait_s=wait_s))


def _look_once_more(s: State, out: Actions) -> None:
    _probe(s, out, count=PROBES_LAST, wait_s=PROBE_LAST_WAIT_S)


def claim_by_consent(s: State, e: Any, out: Actions) -> None:
    """Last look at the LAN, while the epoch to serve in becomes durable."""
    assert s.peer is not None
    if s.accepts and s.peer.token != s.accepts and not s.forced:
        s.cause = Cause.ELECTION  # the hand-over came to nothing, the peer let go for another reason
    s.permit = Permit.CONSENT
    s.claim_evidence = e.echoed_at
    _look_once_more(s, out)
    write(s, out, promised=max(s.epoch, s.book.promised), served=s.epoch, active=True, clean=False)


def claim_by_silence(s: State, e: Any, out: Actions) -> None:
    """The peer is dead; the probe is behind us, and with it perhaps a pause of this whole machine, clocks and all."""
    s.cause = Cause.SILENCE
    s.permit = Permit.SILENCE
    _look_once_more(s, out)
    _claim_alone(s, out, single=False)


def claim_forced(s: State, e: Any, out: Actions) -> None:
    """An administrator says that the peer is dead; only the probe is left."""
    forget_attempts(s)
    s.cause = Cause.FORCED
    s.permit = Permit.FORCED
    s.forced = True
    s.accept_dual = e.accept_dual
    _probe(s, out, count=PROBES_ALONE, wait_s=PROBE_WAIT_S)
    _claim_alone(s, out, single=True)


def _claim_alone(s: State, out: Actions, *, single: bool) -> None:
    s.epoch = s.settings.station.next_above(s.book.promised)
    s.consent = NO_EPOCH
    s.token = 0
    s.accepts = 0
    write(s, out, promised=s.epoch, served=s.epoch, active=True, single=single, clean=False)


def add(s: State, e: Any, out: Actions) -> None:
    """Order the address. From here on it counts as held."""
    s.holds = True
    s.lease_until = guards.evidence(s) + s.settings.lease_s
    s.renewed_at = s.now
    not_after = min(guards.permit_until(s), s.lease_until)
    if not s.accept_dual:
        not_after = min(not_after, s.probe_cleared_at + PROBE_FRESH_S)  # a stall here: somebody may have taken it since
    out.append(AddAddress(epoch=s.epoch, valid_until=s.lease_until, not_after=not_after))


def serve(s: State, e: Any, out: Actions) -> None:
    """Active: tell the LAN, the engine, the services, the peer."""
    if s.cause.automatic and s.peer_held:
        note_switch(s, s.epoch, s.now)
    why = policy.reasons(s)  # before the own epoch is the one to be up to date with
    s.followed = s.directed = s.epoch
    s.peer_held = False
    s.refuses = None
    if why and s.cause is Cause.SILENCE:
        out.append(Alarm(subject=Subject.NOT_READY, raised=True, reasons=why))
    forget_attempts(s)
    announce(s, e, out)
    out.append(DirectEngine(role=EngineRole.ACTIVE, epoch=s.epoch))
    out.append(StartServices(epoch=s.epoch, cause=s.cause))
    out.append(SendBeat())


def follow(s: State, e: Any, out: Actions) -> None:
    """Follow the peer's epoch."""
    assert s.peer is not None
    forget_attempts(s)
    s.epoch = NO_EPOCH
    s.consent = NO_EPOCH
    s.token = 0
    s.cause = Cause.NONE
    s.directed = s.peer.epoch
    out.append(DirectEngine(role=EngineRole.STANDBY, epoch=s.peer.epoch))
    write(s, out, active=False, single=False, clean=False)


# -- answers ---------------------------------------------


def refuse(s: State, e: Any, out: Actions) -> None:
    """Tell the administrator why not."""
    out.append(Refused(reason=hindrance(s, e), peer_reasons=s.peer.reasons if s.peer is not None else ()))


def hindrance(s: State, e: Any) -> Reason:
    """Why the request cannot be done, the most telling reason first."""
    if s.contradictions and not guards.forcibly_fit(s, e):
        return s.contradictions[0]
    if s.phase is Phase.ACTIVE:
        if not guards.peer_heard(s, e):
            return Reason.PEER_SILENT
        if not guards.peer_link_up(s, e):
            return Reason.PEER_LINK_DOWN
        if not guards.no_backup(s, e):
            return Reason.BACKUP_RUNNING
        if not guards.epoch_settled(s, e):
            return Reason.STORE_FAILED if s.store_failed else Reason.BUSY
        return Reason.PEER_NOT_READY
    if s.phase not in {Phase.STARTING, Phase.STANDBY, Phase.FENCED}:
        return Reason.BUSY
    if not e.force:
        return Reason.NOT_ACTIVE
    if not guards.data_forcible(s, e):
        return Reason.UNSOUND
    return Reason.PEER_HEARD if guards.peer_serves(s, e) else Reason.BUSY


def refuse_single(s: State, e: Any, out: Actions) -> None:
    """The peer is there, or this node does not serve."""
    out.append(Refused(reason=Reason.PEER_HEARD if s.phase is Phase.ACTIVE else Reason.NOT_ACTIVE))
