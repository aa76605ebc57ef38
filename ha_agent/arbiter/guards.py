"""The conditions of the table's rows. Each is one sentence about the state, named as it reads in the picture.

A guard sees the state after the facts of the event were taken in. ``s.now`` is the time of the event.
"""

from __future__ import annotations

from typing import Any

from ha_agent.arbiter import policy
from ha_agent.arbiter.beat import beat_of
from ha_agent.arbiter.state import (
    ADD_WAIT_S,
    PROBE_EVERY_S,
    PROBE_FRESH_S,
    REMOVE_EVERY_S,
    RENEW_EVERY_S,
    STAGGER_S,
    State,
)
from ha_agent.arbiter.values import NO_EPOCH, Cause, Offer, Permit, Phase, Policy, Reason, Station

# -- time and silence ---------------------------------------------


def _silent_for(s: State, least_s: float) -> bool:
    """Whether nothing was heard of the peer for so long, counted from the latest moment at which I could not have."""
    return s.now - max(_shown_at(s), _back_at(s)) >= least_s + _stagger_s(s)


def _shown_at(s: State) -> float:
    return max(s.heard_at, s.peer_answered_at)


def _back_at(s: State) -> float:
    return max(s.link_since, s.lan_since, s.boot_at)


def _stagger_s(s: State) -> float:
    """What I wait longer, so that two who count from one moment do not claim at one moment.

    Nothing: the Standby of an Active that fell silent, and else the Primary. One step: else the Secondary. Two steps
    more: who was fenced, because the other one was its Standby.
    """
    fenced = s.phase is Phase.FENCED
    active_fell_silent = s.peer is not None and s.peer.serves and _shown_at(s) >= _back_at(s) and not fenced
    steps = 0 if active_fell_silent or s.settings.station is Station.PRIMARY else 1
    return STAGGER_S * (steps + 2 * fenced)


def _waited_for(s: State, least_s: float) -> bool:
    """Whether a node that booted has waited so long for the other one."""
    return s.now - s.boot_at >= least_s + _stagger_s(s)


def left(s: State) -> bool:
    """The peer said that it was stopped and holds nothing."""
    return s.peer is not None and s.peer.phase is Phase.LEFT and not s.peer.holds


def silent_enough(s: State, e: Any) -> bool:
    """Silent for T on all paths, or left; a booting node waits for the boot wait too."""
    if left(s):
        return True
    return _silent_for(s, s.settings.timeout_s) and (s.phase is not Phase.STARTING or _waited_for(s, s.boot_wait_s))


def peer_quiet(s: State, e: Any) -> bool:
    """Nothing was heard of the peer for some beats, or it left."""
    return left(s) or s.now - s.heard_at >= s.settings.quiet_s


def loop_on_time(s: State, e: Any) -> bool:
    """This process was not stalled just now: sockets were emptied since."""
    return s.now >= s.judge_after


def peer_heard(s: State, e: Any) -> bool:
    """A beat came within half the timeout."""
    return s.now - s.heard_at <= s.settings.timeout_s / 2


def peer_lost(s: State, e: Any) -> bool:
    """No beat for half the timeout."""
    return not peer_heard(s, e)


def peer_gone(s: State, e: Any) -> bool:
    """Silent for the timeout (or left): its lease is over. An administrator may accept a dual holder instead."""
    return e.accept_dual or left(s) or s.now - max(s.heard_at, s.peer_answered_at, s.boot_at) >= s.settings.timeout_s


# -- address and lease ---------------------------------------------


def lease_lapsed(s: State, e: Any) -> bool:
    """now >= evidence + lease."""
    return s.now >= s.lease_until


def holding_nothing(s: State, e: Any) -> bool:
    """The address is certainly not on this node."""
    return not s.holds


def still_holding(s: State, e: Any) -> bool:
    """The address is, or may be, on this node."""
    return s.holds


def removal_due(s: State, e: Any) -> bool:
    """The last order to remove is a moment old."""
    return s.now - s.removed_at >= REMOVE_EVERY_S


def renewal_due(s: State, e: Any) -> bool:
    """The last renewal is half a second old."""
    return s.now - s.renewed_at >= RENEW_EVERY_S


def link_up(s: State, e: Any) -> bool:
    """The interface of the cluster IP has carrier."""
    return s.link_up


def link_down(s: State, e: Any) -> bool:
    """The interface of the cluster IP has no carrier."""
    return not s.link_up


def lan_seen(s: State, e: Any) -> bool:
    """My carrier is up and I am not cut off: the gateway answers (if there is a usable one)."""
    return policy.lan_seen(s)


def announcement_due(s: State, e: Any) -> bool:
    """The last announcement is a second old."""
    return s.now - s.announced_at >= 1.0


def add_overdue(s: State, e: Any) -> bool:
    """The kernel did not answer."""
    return s.now - s.since >= ADD_WAIT_S


# -- probe ---------------------------------------------


def probe_due(s: State, e: Any) -> bool:
    """The last probe is half a second old."""
    return s.now - s.probe_asked >= PROBE_EVERY_S


def nobody_answers(s: State, e: Any) -> bool:
    """The last probe ended just now and nobody answered for the cluster IP."""
    return s.now - s.probe_cleared_at <= PROBE_FRESH_S


def claim_probed(s: State, e: Any) -> bool:
    """Nobody answered, asked since the claim began; or an administrator accepts a dual holder."""
    return s.accept_dual or (s.probe_clear >= s.since and nobody_answers(s, e))


def somebody_answered(s: State, e: Any) -> bool:
    """Somebody answers for the cluster IP, or the question could not be sent."""
    return (e.answered_by is not None or not e.sent) and not s.accept_dual


# -- peer ---------------------------------------------


def peer_serves(s: State, e: Any) -> bool:
    """The peer holds the role."""
    return s.peer is not None and s.peer.serves


def peer_outranks(s: State, e: Any) -> bool:
    """The peer serves a higher epoch (or the same one, and is the Primary)."""
    peer = s.peer
    if peer is None or not peer.serves:
        return False
    if peer.epoch == s.epoch:
        return peer.identity.station is Station.PRIMARY and s.settings.station is Station.SECONDARY
    return peer.epoch > s.epoch


def peer_idle(s: State, e: Any) -> bool:
    """The peer lives, and neither serves nor claims nor holds anything."""
    peer = s.peer
    return (
        peer is not None
        and not peer.serves
        and not peer.claims
        and not peer.holds
        and peer.phase is not Phase.LEFT
        and s.now - s.heard_at < s.settings.timeout_s
    )


def peer_left(s: State, e: Any) -> bool:
    """The peer said that it was stopped."""
    return left(s)


def peer_present(s: State, e: Any) -> bool:
    """The beat is of a node that was not stopped."""
    return s.peer is not None and s.peer.phase is not Phase.LEFT


def epoch_is_news(s: State, e: Any) -> bool:
    """The engine was not yet told of the peer's epoch."""
    return s.peer is not None and s.peer.epoch != s.directed


def settings_fit(s: State, e: Any) -> bool:
    """Nothing contradicts between the two nodes."""
    return not s.contradictions


# -- election ---------------------------------------------


def not_given_away(s: State, e: Any) -> bool:
    """The peer does not stand for the very epoch that I consented to: then it is on its way."""
    return s.peer is not None and (s.peer.candidate == NO_EPOCH or s.peer.candidate != s.consent)


def both_informed(s: State, e: Any) -> bool:
    """Both nodes know what they have; a ready Standby does not wait for an Active that restarted."""
    if s.peer is None or not policy.informed(s):
        return False
    return s.peer.informed or (s.peer.phase is Phase.STARTING and policy.eager(s, ready=not policy.reasons(s)))


def able(s: State, e: Any) -> bool:
    """I could serve."""
    return policy.able(s)


def i_win(s: State, e: Any) -> bool:
    """Of the two I am the better one."""
    return s.peer is not None and policy.wins(beat_of(s, s.now), s.peer)


def peer_wins(s: State, e: Any) -> bool:
    """Of the two the peer is the better one, or its administrator forces it."""
    return s.peer is not None and not policy.wins(beat_of(s, s.now), s.peer)


def i_lose_election(s: State, e: Any) -> bool:
    """My candidacy is not for an offer, and the peer is the better one now."""
    return s.accepts == 0 and not s.forced and peer_wins(s, e)


def peer_asks(s: State, e: Any) -> bool:
    """The peer asks for consent to an epoch above all that I promised, and I have not given it."""
    return s.peer is not None and s.peer.candidate == s.book.promised != s.consent and s.peer.candidate != NO_EPOCH


def asked_fits(s: State, e: Any) -> bool:
    """Nothing contradicts, or the candidate is forced past what may be forced."""
    assert s.peer is not None
    return not s.contradictions or (s.peer.candidate_forced and policy.NEVER_FORCED.isdisjoint(s.contradictions))


def epoch_durable(s: State, e: Any) -> bool:
    """My reserved epoch is durable."""
    return s.stored.promised >= s.epoch


def peer_consents(s: State, e: Any) -> bool:
    """The peer holds nothing and promised my epoch."""
    peer = s.peer
    return peer is not None and peer.consent == s.epoch != NO_EPOCH and not peer.holds and not peer.serves


def consent_durable_now(s: State, e: Any) -> bool:
    """The epoch that I consent to has just become durable."""
    return s.consent != NO_EPOCH and e.book.promised == s.consent


def epoch_overtaken(s: State, e: Any) -> bool:
    """A higher epoch was promised meanwhile."""
    return s.book.promised > s.epoch


def not_for_this_offer(s: State, e: Any) -> bool:
    """My candidacy is not the answer to the offer that the peer makes."""
    offer = s.peer.offer if s.peer is not None else None
    return not (s.phase is Phase.CANDIDATE and offer is not None and offer.serial == s.accepts)


# -- claim ---------------------------------------------


def sound(s: State, e: Any) -> bool:
    """My data is consistent and was synced."""
    return policy.sound(s)


def store_works(s: State, e: Any) -> bool:
    """The last write of the book succeeded."""
    return not s.store_failed


def ready_or_available(s: State, e: Any) -> bool:
    """Ready, or the policy prefers a node that is not to none."""
    return s.settings.policy is Policy.AVAILABILITY or not policy.reasons(s)


def not_in_maintenance(s: State, e: Any) -> bool:
    """No administrator works on the pair; the node that served last may come back all the same."""
    return not policy.maintained(s) or not s.peer_held


def silence_decides(s: State, e: Any) -> bool:
    """An address can be asked for; else an administrator decides, and only the node that served last comes back."""
    return not s.settings.by_hand or (not s.peer_held and s.book.served == s.book.promised)


def by_silence(s: State, e: Any) -> bool:
    """The claim rests on silence."""
    return s.permit is Permit.SILENCE


def served_durable(s: State, e: Any) -> bool:
    """The epoch to serve in is durable as such."""
    return s.stored.served >= s.epoch


def permit_valid(s: State, e: Any) -> bool:
    """What allows the claim is fresh enough."""
    return s.now < permit_until(s)


def permit_over(s: State, e: Any) -> bool:
    """What allowed the claim is too old."""
    return not permit_valid(s, e)


def evidence(s: State) -> float:
    """What a new lease counts from."""
    if s.permit is Permit.CONSENT:
        return s.claim_evidence
    if s.permit is Permit.SILENCE and policy.gateway_usable(s):
        return s.gateway_at
    return s.now


def permit_until(s: State) -> float:
    """Until when the claim may be performed."""
    if s.permit is Permit.CONSENT:
        return s.claim_evidence + min(s.settings.lease_s, s.settings.timeout_s / 2)
    return s.since + s.settings.timeout_s / 2


def lease_would_last(s: State, e: Any) -> bool:
    """A lease from the newest evidence would last."""
    return evidence(s) + s.settings.lease_s > s.now


# -- serving ---------------------------------------------


def promised_above(s: State, e: Any) -> bool:
    """An epoch above mine was promised to a peer that does not serve it."""
    return s.book.promised > s.epoch


def no_raise_pending(s: State, e: Any) -> bool:
    """No higher epoch of mine is being stored."""
    return s.book.served == s.epoch


def higher_epoch_durable(s: State, e: Any) -> bool:
    """My next epoch is durable."""
    return s.stored.served > s.epoch


def not_single(s: State, e: Any) -> bool:
    """Not yet known to be alone."""
    return not s.book.single


def single(s: State, e: Any) -> bool:
    """Known to be alone."""
    return s.book.single


def long_alone(s: State, e: Any) -> bool:
    """The peer was silent for 2T, my carrier up all the while, nobody else answered for the address."""
    quiet_s = s.now - max(s.heard_at, s.link_since, s.boot_at)
    return quiet_s >= 2 * s.settings.timeout_s and s.foreign is None


def peer_silent(s: State, e: Any) -> bool:
    """The peer was silent for T."""
    return s.now - s.heard_at >= s.settings.timeout_s


# -- hand-over ---------------------------------------------


def peer_takes(s: State, e: Any) -> bool:
    """The peer is a ready Standby; forced: a Standby."""
    peer = s.peer
    return peer is not None and peer.phase is Phase.STANDBY and (peer.ready or e.force)


def data_may_be_lost(s: State, e: Any) -> bool:
    """The peer's data is sound, or the loss is accepted."""
    return s.peer is not None and (s.peer.sound or e.accept_data_loss)


def no_backup(s: State, e: Any) -> bool:
    """No full backup runs, or force ends it."""
    return e.force or s.engine is None or not s.engine.backup


def epoch_settled(s: State, e: Any) -> bool:
    """What is drained now is of the epoch that is offered: no higher one of mine is being stored; or it is forced."""
    return no_raise_pending(s, e) or e.force


def forcibly_fit(s: State, e: Any) -> bool:
    """Nothing contradicts, or only what may be forced."""
    return not s.contradictions or (e.force and policy.NEVER_FORCED.isdisjoint(s.contradictions))


def peer_link_up(s: State, e: Any) -> bool:
    """The peer's interface of the cluster IP has carrier."""
    return s.peer is not None and s.peer.link_up


def peer_link_outlived_mine(s: State, e: Any) -> bool:
    """The peer spoke after my link went down: not the switch that took both."""
    return s.echoed_at >= s.link_lost_at


def peer_ready(s: State, e: Any) -> bool:
    """The peer is a ready Standby; a node whose link is down is not ready."""
    return s.peer is not None and s.peer.ready and s.peer.phase is Phase.STANDBY


def fault_switches(s: State, e: Any) -> bool:
    """A fault whose switch is on, and which has not caused a switch since it was last seen good."""
    return any(fault.switches and fault.cause not in s.spent for fault in s.faults)


def not_held(s: State, e: Any) -> bool:
    """The pair did not switch by itself twice in 15 minutes."""
    return not policy.held(s)


def no_maintenance(s: State, e: Any) -> bool:
    """No administrator works on the pair."""
    return not policy.maintained(s)


def retry_due(s: State, e: Any) -> bool:
    """The last attempt was long enough ago."""
    return s.now >= s.retry_at


def past_deadline(s: State, e: Any) -> bool:
    """The hand-over took longer than it may."""
    return s.now >= s.offer_deadline


def loss_not_accepted(s: State, e: Any) -> bool:
    """Nobody accepted that changes are lost."""
    return not s.lossy


def peer_accepts(s: State, e: Any) -> bool:
    """The peer accepts this very offer with an epoch above mine."""
    return (
        s.offer is not None
        and s.peer is not None
        and s.peer.accepts == s.offer.serial
        and s.peer.candidate > s.epoch
        and s.peer.candidate == s.book.promised
    )


def peer_refuses(s: State, e: Any) -> bool:
    """The peer refuses this very offer."""
    refusal = s.peer.refuses if s.peer is not None else None
    return s.offer is not None and refusal is not None and refusal.serial == s.offer.serial


def grant_durable(s: State, e: Any) -> bool:
    """The peer's epoch is promised durably, and that I am not Active any more."""
    return s.stored.promised >= s.granted and not s.stored.active


def _offer(s: State) -> Offer | None:
    return s.peer.offer if s.peer is not None and s.peer.phase is Phase.OFFERING else None


def offer_open(s: State, e: Any) -> bool:
    """The peer offers its role, and I did not refuse that offer."""
    offer = _offer(s)
    return offer is not None and (s.refuses is None or s.refuses.serial != offer.serial)


def offer_hindrance(s: State) -> Reason | None:
    """Why I cannot take the offer at all."""
    offer = _offer(s)
    assert offer is not None
    fatal = NEVER_EVEN_FORCED if offer.forced else None
    for reason in policy.reasons(s):
        if reason is Reason.BEHIND and offer.cause in {Cause.PLANNED, Cause.FORCED}:
            continue  # its deadline is the Active's; until then I catch up
        if reason is Reason.UNSOUND and offer.forced and offer.lossy:
            continue
        if fatal is None or reason in fatal:
            return reason
    return None


NEVER_EVEN_FORCED = frozenset(
    {Reason.LINK_DOWN, Reason.STORE_FAILED, Reason.ENGINE_GONE, Reason.UNSOUND, *policy.NEVER_FORCED}
)


def nothing_hinders(s: State, e: Any) -> bool:
    """I can take the offer."""
    return offer_hindrance(s) is None


def something_hinders(s: State, e: Any) -> bool:
    """I cannot take the offer."""
    return offer_hindrance(s) is not None


def data_equal_or_lossy(s: State, e: Any) -> bool:
    """My positions equal the offered ones, or that is not asked for."""
    offer = _offer(s)
    return offer is not None and (offer.lossy or (s.engine is not None and s.engine.digest == offer.digest))


# -- force ---------------------------------------------


def forced_request(s: State, e: Any) -> bool:
    """The administrator forces it."""
    return bool(e.force)


def data_forcible(s: State, e: Any) -> bool:
    """My data is sound, or its loss is accepted."""
    return policy.sound(s) or e.accept_data_loss
