"""However events come: a bounded number of messages, nothing cleared that was not raised, nothing untold for ever."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_agent.alarms.backoff import MOST_S, delay_s
from ha_agent.alarms.bucket import HOUR_S, Bucket
from ha_agent.alarms.rules import ALARMS_MAX, ENTRIES_MAX, Rules
from ha_agent.alarms.values import Bulletin, Change, Edge, Key, Seen
from ha_agent.settings.values import Rates, Severity

pytestmark = pytest.mark.req("R32")

RATES = st.builds(
    Rates,
    repeat_s=st.sampled_from([0.0, 60.0, 600.0, 14_400.0]),
    group_s=st.sampled_from([0.1, 5.0, 120.0]),
    clear_after_s=st.sampled_from([0.0, 10.0, 60.0, 3600.0]),
    messages_per_hour_max=st.integers(2, 12),
)
KEYS = st.builds(Key, st.sampled_from(["fault", "path lost", "divergence"]), st.sampled_from(["a", "b", ""]))
SEEN = st.builds(
    Seen,
    key=KEYS,
    edge=st.sampled_from(Edge),
    severity=st.sampled_from([Severity.WARNING, Severity.ERROR]),
)
EVENTS = st.lists(st.tuples(st.sampled_from([0.0, 0.01, 1.0, 30.0, 400.0, 5000.0]), SEEN), max_size=60)
LONG_S = 20_000.0


@dataclass
class Play:
    """Drives rules as the desk does, on a clock of its own."""

    rules: Rules
    now: float = 1000.0
    messages: list[tuple[float, Bulletin]] = field(default_factory=list)

    def until(self, moment: float) -> None:
        for _ in range(5000):
            due = self.rules.due(self.now)
            if due is None or due > moment:
                self.now = moment
                return
            self.now = max(self.now, due)
            self.advance()
        raise AssertionError("it is due for ever")

    def advance(self) -> None:
        bulletin = self.rules.advance(now=self.now, unix_s=self.now)
        if bulletin is not None:
            self.messages.append((self.now, bulletin))

    def see(self, seen: Seen) -> None:
        self.rules.observe(seen, now=self.now, unix_s=self.now)
        self.advance()


def played(rates: Rates, events: list[tuple[float, Seen]]) -> Play:
    play = Play(Rules(rates, least=Severity.WARNING, now=1000.0))
    for pause, seen in events:
        play.until(play.now + pause)
        play.see(seen)
    return play


@given(RATES, EVENTS)
def test_no_hour_has_more_messages_than_the_settings_say(rates: Rates, events: list[tuple[float, Seen]]) -> None:
    play = played(rates, events)
    play.until(play.now + LONG_S)
    at = [moment for moment, _ in play.messages]
    for first in at:
        assert sum(first <= moment < first + HOUR_S for moment in at) <= rates.messages_per_hour_max


@given(RATES, EVENTS)
def test_what_was_raised_is_told_and_what_ended_is_told_in_that_order(
    rates: Rates, events: list[tuple[float, Seen]]
) -> None:
    play = played(rates, events)
    play.until(play.now + LONG_S)
    stands: Counter[Key] = Counter()
    named = set()
    for _, bulletin in play.messages:
        for entry in bulletin.entries:
            named.add(entry.key)
            if entry.change in {Change.RAISED, Change.STANDS}:
                assert entry.change is Change.RAISED or stands[entry.key], "repeated what was never raised"
                stands[entry.key] = 1
            elif entry.change is Change.CLEARED:
                assert stands[entry.key], "cleared what was not raised"
                stands[entry.key] = 0
    assert named == {seen.key for _, seen in events if seen.edge is not Edge.CLEARED}
    left = {alarm.key for alarm in play.rules.alarms if alarm.gone_at is None}
    assert {key for key, count in stands.items() if count} == left, "who reads the messages knows what stands"
    assert not [alarm for alarm in play.rules.alarms if alarm.pending]


@given(RATES, EVENTS)
def test_what_a_restart_finds_is_told_once_and_ends_unless_it_comes_again(
    rates: Rates, events: list[tuple[float, Seen]]
) -> None:
    before = played(rates, events)
    after = Play(Rules(rates, least=Severity.WARNING, now=5.0, tokens=before.rules.tokens(before.now)), now=5.0)
    after.rules.restore(before.rules.alarms, now=5.0)
    after.until(5.0 + LONG_S)
    assert after.rules.alarms == ()
    stands = {alarm.key for alarm in before.rules.alarms if alarm.told.value == "stands"}
    for _, bulletin in after.messages:
        for entry in bulletin.entries:
            if entry.change is Change.CLEARED:
                stands.remove(entry.key)
            elif entry.change is Change.RAISED:
                stands.add(entry.key)
            else:
                assert entry.change in {Change.OVER, Change.HAPPENED}
    assert not stands


@given(st.integers(1, 3 * ALARMS_MAX), st.sampled_from([Edge.RAISED, Edge.HAPPENED]))
def test_a_storm_of_different_alarms_is_bounded_and_its_rest_is_counted(count: int, edge: Edge) -> None:
    play = Play(Rules(Rates(), least=Severity.WARNING, now=1000.0))
    for number in range(count):
        play.see(Seen(key=Key("fault", str(number)), edge=edge))
    assert len(play.rules.alarms) <= ALARMS_MAX
    play.until(play.now + 60)
    told = [bulletin for _, bulletin in play.messages]
    assert all(len(bulletin.entries) <= ENTRIES_MAX for bulletin in told)
    assert sum(len(bulletin.entries) + bulletin.more + bulletin.left_out for bulletin in told) == count


@given(st.integers(2, 1000), st.lists(st.floats(0, 4000), max_size=300))
def test_a_bucket_never_lets_more_out_within_an_hour(per_hour: int, pauses: list[float]) -> None:
    bucket, now, taken = Bucket(per_hour, now=0.0), 0.0, []
    for pause in pauses:
        now += pause
        while bucket.take(now):
            taken.append(now)
        assert bucket.next_at(now) > now
        later = bucket.next_at(now)
        assert later - now <= HOUR_S / (per_hour - per_hour // 2) + 1e-6, "never long silence"
    for first in taken:
        assert sum(first <= moment < first + HOUR_S for moment in taken) <= per_hour


@given(st.integers(1, 10_000), st.floats(0, 1), st.floats(0, 1e6))
def test_tries_come_ever_later_but_not_too_late(tries: int, chance: float, asked_s: float) -> None:
    delay = delay_s(tries, chance, asked_s=asked_s)
    assert 1.0 <= delay <= MOST_S
    assert delay_s(tries + 1, chance) >= delay_s(tries, chance)
    assert delay >= min(asked_s, MOST_S)
