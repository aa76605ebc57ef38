"""The sample PBX's plan: the same for the same seed, in order, at the rates that were measured on a real one."""

from __future__ import annotations

import sys
from collections import Counter
from itertools import islice, takewhile

import pytest

from ha_sync.sample import SampleSettings, start_command
from ha_sync.sample import actions as act
from ha_sync.sample.__main__ import parse
from ha_sync.sample.audio import PIECE_BYTES
from ha_sync.sample.plan import plan
from ha_sync.sample.program import WRITERS
from ha_sync.sample.settings import PARTS


def settings(**changes: object) -> SampleSettings:
    return SampleSettings(**{"root": "/r", "ledger": "/l", "seed": 5, **changes})  # type: ignore[arg-type]


def first(given: SampleSettings, count: int = 3000) -> list[act.Action]:
    return list(islice(plan(given), count))


def test_the_same_seed_gives_the_same_actions() -> None:
    assert first(settings()) == first(settings())


@pytest.mark.parametrize("change", [{"seed": 6}, {"run": 1}])
def test_another_seed_or_another_run_gives_other_actions(change: dict[str, int]) -> None:
    assert first(settings()) != first(settings(**change))


def test_neither_the_machine_nor_the_rate_has_a_say_in_the_sequence() -> None:
    assert first(settings()) == first(settings(root="/elsewhere", ledger="/other", rate_scale=7.0))


def test_actions_come_in_the_order_of_time() -> None:
    times = [action.at_s for action in first(settings(), 20_000)]
    assert times == sorted(times)


def test_unique_ids_do_not_repeat_over_runs() -> None:
    ids = [
        {action.key for action in first(settings(run=run), 20_000) if isinstance(action, act.RecordingOpen)}
        for run in range(3)
    ]
    paths = [
        [action.path for action in first(settings(run=run), 20_000) if isinstance(action, act.RecordingOpen)]
        for run in range(3)
    ]
    assert not ids[0] & ids[1]
    assert not ids[1] & ids[2]
    together = [path for run in paths for path in run]
    assert len(together) == len(set(together))


def test_every_recording_is_opened_written_and_closed_once() -> None:
    seen: dict[str, str] = {}
    for action in first(settings(), 40_000):
        match action:
            case act.RecordingOpen(key=key):
                assert key not in seen
                seen[key] = "open"
            case act.RecordingPiece(key=key):
                assert seen[key] == "open"
            case act.RecordingClose(key=key, rest=rest):
                assert seen[key] == "open"
                assert 0 <= rest < PIECE_BYTES
                seen[key] = "closed"
    assert Counter(seen.values())["closed"] > 200


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_rates_are_those_of_the_traced_pbx(seed: int) -> None:
    """183 s of 40 calls at once: 807 CDR rows, 7,021 CEL rows, 424 KB of recordings a second."""
    counts: Counter[str] = Counter()
    for action in takewhile(lambda action: action.at_s < 183, plan(settings(seed=seed))):
        counts[type(action).__name__] += 1
        if isinstance(action, act.RecordingPiece):
            counts["bytes"] += PIECE_BYTES
        if isinstance(action, act.RecordingClose):
            counts["bytes"] += action.rest
    assert counts["CdrRow"] == pytest.approx(807, rel=0.12)
    assert counts["CelRow"] == pytest.approx(7021, rel=0.12)
    assert counts["bytes"] / 183 == pytest.approx(424_000, rel=0.15)
    assert counts["VoicemailEnd"] == pytest.approx(90, rel=0.3)


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_off_does_nothing_and_the_others_do_the_same(part: str) -> None:
    others = tuple(name for name in PARTS if name != part)
    whole = [action for action in first(settings(), 20_000) if act.PART_OF[type(action)] != part]
    assert first(settings(parts=others), len(whole)) == whole
    assert len(whole) < 20_000


def test_every_action_belongs_to_a_part_and_to_a_writer() -> None:
    named = [thing for thing in vars(act).values() if isinstance(thing, type) and issubclass(thing, act.Action)]
    kinds = set(named) - {act.Action}
    assert set(act.PART_OF) == kinds
    written = [kind for writer in WRITERS.values() for kind in writer]
    assert sorted(kind.__name__ for kind in {*written, act.LogRotate}) == sorted(kind.__name__ for kind in kinds)
    assert len(written) == len(set(written))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"calls": 0}, "calls"),
        ({"boxes": 501}, "boxes"),
        ({"rate_scale": 0.0}, "rate_scale"),
        ({"seconds": -1.0}, "seconds"),
        ({"parts": ("cdr", "fax")}, "fax"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(changes: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        settings(**changes)


def test_all_faults_of_the_settings_come_together() -> None:
    with pytest.raises(ValueError, match=r"calls.*boxes"):
        settings(calls=0, boxes=0)


def test_the_command_line_carries_every_setting() -> None:
    given = settings(calls=7, run=2, seconds=3.5, rate_scale=2.5, config_wal=False, boxes=3, parts=("cdr", "voicemail"))
    command = start_command(given)
    assert command[:3] == [sys.executable, "-m", "ha_sync.sample"]
    assert parse(command[3:]) == given


def test_cel_can_be_switched_off_on_the_command_line() -> None:
    assert "cel" not in parse(["--root", "/r", "--ledger", "/l", "--no-cel"]).parts
