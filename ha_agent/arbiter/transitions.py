"""The table: in which phase, on which event, under which conditions, where to, doing what, and why.

For an event the rows of the present phase are tried from the top; the first whose guards all hold is taken, and no
other. So the order is part of the rules: what protects stands above what is wished. ``why`` is logged with every edge
taken and stands in docs/arbiter.md, which is drawn from here. A quiet row is housekeeping: not logged, no edge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ha_agent.arbiter import effects as do
from ha_agent.arbiter import events as ev
from ha_agent.arbiter import guards as g
from ha_agent.arbiter.facts import Actions
from ha_agent.arbiter.state import State
from ha_agent.arbiter.values import SERVING, WAITING, Phase

Guard = Callable[[State, Any], bool]
Effect = Callable[[State, Any, Actions], None]

EVERY_EVENT: tuple[type, ...] = ev.Event.__args__
EVERY_PHASE = frozenset(Phase)
HOLDING = SERVING | {Phase.ADDING}
TRYING = WAITING | {Phase.CANDIDATE}
HANDING = frozenset({Phase.QUIESCING, Phase.OFFERING})


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One rule."""

    name: str
    phases: frozenset[Phase]
    on: tuple[type, ...]
    guards: tuple[Guard, ...] = ()
    to: Phase | None = None  # None: the phase stays
    effects: tuple[Effect, ...]
    why: str
    quiet: bool = False


def _in(*phases: Phase) -> frozenset[Phase]:
    return frozenset(phases)


TABLE: tuple[Row, ...] = (
    # -- what protects: the lease, a higher epoch, an administrator's stop ---------------------------------------------
    Row(
        name="lease-lapsed",
        phases=HOLDING,
        on=EVERY_EVENT,
        guards=(g.lease_lapsed,),
        to=Phase.FENCED,
        effects=(do.let_go,),
        why="no evidence for a whole lease: another node may serve by now. One way: only an election brings it back",
    ),
    Row(
        name="address-absent",
        phases=SERVING,
        on=(ev.AddressGone,),
        to=Phase.FENCED,
        effects=(do.let_go,),
        why="the kernel does not have the address any more: it is not added again behind the peer's back",
    ),
    Row(
        name="stop",
        phases=EVERY_PHASE - {Phase.LEFT},
        on=(ev.StopRequested,),
        to=Phase.LEFT,
        effects=(do.leave,),
        why="the agent is being stopped: the address goes first, then the peer is told",
    ),
    Row(
        name="outranked",
        phases=SERVING,
        on=(ev.BeatHeard,),
        guards=(g.peer_outranks,),
        to=Phase.FENCED,
        effects=(do.let_go,),
        why="two Actives meet: the higher epoch serves; the loser drops the address at once and sends nothing with it",
    ),
    Row(
        name="add-overtaken",
        phases=_in(Phase.ADDING),
        on=(ev.BeatHeard,),
        guards=(g.peer_serves,),
        to=Phase.FENCED,
        effects=(do.let_go,),
        why="the peer serves after all: what was ordered from the kernel is taken back",
    ),
    Row(
        name="meets-lower",
        phases=SERVING,
        on=(ev.BeatHeard,),
        guards=(g.peer_serves, g.announcement_due),
        effects=(do.announce,),
        why="two Actives meet and mine is the higher epoch: the LAN is told again who holds the address",
    ),
    Row(
        name="renew",
        phases=SERVING,
        on=(ev.Tick,),
        guards=(g.renewal_due,),
        effects=(do.renew,),
        why="the lease lives on as far as the evidence carries it",
        quiet=True,
    ),
    Row(
        name="remove-again",
        phases=EVERY_PHASE - HOLDING,
        on=(ev.Tick,),
        guards=(g.still_holding, g.removal_due),
        effects=(do.remove,),
        why="the address was to go and is not known to be gone",
        quiet=True,
    ),
    # -- hand-over: the Active's side ---------------------------------------------
    Row(
        name="granted",
        phases=_in(Phase.OFFERING),
        on=(ev.BeatHeard,),
        guards=(g.peer_accepts,),
        to=Phase.RELEASING,
        effects=(do.grant,),
        why="the peer accepted: break before make, the address goes before the peer may go",
    ),
    Row(
        name="offer-refused",
        phases=_in(Phase.OFFERING),
        on=(ev.BeatHeard,),
        guards=(g.peer_refuses,),
        to=Phase.ACTIVE,
        effects=(do.give_up_offer,),
        why="the peer cannot take the role and says why: this node keeps serving",
    ),
    Row(
        name="peer-lost",
        phases=HANDING,
        on=(ev.Tick,),
        guards=(g.peer_lost,),
        to=Phase.ACTIVE,
        effects=(do.give_up_offer,),
        why="the peer fell silent before anything was given away",
    ),
    Row(
        name="drained",
        phases=_in(Phase.QUIESCING),
        on=(ev.Quiesced,),
        to=Phase.OFFERING,
        effects=(do.offer_drained,),
        why="the PBX is stopped and everything captured: these positions are final",
    ),
    Row(
        name="drain-failed",
        phases=_in(Phase.QUIESCING),
        on=(ev.QuiesceFailed,),
        guards=(g.loss_not_accepted,),
        to=Phase.ACTIVE,
        effects=(do.give_up_offer,),
        why="something still writes at the deadline: the services start again, nothing is lost",
    ),
    Row(
        name="drain-skipped",
        phases=_in(Phase.QUIESCING),
        on=(ev.QuiesceFailed,),
        to=Phase.OFFERING,
        effects=(do.offer_undrained,),
        why="something still writes at the deadline and the administrator accepted the loss",
    ),
    Row(
        name="hand-over-late",
        phases=HANDING,
        on=(ev.Tick,),
        guards=(g.past_deadline,),
        to=Phase.ACTIVE,
        effects=(do.give_up_offer,),
        why="the deadline passed before the go: the services start again",
    ),
    Row(
        name="hand-over-cancelled",
        phases=HANDING,
        on=(ev.SwitchCancelled,),
        to=Phase.ACTIVE,
        effects=(do.give_up_offer,),
        why="the administrator gave it up before the go",
    ),
    Row(
        name="go",
        phases=_in(Phase.RELEASING),
        on=(ev.AddressGone, ev.BookStored, ev.Tick),
        guards=(g.holding_nothing, g.grant_durable),
        to=Phase.STANDBY,
        effects=(do.go,),
        why="the address is gone and the peer's epoch promised durably: go, repeated in every beat",
    ),
    # -- serving ---------------------------------------------
    Row(
        name="raised",
        phases=SERVING,
        on=(ev.BookStored,),
        guards=(g.higher_epoch_durable,),
        effects=(do.adopt_epoch,),
        why="the next epoch is durable: from now on everything bears it",
    ),
    Row(
        name="single-ends",
        phases=SERVING,
        on=(ev.BeatHeard,),
        guards=(g.single, g.peer_present),
        effects=(do.end_single,),
        why="the first beat of the peer: carrier alone is no evidence any more",
    ),
    Row(
        name="single-left",
        phases=_in(Phase.ACTIVE),
        on=(ev.BeatHeard,),
        guards=(g.not_single, g.peer_left, g.no_raise_pending),
        effects=(do.become_single,),
        why="the peer was stopped: from now on carrier suffices",
    ),
    Row(
        name="raise",
        phases=_in(Phase.ACTIVE),
        on=(ev.BeatHeard, ev.Tick),
        guards=(g.promised_above, g.no_raise_pending),
        effects=(do.raise_epoch,),
        why="the peer reserved a higher epoch and does not serve it: the epoch of what is served is raised above it",
    ),
    Row(
        name="single",
        phases=_in(Phase.ACTIVE),
        on=(ev.Tick,),
        guards=(g.not_single, g.long_alone, g.lan_seen, g.no_raise_pending),
        effects=(do.become_single,),
        why="the peer was silent for 2T while the LAN was there: losing the gateway next must not take the address",
    ),
    Row(
        name="single-declared",
        phases=_in(Phase.ACTIVE),
        on=(ev.SingleDeclared,),
        guards=(g.peer_silent, g.no_raise_pending),
        effects=(do.become_single,),
        why="an administrator says that the peer is gone",
    ),
    Row(
        name="single-refused",
        phases=EVERY_PHASE,
        on=(ev.SingleDeclared,),
        effects=(do.refuse_single,),
        why="not Active, or the peer is heard",
    ),
    Row(
        name="switch-fault",
        phases=_in(Phase.ACTIVE),
        on=(ev.HealthReported, ev.BeatHeard, ev.Tick),
        guards=(
            g.fault_switches,
            g.peer_heard,
            g.peer_ready,
            g.settings_fit,
            g.not_held,
            g.no_maintenance,
            g.retry_due,
        ),
        to=Phase.OFFERING,
        effects=(do.offer_for_fault,),
        why="a fault of this node whose switch is on: the ready peer is told at once",
    ),
    Row(
        name="switch-link",
        phases=_in(Phase.ACTIVE),
        on=(ev.BeatHeard, ev.Tick),
        guards=(
            g.link_down,
            g.peer_heard,
            g.peer_ready,
            g.peer_link_outlived_mine,
            g.settings_fit,
            g.not_held,
            g.no_maintenance,
            g.retry_due,
        ),
        to=Phase.OFFERING,
        effects=(do.offer_for_link,),
        why="the link of the cluster IP is down here and up on the ready peer, whatever the switches say",
    ),
    Row(
        name="switch",
        phases=_in(Phase.ACTIVE),
        on=(ev.SwitchRequested,),
        guards=(
            g.peer_heard,
            g.peer_takes,
            g.peer_link_up,
            g.data_may_be_lost,
            g.no_backup,
            g.epoch_settled,
            g.forcibly_fit,
        ),
        to=Phase.QUIESCING,
        effects=(do.begin_planned,),
        why="an administrator wants the roles to change: the PBX is stopped first",
    ),
    Row(
        name="announce-again",
        phases=SERVING,
        on=(ev.ForeignSeen,),
        effects=(do.announce,),
        why="somebody else spoke for the cluster IP: the LAN is told again",
    ),
    # -- following ---------------------------------------------
    Row(
        name="follow",
        phases=_in(Phase.STARTING, Phase.FENCED, Phase.CANDIDATE, Phase.CLAIMING),
        on=(ev.BeatHeard,),
        guards=(g.peer_serves, g.not_for_this_offer),
        to=Phase.STANDBY,
        effects=(do.follow,),
        why="a live Active wins, always",
    ),
    Row(
        name="follow-on",
        phases=_in(Phase.STANDBY),
        on=(ev.BeatHeard,),
        guards=(g.peer_serves, g.epoch_is_news),
        effects=(do.follow,),
        why="the peer serves in another epoch than the one followed",
    ),
    Row(
        name="alive-after-all",
        phases=_in(Phase.CLAIMING),
        on=(ev.BeatHeard,),
        guards=(g.by_silence, g.peer_present),
        to=Phase.STANDBY,
        effects=(do.give_up_claim,),
        why="the peer lives: what rested on its silence is void",
    ),
    # -- hand-over: the Standby's side ---------------------------------------------
    Row(
        name="refuse-offer",
        phases=_in(Phase.STANDBY),
        on=(ev.BeatHeard,),
        guards=(g.offer_open, g.something_hinders),
        effects=(do.refuse_offer,),
        why="the offered role cannot be taken here: the Active is told why and keeps serving",
    ),
    Row(
        name="accept",
        phases=_in(Phase.STANDBY),
        on=(ev.BeatHeard, ev.EngineReported),
        guards=(g.offer_open, g.nothing_hinders, g.data_equal_or_lossy, g.holding_nothing),
        to=Phase.CANDIDATE,
        effects=(do.accept,),
        why="positions are equal (or that is not asked for): an epoch is reserved for the offer",
    ),
    # -- election ---------------------------------------------
    Row(
        name="consented",
        phases=_in(Phase.CANDIDATE),
        on=(ev.BeatHeard,),
        guards=(g.peer_consents, g.link_up),
        to=Phase.CLAIMING,
        effects=(do.claim_by_consent,),
        why="the peer holds nothing and promised my epoch: one last look at the LAN",
    ),
    Row(
        name="epoch-overtaken",
        phases=_in(Phase.CANDIDATE),
        on=(ev.BeatHeard,),
        guards=(g.epoch_overtaken,),
        to=Phase.STANDBY,
        effects=(do.give_up_claim,),
        why="a higher epoch was promised: mine can never be consented to any more",
    ),
    Row(
        name="yield",
        phases=_in(Phase.CANDIDATE),
        on=(ev.BeatHeard,),
        guards=(g.i_lose_election,),
        to=Phase.STANDBY,
        effects=(do.give_up_claim,),
        why="by what is known now the peer is the better one",
    ),
    Row(
        name="consent",
        phases=WAITING,
        on=(ev.BeatHeard,),
        guards=(g.peer_asks, g.asked_fits, g.peer_wins, g.holding_nothing),
        effects=(do.consent,),
        why="the better node asks: its epoch is promised durably, and nothing below it is ever served here",
    ),
    Row(
        name="consent-goes-out",
        phases=WAITING,
        on=(ev.BookStored,),
        guards=(g.consent_durable_now,),
        effects=(do.speak_up,),
        why="the promise is durable: the peer may hear of it without waiting for the next beat",
        quiet=True,
    ),
    Row(
        name="elect",
        phases=WAITING,
        on=(ev.BeatHeard,),
        guards=(g.peer_idle, g.not_given_away, g.holding_nothing, g.both_informed, g.able, g.i_win),
        to=Phase.CANDIDATE,
        effects=(do.stand,),
        why="both are up and nobody serves: newer epoch of data, complete, newer data, healthy, Primary",
    ),
    Row(
        name="candidacy-goes-out",
        phases=_in(Phase.CANDIDATE),
        on=(ev.BookStored,),
        guards=(g.epoch_durable,),
        effects=(do.speak_up,),
        why="the reserved epoch is durable: the peer may hear of it without waiting for the next beat",
        quiet=True,
    ),
    # -- take-over on silence ---------------------------------------------
    Row(
        name="take-over",
        phases=TRYING,
        on=(ev.Tick,),
        guards=(
            g.silent_enough,
            g.loop_on_time,
            g.lan_seen,
            g.nobody_answers,
            g.holding_nothing,
            g.settings_fit,
            g.sound,
            g.ready_or_available,
            g.not_in_maintenance,
            g.silence_decides,
            g.store_works,
        ),
        to=Phase.CLAIMING,
        effects=(do.claim_by_silence,),
        why="silence for T on all paths, not cut off, nobody answers for the cluster IP: nobody else serves",
    ),
    Row(
        name="probe-quiet",
        phases=TRYING,
        on=(ev.Tick,),
        guards=(g.peer_quiet, g.link_up, g.probe_due),
        effects=(do.probe,),
        why="who answers for the cluster IP while no beat comes? Asked again and again",
        quiet=True,
    ),
    # -- force ---------------------------------------------
    Row(
        name="force-dead",
        phases=WAITING,
        on=(ev.SwitchRequested,),
        guards=(g.forced_request, g.peer_gone, g.holding_nothing, g.link_up, g.forcibly_fit, g.data_forcible),
        to=Phase.CLAIMING,
        effects=(do.claim_forced,),
        why="an administrator says that the Active is dead: gateway and readiness are not asked, the LAN is",
    ),
    Row(
        name="force-idle",
        phases=WAITING,
        on=(ev.SwitchRequested,),
        guards=(g.forced_request, g.peer_idle, g.holding_nothing, g.link_up, g.forcibly_fit, g.data_forcible),
        to=Phase.CANDIDATE,
        effects=(do.stand_forced,),
        why="nobody serves and an administrator chooses this node: the peer consents",
    ),
    Row(
        name="switch-refused",
        phases=EVERY_PHASE,
        on=(ev.SwitchRequested,),
        effects=(do.refuse,),
        why="not possible now; the administrator is told why",
    ),
    # -- claim ---------------------------------------------
    Row(
        name="add",
        phases=_in(Phase.CLAIMING),
        on=(ev.BookStored, ev.ProbeDone, ev.Tick),
        guards=(
            g.served_durable,
            g.claim_probed,
            g.permit_valid,
            g.lease_would_last,
            g.loop_on_time,
            g.link_up,
        ),
        to=Phase.ADDING,
        effects=(do.add,),
        why="epoch durable, nobody answers, the permit is fresh: the address is ordered from the kernel",
    ),
    Row(
        name="probe-again",
        phases=_in(Phase.CLAIMING),
        on=(ev.Tick,),
        guards=(g.probe_due,),
        effects=(do.probe,),
        why="the epoch is not durable yet: meanwhile somebody may have taken the address",
        quiet=True,
    ),
    Row(
        name="claim-answered",
        phases=_in(Phase.CLAIMING),
        on=(ev.ProbeDone,),
        guards=(g.somebody_answered,),
        to=Phase.STANDBY,
        effects=(do.give_up_claim,),
        why="somebody answers for the cluster IP: no take-over, whoever it is",
    ),
    Row(
        name="claim-late",
        phases=_in(Phase.CLAIMING),
        on=(ev.Tick,),
        guards=(g.permit_over,),
        to=Phase.STANDBY,
        effects=(do.give_up_claim,),
        why="what allowed the claim is too old by now",
    ),
    Row(
        name="claim-not-stored",
        phases=_in(Phase.CANDIDATE, Phase.CLAIMING),
        on=(ev.BookFailed,),
        to=Phase.STANDBY,
        effects=(do.give_up_claim,),
        why="an epoch that is not durable is never used",
    ),
    Row(
        name="serve",
        phases=_in(Phase.ADDING),
        on=(ev.AddressAdded,),
        to=Phase.ACTIVE,
        effects=(do.serve,),
        why="the kernel has the address: announce it, start the engine and the services",
    ),
    Row(
        name="add-failed",
        phases=_in(Phase.ADDING),
        on=(ev.AddressFailed, ev.AddressGone),
        to=Phase.FENCED,
        effects=(do.let_go, do.block),
        why="the address could not be added in time: the other node may try",
    ),
    Row(
        name="add-unanswered",
        phases=_in(Phase.ADDING),
        on=(ev.Tick,),
        guards=(g.add_overdue,),
        to=Phase.FENCED,
        effects=(do.let_go, do.block),
        why="the kernel did not answer: the address is taken back, the other node may try",
    ),
)

IGNORED: dict[type, str] = {
    ev.LanAnswered: "a fact: evidence for the lease, and that this node is not cut off",
    ev.BookFailed: "a fact outside of a claim: alarm, not ready, written again",
    ev.EngineLost: "a fact: not ready",
    ev.EngineReported: "a fact outside of an offer",
    ev.HealthReported: "a fact on a node that does not serve: not ready",
    ev.LinkChanged: "a fact: no evidence counts, no claim goes on while it is down",
    ev.MaintenanceSet: "a fact: told to the peer",
    ev.WindowSet: "a fact: told to the peer",
    ev.HoldReleased: "a fact: told to the peer",
    ev.ForeignSeen: "a fact on a node that does not serve: not able for a moment",
    ev.ProbeDone: "a fact outside of a claim",
    ev.Quiesced: "the hand-over was given up meanwhile; the services were told to start again",
    ev.QuiesceFailed: "the hand-over was given up meanwhile",
    ev.SwitchCancelled: "there is no hand-over, or it has gone out",
    ev.AddressAdded: "the claim was given up meanwhile; the address counts as held and is removed",
    ev.AddressFailed: "a renewal failed: the lease runs on; alarm",
    ev.AddressGone: "a fact: this node holds nothing",
    ev.BookStored: "a fact: durable",
    ev.BeatHeard: "what was granted is granted, whatever the peer says now; who has left follows nobody",
    ev.StopRequested: "stopped already",
}
"""Events that have no row in some phase, and why that is right."""


def index(table: tuple[Row, ...]) -> dict[tuple[Phase, type], tuple[Row, ...]]:
    """The rows of each phase and event, in order."""
    return {
        (phase, kind): tuple(row for row in table if phase in row.phases and kind in row.on)
        for phase in Phase
        for kind in EVERY_EVENT
    }
