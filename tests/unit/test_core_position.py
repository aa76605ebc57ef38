"""Positions: what a subscriber's position means to the Active."""

import pytest

from ha_sync.core.position import NOWHERE, Answer, Epoch, Incarnation, Position, Sequence, answer_to

ONE, TWO = Incarnation(b"1" * 16), Incarnation(b"2" * 16)


def at(sequence: int, *, epoch: int = 5, incarnation: Incarnation = ONE) -> Position:
    return Position(epoch=Epoch(epoch), incarnation=incarnation, sequence=Sequence(sequence))


@pytest.mark.req("R22")
@pytest.mark.parametrize(
    ("applied", "oldest_kept", "answer"),
    [
        pytest.param(at(10), 0, Answer.RESUME, id="equal"),
        pytest.param(at(3), 0, Answer.RESUME, id="behind"),
        pytest.param(at(3), 3, Answer.RESUME, id="behind, just kept"),
        pytest.param(at(3), 4, Answer.COMPARE, id="gap: the journal was trimmed"),
        pytest.param(at(11), 0, Answer.COMPARE, id="ahead of me"),
        pytest.param(at(10, epoch=4), 0, Answer.COMPARE, id="other epoch"),
        pytest.param(at(10, incarnation=TWO), 0, Answer.COMPARE, id="other incarnation"),
        pytest.param(NOWHERE, 0, Answer.COMPARE, id="never received anything"),
    ],
)
def test_resume_needs_the_same_journal_without_a_gap(applied, oldest_kept, answer):
    assert answer_to(applied=applied, captured=at(10), oldest_kept=Sequence(oldest_kept)) is answer


def test_a_position_refuses_what_cannot_be():
    with pytest.raises(AssertionError):
        Position(epoch=Epoch(-1), incarnation=ONE, sequence=Sequence(0))
    with pytest.raises(AssertionError):
        Position(epoch=Epoch(1), incarnation=Incarnation(b"short"), sequence=Sequence(0))
