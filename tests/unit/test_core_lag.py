"""Lag and exposure, without a clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_sync.core.lag import PENDING_MAX, LagLedger
from ha_sync.core.position import Sequence


@pytest.mark.req("R30")
def test_lag_runs_from_notice_to_acknowledgement():
    ledger = LagLedger()
    ledger.noticed(Sequence(1), at=10.0)
    ledger.noticed(Sequence(2), at=10.5)
    assert ledger.summary(now=11.0).oldest_pending_s == 1.0
    ledger.acknowledged(Sequence(2), at=11.0)
    summary = ledger.summary(now=11.0)
    assert (summary.p50_s, summary.p99_s, summary.samples) == (0.5, 1.0, 2)
    assert summary.oldest_pending_s is None


@pytest.mark.req("R30")
def test_a_look_that_finds_nothing_new_opens_nothing():
    ledger = LagLedger()
    ledger.noticed(Sequence(1), at=10.0)
    ledger.acknowledged(Sequence(1), at=10.5)
    ledger.noticed(Sequence(1), at=11.0)
    assert ledger.summary(now=20.0).oldest_pending_s is None
    ledger.noticed(Sequence(2), at=20.0)
    ledger.acknowledged(Sequence(2), at=20.25)
    summary = ledger.summary(now=21.0)
    assert (summary.p50_s, summary.p99_s, summary.samples) == (0.25, 0.5, 2)


def test_after_another_journal_sequences_count_anew():
    ledger = LagLedger()
    ledger.noticed(Sequence(100), at=1.0)
    ledger.acknowledged(Sequence(100), at=2.0)
    ledger.forget_pending()
    ledger.noticed(Sequence(1), at=3.0)
    assert ledger.summary(now=5.0).oldest_pending_s == 2.0


def test_old_samples_leave_the_window():
    ledger = LagLedger(window_s=60)
    ledger.noticed(Sequence(1), at=0.0)
    ledger.acknowledged(Sequence(1), at=1.0)
    assert ledger.summary(now=61.0).samples == 1
    assert ledger.summary(now=61.1).samples == 0


def test_overflow_of_pending_never_understates_the_lag():
    ledger = LagLedger()
    for sequence in range(1, PENDING_MAX + 3):
        ledger.noticed(Sequence(sequence), at=float(sequence))
    ledger.acknowledged(Sequence(PENDING_MAX + 2), at=PENDING_MAX + 2.0)
    assert ledger.summary(now=PENDING_MAX + 2.0).oldest_pending_s is None


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 100)), max_size=60))
def test_lag_is_never_negative_and_percentiles_are_ordered(steps):
    ledger, clock = LagLedger(), 0.0
    for sequence, delta in steps:
        clock += delta
        ledger.noticed(Sequence(sequence), at=clock)
        ledger.acknowledged(Sequence(sequence // 2), at=clock)
    summary = ledger.summary(now=clock)
    if summary.p50_s is not None and summary.p99_s is not None:
        assert 0 <= summary.p50_s <= summary.p99_s


@pytest.mark.req("R30")
def test_the_histogram_keeps_what_left_the_window():
    ledger = LagLedger(window_s=10)
    for sequence, lag_s in enumerate((0.0009, 0.0011, 0.2, 61.0), start=1):
        ledger.noticed(Sequence(sequence), at=100.0 * sequence)
        ledger.acknowledged(Sequence(sequence), at=100.0 * sequence + lag_s)
    histogram = ledger.summary(now=5000.0).histogram
    told = dict(histogram.cumulated())
    assert (told[0.001], told[0.0025], told[0.1], told[0.25], told[60.0]) == (1, 2, 2, 3, 3)
    assert histogram.measured == 4
    assert histogram.sum_s == pytest.approx(61.202)


@given(st.lists(st.floats(0, 1e6), max_size=50))
def test_a_bucket_has_all_that_is_below_it(lags: list[float]):
    ledger = LagLedger()
    for sequence, lag_s in enumerate(lags, start=1):
        ledger.noticed(Sequence(sequence), at=0.0)
        ledger.acknowledged(Sequence(sequence), at=lag_s)
    histogram = ledger.summary(now=0.0).histogram
    assert all(count == sum(lag_s <= at_most_s for lag_s in lags) for at_most_s, count in histogram.cumulated())
    assert histogram.measured == len(lags)
