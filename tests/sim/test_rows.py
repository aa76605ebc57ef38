"""Single rows, where a whole schedule would hide them: one state, one event, and which row is taken.

Most tests begin with a state in which the row is taken, and then take one of its conditions away.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ha_agent.arbiter import actions as act
from ha_agent.arbiter import events as ev
from ha_agent.arbiter.state import NEVER, Book, Engine, Fault, Settings, State
from ha_agent.arbiter.step import begin, step
from ha_agent.arbiter.values import (
    NO_EPOCH,
    Beat,
    Cause,
    Digest,
    Epoch,
    Identity,
    Offer,
    Permit,
    Phase,
    Reason,
    Station,
    Switched,
)
from tests.sim.node import mac_of
from tests.sim.world import World

NOW = 1000.0
PEER = Identity(station=Station.PRIMARY)
BOOK = Book(promised=Epoch(4), served=Epoch(2), data=Epoch(4), sound=True)
SERVING = replace(BOOK, promised=Epoch(5), served=Epoch(5), active=True)
CRASHED = frozenset({Fault(cause="process:asterisk", switches=True)})
ENGINE = Engine(data=Epoch(4), sound=True, current=True, progress=7, digest=Digest("d"))


def node(phase: Phase, *, book: Book = BOOK, **facts: Any) -> State:
    """The Secondary, healthy, on a healthy LAN, that heard its peer just now."""
    settings = Settings(identity=Identity(station=Station.SECONDARY), timeout_s=3.0, beat_s=0.1, peer_mac=mac_of(0))
    s, _ = begin(settings, book, now=0.0, boot=2, link_up=True)
    serving = book.active
    healthy = {
        "now": NOW, "phase": phase, "since": NOW - 50.0, "gateway_at": NOW, "lan_since": 1.0, "engine": ENGINE,
        "heard_at": NOW, "echoed_at": NOW, "peer": beat(), "followed": Epoch(4), "directed": Epoch(4),
        "epoch": book.served if serving else NO_EPOCH, "holds": serving, "probe_asked": NOW - 0.2,
        "lease_until": NOW + 1.0 if serving else NEVER, "renewed_at": NOW, "announced_at": NOW - 50.0,
        "store_asked": NOW,
    }  # fmt: skip
    for name, fact in {**healthy, **facts}.items():
        assert hasattr(s, name), name
        setattr(s, name, fact)
    return s


def beat(**facts: Any) -> Beat:
    """What a ready Standby says, the Primary."""
    usual: dict[str, Any] = {
        "identity": PEER, "phase": Phase.STANDBY, "holds": False, "promised": Epoch(4), "epoch": NO_EPOCH,
        "data": Epoch(4), "sound": True, "progress": 7, "informed": True, "able": True, "lan_seen": True, "ready": True,
        "reasons": (), "eager": True, "health": 0, "link_up": True,
    }  # fmt: skip
    return Beat(**{**usual, **facts})


def after(s: State, kind: type, *, in_s: float = 0.1, **facts: Any) -> tuple[State, tuple[act.Action, ...]]:
    return step(s, kind(now=s.now + in_s, **facts), World.table)


def hears(s: State, said: Beat, *, in_s: float = 0.1) -> tuple[State, tuple[act.Action, ...]]:
    return after(s, ev.BeatHeard, in_s=in_s, beat=said, echoed_at=s.now)


def row(done: tuple[State, tuple[act.Action, ...]]) -> str | None:
    """The row that was taken, unless it is a quiet one."""
    return next((action.row for action in done[1] if isinstance(action, act.Moved)), None)


def ordered(done: tuple[State, tuple[act.Action, ...]], kind: type) -> bool:
    return any(isinstance(action, kind) for action in done[1])


# -- what protects ---------------------------------------------


@pytest.mark.req("R13")
@pytest.mark.parametrize("phase", [Phase.ADDING, Phase.ACTIVE, Phase.QUIESCING, Phase.OFFERING])
def test_a_lapsed_lease_fences_on_whatever_event_comes_first(phase: Phase) -> None:
    s = node(phase, book=SERVING, lease_until=NOW + 0.05)
    for kind, facts in ((ev.Tick, {}), (ev.EngineLost, {}), (ev.LanAnswered, {"asked_at": NOW, "gateway": True})):
        fenced, actions = after(s, kind, **facts)
        assert (fenced.phase, row((fenced, actions))) == (Phase.FENCED, "lease-lapsed")
        assert ordered((fenced, actions), act.RemoveAddress)


def test_a_renewal_that_is_due_is_ordered_and_one_that_is_not_is_not() -> None:
    assert ordered(after(node(Phase.ACTIVE, book=SERVING, renewed_at=NOW - 0.5), ev.Tick), act.RenewAddress)
    assert not ordered(after(node(Phase.ACTIVE, book=SERVING), ev.Tick), act.RenewAddress)


def test_an_address_that_is_gone_is_not_added_again() -> None:
    fenced, actions = after(node(Phase.ACTIVE, book=SERVING), ev.AddressGone)
    assert fenced.phase is Phase.FENCED
    assert not ordered((fenced, actions), act.AddAddress)


def test_a_peer_that_serves_overtakes_an_address_that_is_being_added() -> None:
    s = node(Phase.ADDING, book=SERVING, since=NOW)
    assert hears(s, beat(phase=Phase.ACTIVE, epoch=Epoch(4)))[0].phase is Phase.FENCED
    assert hears(s, beat())[0].phase is Phase.ADDING


def test_the_lan_is_told_once_a_second_while_two_actives_meet() -> None:
    lower = beat(phase=Phase.ACTIVE, epoch=Epoch(4))
    s, actions = hears(node(Phase.ACTIVE, book=SERVING), lower)
    assert ordered((s, actions), act.Announce)
    assert not ordered(hears(s, lower), act.Announce)


@pytest.mark.parametrize("facts", [{"holds": False}, {"removed_at": NOW}])
def test_a_removal_is_ordered_again_only_when_it_is_needed_and_due(facts: dict[str, Any]) -> None:
    assert ordered(after(node(Phase.FENCED, holds=True, removed_at=NOW - 0.5), ev.Tick), act.RemoveAddress)
    assert not ordered(
        after(node(Phase.FENCED, **{"holds": True, "removed_at": NOW - 0.5, **facts}), ev.Tick), act.RemoveAddress
    )


def test_somebody_who_speaks_for_the_address_is_answered() -> None:
    assert ordered(after(node(Phase.ACTIVE, book=SERVING), ev.ForeignSeen, mac=mac_of(9)), act.Announce)


# -- the go ---------------------------------------------

RELEASED = replace(BOOK, promised=Epoch(8))


@pytest.mark.req("R6", "R13")
@pytest.mark.parametrize(
    "hindrance",
    [{"holds": True}, {"stored": replace(RELEASED, promised=Epoch(6))}, {"stored": replace(RELEASED, active=True)}],
)
def test_go_is_said_when_the_address_is_gone_and_the_promise_durable(hindrance: dict[str, Any]) -> None:
    s = node(Phase.RELEASING, book=RELEASED, granted=Epoch(8))
    assert row(after(s, ev.Tick)) == "go"
    s = node(Phase.RELEASING, book=RELEASED, granted=Epoch(8), **{"removed_at": NOW, **hindrance})
    assert after(s, ev.Tick)[0].phase is Phase.RELEASING


# -- alone ---------------------------------------------

LONG_SILENT = {"heard_at": NOW - 6.0}
RAISING = replace(SERVING, promised=Epoch(7), served=Epoch(7))


@pytest.mark.req("R11")
@pytest.mark.parametrize(
    "hindrance", [{"gateway_at": NOW - 5.0}, {"book": RAISING}, {"foreign": mac_of(9)}, {"heard_at": NOW - 5.0}]
)
def test_single_after_a_long_silence_while_the_lan_is_there(hindrance: dict[str, Any]) -> None:
    assert row(after(node(Phase.ACTIVE, book=SERVING, **LONG_SILENT), ev.Tick)) == "single"
    s = node(Phase.ACTIVE, book=SERVING, stored=SERVING, **{**LONG_SILENT, "blocked_until": NOW + 1.0})
    for name, fact in hindrance.items():
        setattr(s, name, fact)
    assert row(after(s, ev.Tick)) is None


def test_the_last_beat_of_a_stopped_peer_makes_single_once_and_does_not_end_it() -> None:
    left = beat(phase=Phase.LEFT)
    s, actions = hears(node(Phase.ACTIVE, book=SERVING), left)
    assert (row((s, actions)), s.book.single) == ("single-left", True)
    assert row(hears(s, left)) is None, "the new epoch is being stored"
    s, _ = after(s, ev.BookStored, book=s.book)
    assert row(hears(s, left)) is None
    assert hears(s, left)[0].book.single


def test_a_second_epoch_is_not_reserved_while_one_is_being_stored() -> None:
    s = node(Phase.ACTIVE, book=SERVING)
    s, actions = hears(s, beat(promised=Epoch(6)))
    assert (row((s, actions)), s.book.served) == ("raise", 7)
    assert row(hears(s, beat(promised=Epoch(8)))) is None
    assert row(hears(s, beat(phase=Phase.LEFT, promised=Epoch(8)))) is None


@pytest.mark.req("R24")
def test_an_active_whose_engine_promised_a_higher_epoch_raises_its_own_and_orders_nothing_of_the_services() -> None:
    """A restore promises one, durably, before it is committed: what was restored never bears the epoch of before."""
    s, told = after(node(Phase.ACTIVE, book=SERVING), ev.EngineReported, engine=replace(ENGINE, promised=Epoch(6)))
    assert (row((s, told)), s.book.promised) == (None, 6)
    s, raising = after(s, ev.Tick)
    assert (row((s, raising)), s.book.served) == ("raise", 7)
    s, raised = after(s, ev.BookStored, book=s.book)
    assert (row((s, raised)), s.epoch) == ("raised", 7)
    assert act.DirectEngine(role=act.EngineRole.ACTIVE, epoch=Epoch(7)) in raised
    for done in (told, raising, raised):
        assert not [one for one in done if isinstance(one, (act.StartServices, act.StopServices, act.Quiesce))]


def test_single_is_not_declared_while_an_epoch_is_being_stored() -> None:
    s = node(Phase.ACTIVE, book=SERVING, heard_at=NOW - 4.0)
    assert row(after(s, ev.SingleDeclared)) == "single-declared"
    s.book = RAISING
    assert row(after(s, ev.SingleDeclared)) == "single-refused"


@pytest.mark.req("R13")
@pytest.mark.parametrize(("epoch", "served"), [(3, False), (5, True)])
def test_a_switch_that_the_peer_tells_of_says_that_it_served_though_no_beat_of_then_came(
    epoch: int, served: bool
) -> None:
    """Else the election that brings the role back counts for no switch, and the pair goes on switching."""
    s = node(Phase.FENCED, book=replace(BOOK, promised=Epoch(5), served=Epoch(4)))
    s, _ = hears(s, beat(phase=Phase.FENCED, switches=(Switched(epoch=Epoch(epoch), at=8.0),)))
    assert s.peer_held is served


@pytest.mark.req("R6")
@pytest.mark.parametrize(("store_failed", "reason"), [(False, Reason.BUSY), (True, Reason.STORE_FAILED)])
def test_a_planned_switch_waits_for_an_epoch_that_is_being_stored(store_failed: bool, reason: Reason) -> None:
    """What is drained would be of the old one, and the peer's positions not equal to those of the new one."""
    s = node(Phase.ACTIVE, book=SERVING)
    assert row(after(s, ev.SwitchRequested)) == "switch"
    s.book, s.store_failed = RAISING, store_failed
    refused = after(s, ev.SwitchRequested)
    assert row(refused) == "switch-refused"
    assert [one.reason for one in refused[1] if isinstance(one, act.Refused)] == [reason]
    assert row(after(s, ev.SwitchRequested, force=True)) == "switch"


# -- switches by themselves ---------------------------------------------

UNREADY = beat(ready=False, reasons=(Reason.BEHIND,))
UNFIT: dict[str, Any] = {"contradictions": (Reason.SETTINGS_DIFFER,)}
HELD = (Switched(epoch=Epoch(2), at=NOW - 9.0), Switched(epoch=Epoch(3), at=NOW - 8.0))


@pytest.mark.req("R12", "R13")
@pytest.mark.parametrize(
    "hindrance",
    [
        {"heard_at": NOW - 1.6},
        {"peer": UNREADY},
        UNFIT,
        {"retry_at": NOW + 1.0},
        {"switches": HELD},
        {"maintenance_until": NOW + 9.0},
        {"spent": frozenset({"process:asterisk"})},
    ],
)
def test_a_fault_is_a_reason_to_switch_unless_something_hinders(hindrance: dict[str, Any]) -> None:
    assert row(after(node(Phase.ACTIVE, book=SERVING), ev.HealthReported, faults=CRASHED)) == "switch-fault"
    assert row(after(node(Phase.ACTIVE, book=SERVING, **hindrance), ev.HealthReported, faults=CRASHED)) is None


@pytest.mark.req("R12", "R13")
@pytest.mark.parametrize(
    "hindrance",
    [
        {"heard_at": NOW - 1.6},
        {"peer": UNREADY},
        UNFIT,
        {"retry_at": NOW + 1.0},
        {"switches": HELD},
        {"maintenance_until": NOW + 9.0},
        {"link_lost_at": NOW + 0.05},
    ],
)
def test_a_lost_link_is_a_reason_to_switch_unless_something_hinders(hindrance: dict[str, Any]) -> None:
    assert row(after(node(Phase.ACTIVE, book=SERVING, link_up=False), ev.Tick)) == "switch-link"
    assert row(after(node(Phase.ACTIVE, book=SERVING, link_up=False, **hindrance), ev.Tick)) is None


# -- following, offers ---------------------------------------------


def test_the_engine_is_told_when_the_followed_epoch_changes() -> None:
    done = hears(node(Phase.STANDBY), beat(phase=Phase.ACTIVE, epoch=Epoch(6)))
    assert row(done) == "follow-on"
    assert act.DirectEngine(role=act.EngineRole.STANDBY, epoch=Epoch(6)) in done[1]
    assert row(hears(done[0], beat(phase=Phase.ACTIVE, epoch=Epoch(6)))) is None


OFFER = Offer(serial=9, digest=Digest("d"), lossy=False, forced=False, cause=Cause.PLANNED)
OFFERING = beat(phase=Phase.OFFERING, epoch=Epoch(4), holds=True, offer=OFFER)


@pytest.mark.req("R6")
def test_an_offer_is_taken_when_the_last_change_has_come() -> None:
    s = node(Phase.STANDBY, peer=OFFERING)
    assert row(after(s, ev.EngineReported, engine=ENGINE)) == "accept"
    assert row(after(s, ev.EngineReported, engine=replace(ENGINE, digest=Digest("c")))) is None


@pytest.mark.req("R6")
@pytest.mark.parametrize("hindrance", [{"faults": CRASHED}, {"holds": True, "removed_at": NOW}])
def test_an_offer_is_not_taken_by_a_node_that_became_unfit_or_may_hold_the_address(hindrance: dict[str, Any]) -> None:
    s = node(Phase.STANDBY, peer=OFFERING, **hindrance)
    assert row(after(s, ev.EngineReported, engine=ENGINE)) is None


# -- election ---------------------------------------------

ASKED = replace(BOOK, promised=Epoch(5))
CANDIDATE: dict[str, Any] = {"epoch": Epoch(5), "book": ASKED}


@pytest.mark.req("R10", "R13")
@pytest.mark.parametrize("hindrance", [{"link_up": False}, {"epoch": Epoch(7)}])
def test_a_consent_is_taken_up_by_the_candidate_of_that_epoch_on_the_lan(hindrance: dict[str, Any]) -> None:
    weaker = beat(consent=Epoch(5), progress=1, promised=Epoch(5))
    assert row(hears(node(Phase.CANDIDATE, **CANDIDATE), weaker)) == "consented"
    done = hears(node(Phase.CANDIDATE, **{**CANDIDATE, "faults": frozenset(), **hindrance}), weaker)
    assert row(done) != "consented"


@pytest.mark.req("R6", "R10")
@pytest.mark.parametrize(("forced", "cause"), [(False, Cause.ELECTION), (True, Cause.FORCED)])
def test_a_hand_over_that_came_to_nothing_is_an_election_but_stays_an_administrators_force(
    forced: bool, cause: Cause
) -> None:
    lapsed = beat(consent=Epoch(5), progress=1, promised=Epoch(5), phase=Phase.FENCED)
    wished = Cause.FORCED if forced else Cause.PLANNED
    s, _ = hears(node(Phase.CANDIDATE, **CANDIDATE, accepts=3, forced=forced, cause=wished), lapsed)
    assert (s.phase, s.cause) == (Phase.CLAIMING, cause)


@pytest.mark.req("R10")
def test_a_candidate_gives_up_when_it_is_overtaken_or_the_peer_is_better() -> None:
    s = node(Phase.CANDIDATE, **CANDIDATE)
    assert row(hears(s, beat(progress=1, promised=Epoch(6)))) == "epoch-overtaken"
    assert row(hears(s, beat(progress=9))) == "yield"
    assert row(hears(s, beat(progress=1))) is None


ASKING = beat(phase=Phase.CANDIDATE, candidate=Epoch(6), promised=Epoch(6), progress=9)


@pytest.mark.req("R10", "R13")
@pytest.mark.parametrize("hindrance", [{"holds": True}, UNFIT, {"consent": Epoch(6)}, {"data": Epoch(5)}])
def test_consent_is_given_once_to_the_better_fitting_node_by_one_that_holds_nothing(
    hindrance: dict[str, Any],
) -> None:
    hindrance = dict(hindrance)
    asking = replace(ASKING, progress=1) if hindrance.pop("data", None) else ASKING
    assert row(hears(node(Phase.STANDBY, peer_identity=PEER), ASKING)) == "consent"
    assert row(hears(node(Phase.STANDBY, peer_identity=PEER, **hindrance), asking)) != "consent"


def test_a_promise_goes_out_as_soon_as_it_is_durable_and_no_other_write_speaks() -> None:
    s, actions = hears(node(Phase.STANDBY), ASKING)
    assert (s.consent, ordered((s, actions), act.SendBeat)) == (6, False)
    assert ordered(after(s, ev.BookStored, book=s.book), act.SendBeat)
    assert not ordered(after(s, ev.BookStored, book=BOOK), act.SendBeat)
    assert not ordered(after(node(Phase.STANDBY), ev.BookStored, book=BOOK), act.SendBeat)


def test_a_candidacy_goes_out_as_soon_as_it_is_durable_and_not_before() -> None:
    s = node(Phase.CANDIDATE, epoch=Epoch(5), book=ASKED, stored=BOOK)
    assert ordered(after(s, ev.BookStored, book=ASKED), act.SendBeat)
    assert not ordered(after(s, ev.BookStored, book=BOOK), act.SendBeat)


@pytest.mark.req("R10", "R13")
@pytest.mark.parametrize("hindrance", [{"holds": True, "removed_at": NOW}, {"link_up": False}, {"store_failed": True}])
def test_nobody_stands_who_holds_the_address_or_could_not_serve(hindrance: dict[str, Any]) -> None:
    weaker = beat(progress=1)
    assert row(hears(node(Phase.STANDBY), weaker)) == "elect"
    assert row(hears(node(Phase.STANDBY, **hindrance), weaker)) is None


# -- take-over on silence ---------------------------------------------

SERVED = beat(phase=Phase.ACTIVE, epoch=Epoch(4), holds=True)
SILENT: dict[str, Any] = {
    "heard_at": NOW - 4.0, "probe_clear": NOW - 0.5, "probe_cleared_at": NOW - 0.2, "peer_held": True, "peer": SERVED,
}  # fmt: skip


@pytest.mark.req("R11", "R13")
@pytest.mark.parametrize(
    "hindrance",
    [
        {"heard_at": NOW - 2.5},
        {"peer_answered_at": NOW - 1.0},
        {"lan_since": NOW - 1.0},
        {"link_since": NOW - 1.0},
        {"judge_after": NOW + 1.0},
        {"gateway_at": NOW - 2.0},
        {"probe_cleared_at": NOW - 2.0},
        {"holds": True, "removed_at": NOW},
        UNFIT,
        {"engine": replace(ENGINE, sound=False)},
        {"maintenance_until": NOW + 9.0},
        {"store_failed": True},
    ],
)
def test_a_silence_is_a_death_unless_something_speaks_against_it(hindrance: dict[str, Any]) -> None:
    assert row(after(node(Phase.STANDBY, **SILENT), ev.Tick)) == "take-over"
    assert row(after(node(Phase.STANDBY, **{**SILENT, **hindrance}), ev.Tick)) is None


@pytest.mark.req("R1.2", "R11")
def test_without_an_address_to_ask_for_only_a_person_lets_the_other_site_take_over() -> None:
    s = node(Phase.STANDBY, **SILENT)
    s.settings = replace(s.settings, by_hand=True)
    assert row(after(s, ev.Tick)) is None
    assert row(after(s, ev.SwitchRequested, force=True)) == "force-dead"
    came_back = replace(BOOK, served=BOOK.promised)
    s = node(Phase.STANDBY, book=came_back, **{**SILENT, "peer_held": False})
    s.settings = replace(s.settings, by_hand=True)
    assert row(after(s, ev.Tick)) == "take-over"


@pytest.mark.req("R11", "R13")
def test_the_secondary_waits_longer_unless_it_was_an_active_that_fell_silent() -> None:
    waiting = {**SILENT, "peer": beat()}
    assert row(after(node(Phase.STANDBY, **waiting), ev.Tick)) is None
    assert row(after(node(Phase.STANDBY, **{**waiting, "heard_at": NOW - 5.0}), ev.Tick)) == "take-over"


@pytest.mark.req("R11", "R13")
def test_who_was_fenced_waits_longer_than_its_standby() -> None:
    assert row(after(node(Phase.FENCED, **{**SILENT, "heard_at": NOW - 8.5}), ev.Tick)) is None
    assert row(after(node(Phase.FENCED, **{**SILENT, "heard_at": NOW - 9.0}), ev.Tick)) == "take-over"


@pytest.mark.req("R11")
def test_a_node_that_was_stalled_does_not_judge_at_its_first_tick() -> None:
    assert row(after(node(Phase.STANDBY, **SILENT), ev.Tick, in_s=0.6)) is None


@pytest.mark.parametrize("hindrance", [{"heard_at": NOW}, {"link_up": False}, {"probe_asked": NOW - 0.3}])
def test_the_lan_is_asked_while_the_peer_is_quiet(hindrance: dict[str, Any]) -> None:
    quiet = {"heard_at": NOW - 0.5, "probe_asked": NOW - 0.6}
    assert ordered(after(node(Phase.STANDBY, **quiet), ev.Tick), act.Probe)
    assert not ordered(after(node(Phase.STANDBY, **{**quiet, **hindrance}), ev.Tick), act.Probe)


# -- force ---------------------------------------------


@pytest.mark.req("R6", "R13")
@pytest.mark.parametrize(
    "hindrance",
    [
        {"force": False},
        {"heard_at": NOW - 2.0},
        {"holds": True},
        {"link_up": False},
        {"contradictions": (Reason.SAME_STATION,)},
        {"engine": replace(ENGINE, sound=False)},
    ],
)
def test_force_makes_a_node_claim_when_the_active_is_gone(hindrance: dict[str, Any]) -> None:
    facts = {"heard_at": NOW - 4.0, "peer": beat(phase=Phase.ACTIVE, epoch=Epoch(4)), **hindrance}
    force = facts.pop("force", True)
    dead = node(Phase.STANDBY, heard_at=NOW - 4.0)
    assert row(after(dead, ev.SwitchRequested, force=True)) == "force-dead"
    assert row(after(node(Phase.STANDBY, **facts), ev.SwitchRequested, force=force)) == "switch-refused"


@pytest.mark.req("R6", "R13")
@pytest.mark.parametrize(
    "hindrance",
    [
        {"force": False},
        {"peer": beat(holds=True)},
        {"holds": True},
        {"link_up": False},
        {"contradictions": (Reason.SAME_STATION,)},
        {"engine": replace(ENGINE, sound=False)},
    ],
)
def test_force_makes_a_node_stand_when_nobody_serves(hindrance: dict[str, Any]) -> None:
    facts = dict(hindrance)
    force = facts.pop("force", True)
    assert row(after(node(Phase.STANDBY), ev.SwitchRequested, force=True)) == "force-idle"
    assert row(after(node(Phase.STANDBY, **facts), ev.SwitchRequested, force=force)) == "switch-refused"


# -- claims ---------------------------------------------

CLAIMING: dict[str, Any] = {
    "book": replace(SERVING, active=True), "holds": False, "since": NOW - 0.2, "heard_at": NOW - 4.0,
    "permit": Permit.SILENCE, "probe_clear": NOW - 0.2, "probe_cleared_at": NOW - 0.1, "lease_until": NEVER,
}  # fmt: skip


@pytest.mark.req("R13")
@pytest.mark.parametrize(
    "hindrance",
    [
        {"stored": BOOK},
        {"probe_cleared_at": NOW - 2.0},
        {"probe_clear": NOW - 0.3},
        {"permit": Permit.CONSENT, "claim_evidence": NOW - 0.1, "probe_clear": NOW - 0.5},
        {"permit": Permit.CONSENT, "claim_evidence": NOW - 1.0, "probe_clear": NOW},
        {"since": NOW - 2.0},
        {"gateway_at": NOW - 1.1},
        {"judge_after": NOW + 1.0},
        {"link_up": False},
    ],
)
def test_the_address_is_ordered_when_all_is_durable_probed_and_fresh(hindrance: dict[str, Any]) -> None:
    assert row(after(node(Phase.CLAIMING, **CLAIMING), ev.Tick)) == "add"
    assert row(after(node(Phase.CLAIMING, **{**CLAIMING, **hindrance}), ev.Tick)) in {None, "claim-late"}


@pytest.mark.req("R13")
def test_the_order_to_add_is_void_as_soon_as_the_probe_is_old() -> None:
    _, actions = after(node(Phase.CLAIMING, **CLAIMING), ev.Tick)
    (add,) = (action for action in actions if isinstance(action, act.AddAddress))
    assert add.not_after == pytest.approx(CLAIMING["probe_cleared_at"] + 0.8)


def test_a_claim_by_silence_is_void_when_the_peer_lives_but_not_when_it_left() -> None:
    s = node(Phase.CLAIMING, **CLAIMING)
    assert row(hears(s, beat())) == "alive-after-all"
    assert row(hears(s, beat(phase=Phase.LEFT))) is None
    s.permit = Permit.FORCED
    assert row(hears(s, beat())) is None


def test_a_claim_ends_when_somebody_answers_or_the_question_could_not_be_asked() -> None:
    s = node(Phase.CLAIMING, **{**CLAIMING, "stored": BOOK, "probe_asked": NOW})
    assert row(after(s, ev.ProbeDone, asked_at=NOW, answered_by=mac_of(9))) == "claim-answered"
    assert row(after(s, ev.ProbeDone, asked_at=NOW, answered_by=None, sent=False)) == "claim-answered"
    assert row(after(s, ev.ProbeDone, asked_at=NOW, answered_by=None)) is None, "the epoch is still being stored"


def test_a_claim_ends_when_it_is_too_old_or_cannot_be_stored() -> None:
    s = node(Phase.CLAIMING, **{**CLAIMING, "since": NOW - 2.0})
    assert row(after(s, ev.Tick)) == "claim-late"
    for phase in (Phase.CANDIDATE, Phase.CLAIMING):
        done = after(node(phase, **{**CLAIMING, "stored": BOOK}), ev.BookFailed)
        assert (row(done), done[0].phase) == ("claim-not-stored", Phase.STANDBY)


def test_an_address_that_cannot_be_added_is_taken_back_and_the_other_node_may_try() -> None:
    s = node(Phase.ADDING, book=SERVING, since=NOW - 0.5, lease_until=NOW + 2.0)
    for kind, seconds in ((ev.AddressFailed, 0.1), (ev.AddressGone, 0.1), (ev.Tick, 0.55)):
        done = after(replaced(s, judge_after=NEVER), kind, in_s=seconds)
        assert row(done) in {"add-failed", "add-unanswered"}
        assert done[0].blocked_until > done[0].now
        assert ordered(done, act.RemoveAddress)
    assert row(after(s, ev.Tick)) is None


def replaced(s: State, **facts: Any) -> State:
    twin = s.copy()
    for name, fact in facts.items():
        setattr(twin, name, fact)
    return twin
