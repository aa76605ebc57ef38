"""What the targets are told, sentence by sentence of ``rules`` and ``meaning``."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ha_agent.alarms.meaning import BACKUP_ENDED, ENGINE_LOST, LINK, REFUSED, SILENT, SWITCH_ENDED, seen_of
from ha_agent.alarms.reports import PairFacts, Station, dated, digest_of, report_of
from ha_agent.alarms.rules import ENTRIES_MAX, Rules
from ha_agent.alarms.values import FIELD_MAX, FIELDS_MAX, Bulletin, Change, Edge, Entry, Key, Seen
from ha_agent.alarms.wording import document_of, subject_of, text_of, trial_document
from ha_agent.logs.switches import ENDED
from ha_agent.settings import ReportSettings, Severity, Target, TargetKind
from ha_agent.settings.values import Rates

RATES = Rates(repeat_s=3600, group_s=5, clear_after_s=60, messages_per_hour_max=20)
FAULT = Key("fault", "fxo:3")
R32 = pytest.mark.req("R32")
R17 = pytest.mark.req("R17")


class Play:
    """Rules on a clock of the test's own."""

    def __init__(self, rates: Rates = RATES, least: Severity | None = Severity.WARNING) -> None:
        self.rules = Rules(rates, least=least, now=0.0)
        self.now = 0.0
        self.told: list[tuple[float, list[tuple[str, str, int]]]] = []
        self.bulletins: list[Bulletin] = []

    def at(self, now: float, *seen: Seen) -> None:
        """Everything until then, and then what is seen."""
        while (due := self.rules.due(self.now)) is not None and due <= now:
            self.now = max(self.now, due)
            self._advance()
        self.now = now
        for one in seen:
            self.rules.observe(one, now=now, unix_s=1000.0 + now)
        self._advance()

    def _advance(self) -> None:
        bulletin = self.rules.advance(now=self.now, unix_s=1000.0 + self.now)
        if bulletin is not None:
            self.bulletins.append(bulletin)
            entries = [(entry.change.value, entry.key.what, entry.count) for entry in bulletin.entries]
            self.told.append((self.now, entries))


def raised(what: str = "fault", severity: Severity = Severity.WARNING, subject: str = "") -> Seen:
    return Seen(key=Key(what, subject), edge=Edge.RAISED, severity=severity)


def cleared(what: str = "fault") -> Seen:
    return Seen(key=Key(what), edge=Edge.CLEARED)


def happened(what: str = "saved", severity: Severity = Severity.WARNING) -> Seen:
    return Seen(key=Key(what), edge=Edge.HAPPENED, severity=severity)


# ---- rules


@R32
def test_what_comes_within_the_group_goes_into_one_message_errors_first() -> None:
    play = Play()
    play.at(0, raised("a"))
    play.at(4, raised("b", Severity.ERROR), happened("c"))
    play.at(100)
    assert play.told[0] == (5, [("raised", "b", 1), ("raised", "a", 1), ("happened", "c", 1)])
    assert play.bulletins[0].standing == 2


@R32
def test_a_fault_that_ends_is_told_when_it_has_stayed_away() -> None:
    play = Play()
    play.at(0, raised())
    play.at(20, cleared())
    play.at(1000)
    assert play.told == [(5, [("raised", "fault", 1)]), (80, [("cleared", "fault", 1)])]
    assert play.rules.alarms == ()


@R32
def test_a_fault_that_flaps_is_told_twice_and_counted() -> None:
    play = Play()
    play.at(0, raised())
    for cycle in range(1, 11):
        play.at(30 * cycle, cleared())
        play.at(30 * cycle + 10, raised())
    play.at(400, cleared())
    play.at(1000)
    assert play.told == [(5, [("raised", "fault", 1)]), (460, [("cleared", "fault", 11)])]


@R32
def test_what_was_gone_before_anybody_could_be_told_is_one_thing() -> None:
    play = Play()
    play.at(0, raised())
    play.at(1, cleared())
    play.at(1000)
    assert play.told == [(5, [("over", "fault", 1)])]
    assert play.rules.alarms == ()


@R32
def test_one_that_flickers_faster_than_anybody_can_be_told_is_told_at_its_beginning_and_its_end() -> None:
    play = Play()
    for second in range(0, 300, 2):
        play.at(second, raised())
        play.at(second + 0.1, cleared())
    play.at(1000)
    assert play.told[0] == (5, [("over", "fault", 3)])
    assert play.told[1:] == [(298.1 + 60, [("over", "fault", 150)])]


@R32
def test_what_happens_again_and_again_is_told_at_once_and_then_how_often() -> None:
    play = Play()
    for second in range(0, 200, 10):
        play.at(second, happened())
    play.at(1000)
    assert play.told == [(5, [("happened", "saved", 1)]), (250, [("happened", "saved", 20)])]


@R32
def test_what_stands_is_told_again_all_of_it_in_one_message() -> None:
    play = Play()
    play.at(0, raised("a"))
    play.at(600, raised("b"), raised("c"))
    play.at(700, cleared("c"))
    play.at(3700)
    assert play.told[-1] == (3605, [("stands", "a", 1), ("stands", "b", 1)])
    play.at(3605 + 3600)
    assert play.told[-1] == (7205, [("stands", "a", 1), ("stands", "b", 1)])
    silent = Play(Rates(repeat_s=0))
    silent.at(0, raised())
    silent.at(1_000_000)
    assert len(silent.told) == 1


@R32
def test_what_goes_on_happening_is_told_again_too() -> None:
    play = Play()
    for second in range(0, 4000, 50):
        play.at(second, happened())
    assert [at for at, _ in play.told] == [5, 3605]


@R32
def test_a_warning_that_becomes_an_error_is_told_again() -> None:
    play = Play()
    play.at(0, raised())
    play.at(100, raised(severity=Severity.ERROR))
    play.at(200, raised())
    play.at(300)
    assert [at for at, _ in play.told] == [5, 105]
    assert play.bulletins[-1].entries[0].severity is Severity.ERROR


@R32
def test_after_an_outburst_the_rest_is_summed_up_in_messages_that_keep_coming() -> None:
    play = Play(Rates(messages_per_hour_max=4, group_s=1, repeat_s=0))
    for number in range(400):
        play.at(10 * number, raised(str(number)))
    at = [moment for moment, _ in play.told]
    assert at[:2] == [1, 11]
    assert at[2:4] == pytest.approx([1800, 3600], abs=15)
    assert sum(len(entries) for _, entries in play.told) + sum(one.more for one in play.bulletins) > 200
    assert len(play.bulletins[2].entries) == ENTRIES_MAX


@R32
def test_what_nobody_wants_to_be_told_is_known_all_the_same() -> None:
    play = Play()
    play.at(0, raised(severity=Severity.INFO))
    alone = Play(least=None)
    alone.at(0, raised(severity=Severity.ERROR))
    for one in (play, alone):
        one.at(10)
        assert (one.told, len(one.rules.alarms)) == ([], 1)
        one.at(20, cleared())
        one.at(100)
        assert (one.told, one.rules.alarms) == ([], ())


@R32
def test_a_restart_neither_repeats_what_was_told_nor_forgets_what_was_not() -> None:
    before = Play()
    before.at(0, raised("a"), raised("b"))
    before.at(10, raised("c"))
    for clear_after_s in (0, 60):
        after = Play(replace(RATES, clear_after_s=clear_after_s))
        after.rules.restore(before.rules.alarms, now=0.0)
        after.at(3, raised("a"))
        after.at(10, raised("c"))  # who finds it again may be later than the message
        after.at(1000)
        assert after.told == [(5, [("raised", "c", 1)]), (60 + clear_after_s, [("cleared", "b", 1)])]
        assert [(alarm.key.what, alarm.count) for alarm in after.rules.alarms] == [("a", 1), ("c", 1)]


@R32
def test_what_had_ended_before_a_restart_does_not_stand_after_it() -> None:
    before = Play()
    before.at(0, raised("a"))
    before.at(10, cleared("a"))
    after = Play()
    after.rules.restore(before.rules.alarms, now=0.0)
    after.at(1000)
    assert after.told == [(60, [("cleared", "a", 1)])]


# ---- meaning


@R32
def test_every_warning_and_every_error_is_an_alarm_but_those_that_are_named() -> None:
    for severity in ("warning", "error"):
        seen = seen_of(severity, "something new", {"dataset": "cdr", "reason": "why"})
        assert seen is not None
        assert (seen.key, seen.edge) == (Key("something new", "cdr"), Edge.HAPPENED)
    assert seen_of("info", "something new", {}) is None
    assert all(seen_of("error", what, {}) is None and reason for what, reason in SILENT.items())


@R32
def test_an_edge_of_the_log_raises_and_clears_also_what_is_mere_information() -> None:
    seen = seen_of("info", "beats refused", {}, subject="late", edge="raised")
    assert seen == Seen(key=Key("beats refused", "late"), edge=Edge.RAISED, severity=Severity.INFO)
    seen = seen_of("info", "fault", {}, subject="fxo:3", edge="cleared")
    assert seen is not None
    assert (seen.key, seen.edge) == (FAULT, Edge.CLEARED)


@R32
@pytest.mark.parametrize(
    ("bad", "good"), [((ENGINE_LOST, "error"), ("engine attached", "info")), ((LINK, "error"), (LINK, "info"))]
)
def test_events_without_an_edge_that_end_one_another(bad: tuple[str, str], good: tuple[str, str]) -> None:
    began, ended = seen_of(bad[1], bad[0], {}), seen_of(good[1], good[0], {})
    assert began is not None
    assert ended is not None
    assert (began.edge, ended.edge) == (Edge.RAISED, Edge.CLEARED)
    assert began.key == ended.key


@R32
def test_each_switch_is_one_alarm_and_each_stranger_whatever_its_port() -> None:
    assert SWITCH_ENDED == ENDED
    first = seen_of("warning", SWITCH_ENDED, {"epoch": 6})
    second = seen_of("warning", SWITCH_ENDED, {"epoch": 7})
    assert first is not None
    assert second is not None
    assert first.key != second.key
    ports = [seen_of("warning", REFUSED, {"peer": f"192.0.2.9:{port}"}) for port in (4001, 4002)]
    assert {seen.key for seen in ports if seen is not None} == {Key(REFUSED, "192.0.2.9")}


@R32
def test_a_backup_that_failed_stands_and_one_that_repaired_something_happened() -> None:
    assert seen_of("error", BACKUP_ENDED, {"result": "failed"}) is None
    seen = seen_of("error", BACKUP_ENDED, {"result": "done", "differing": 3})
    assert seen is not None
    assert seen.edge is Edge.HAPPENED


@R32
def test_fields_are_bounded() -> None:
    seen = seen_of("error", "x", {f"f{n}": "y" * 10_000 for n in range(100)})
    assert seen is not None
    assert len(seen.fields) == FIELDS_MAX
    assert max(map(len, seen.fields.values())) == FIELD_MAX


# ---- wording


def entry(change: Change, severity: Severity = Severity.WARNING, what: str = "fault") -> Entry:
    return Entry(
        change=change, key=Key(what, "fxo:3"), severity=severity, since_unix_s=0.0, count=3,
        fields={"mac": "", "a": "b"},
    )  # fmt: skip


def test_a_target_is_told_only_of_what_is_bad_enough_for_it() -> None:
    bulletin = Bulletin(unix_s=0.0, entries=(entry(Change.RAISED), entry(Change.CLEARED, Severity.ERROR)))
    found = document_of(bulletin, node="a", station="primary", least=Severity.ERROR)
    assert found is not None
    assert [one["severity"] for one in found["entries"]] == ["error"]
    only = Bulletin(unix_s=0.0, entries=(entry(Change.RAISED),))
    assert document_of(only, node="a", station="primary", least=Severity.ERROR) is None
    lost = Bulletin(unix_s=0.0, entries=(), left_out=7)
    found = document_of(lost, node="a", station="primary", least=Severity.ERROR)
    assert found is not None
    assert "7 more alarms" in text_of(found)
    assert subject_of(found) == "[ha-sync a] warning: alarms: too many to name"


def test_the_subject_of_many_says_how_many_of_each_and_the_worst() -> None:
    entries = (entry(Change.RAISED, Severity.ERROR), entry(Change.RAISED), entry(Change.CLEARED))
    found = document_of(
        Bulletin(unix_s=0.0, entries=entries, more=2, standing=9), node="a", station="", least=Severity.INFO
    )
    assert found is not None
    assert subject_of(found) == "[ha-sync a] error: alarms: 2 raised, 1 cleared"
    text = text_of(found)
    assert "raised: fault: fxo:3 (error), since 1970-01-01T00:00:00+00:00, 3 times\n  a: b\n" in text
    assert "2 more changes" in text
    assert text.endswith("Standing now: 9. `ha-sync alarms list`\n")


def test_a_test_message_says_that_it_is_one() -> None:
    document = trial_document(node="a", station="primary", unix_s=0.0)
    assert subject_of(document) == "[ha-sync a] test message"
    assert "This is a test" in text_of(document)


# ---- reports


TARGET = Target(name="report", kind=TargetKind.WEBHOOK, url="https://example.org")
PRIMARY = Station(station_type="primary", mac="02:00:00:00:00:01", address="192.0.2.1")
SECONDARY = Station(station_type="secondary", mac="02:00:00:00:00:02", address="192.0.2.2")


def facts(own: Station, peer: Station) -> PairFacts:
    return PairFacts(cluster_id="c", node="a", cluster_addresses=("192.0.2.53",), own=own, peer=peer)


@R17
def test_a_report_says_who_serves_what_and_what_both_nodes_are() -> None:
    settings = ReportSettings(target=TARGET, cloud_im=True, custom_domain="pbx.example.org")
    report = dated(report_of(facts(SECONDARY, PRIMARY), settings, epoch=7, cause="silence"), sequence=3, unix_s=0.0)
    assert report == {
        "version": 1,
        "kind": "role",
        "cluster_id": "c",
        "epoch": 7,
        "cause": "silence",
        "sequence": 3,
        "at": "1970-01-01T00:00:00.000+00:00",
        "reporter": {"name": "a", "mac": SECONDARY.mac},
        "active_mac": SECONDARY.mac,
        "cluster_addresses": ["192.0.2.53"],
        "nodes": [
            {
                "mac": PRIMARY.mac, "address": "192.0.2.1", "station_type": "primary", "type": "host",
                "role": "standby",
            },
            {
                "mac": SECONDARY.mac, "address": "192.0.2.2", "station_type": "secondary", "type": "spare",
                "role": "active",
            },
        ],
        "cloud_im": {"mac": SECONDARY.mac},
        "custom_domain": {"name": "pbx.example.org", "mac": PRIMARY.mac},
    }  # fmt: skip
    plain = report_of(facts(PRIMARY, SECONDARY), ReportSettings(target=TARGET), epoch=7, cause="planned")
    assert (plain["cloud_im"], plain["custom_domain"]) == (None, None)


@R17
def test_two_reports_are_one_unless_they_say_something_else_than_why() -> None:
    settings = ReportSettings(target=TARGET, custom_domain="pbx.example.org")
    report = report_of(facts(SECONDARY, PRIMARY), settings, epoch=7, cause="silence")
    again = report_of(facts(SECONDARY, PRIMARY), settings, epoch=7, cause="resumed")
    later = report_of(facts(SECONDARY, PRIMARY), settings, epoch=9, cause="silence")
    new = Station(station_type="primary", mac="02:00:00:00:00:09", address="192.0.2.1")
    replaced = report_of(facts(SECONDARY, new), settings, epoch=7, cause="resumed")
    assert digest_of(report) == digest_of(again)
    assert len({digest_of(one) for one in (report, later, replaced)}) == 3
    assert replaced["custom_domain"] == {"name": "pbx.example.org", "mac": new.mac}, "it moves with the Primary"
