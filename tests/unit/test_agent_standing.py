"""How a node's data stands: each sentence of ``core/standing.py``."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ha_sync.core.dataset import DatasetName, DatasetState, Role
from ha_sync.core.position import NO_INCARNATION, NOWHERE, Epoch, Incarnation, Position, Sequence
from ha_sync.core.standing import DatasetStanding, Standing, standing_of

JOURNAL = Incarnation(bytes(16))


def at(epoch: int, sequence: int, incarnation: bytes = JOURNAL) -> Position:
    return Position(epoch=Epoch(epoch), incarnation=Incarnation(incarnation), sequence=Sequence(sequence))


SEVENTH = at(4, 7)


def dataset(name: str = "cdr", position: Position = SEVENTH, **changes: object) -> DatasetStanding:
    plain = DatasetStanding(
        name=DatasetName(name),
        state=DatasetState.STREAMING,
        position=position,
        acknowledged=None,
        consistent=True,
        connected=True,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def standing(*datasets: DatasetStanding, role: Role | None = Role.STANDBY, epoch: int = 4, served: int = 0) -> Standing:
    return standing_of(datasets, role=role, epoch=Epoch(epoch), served=Epoch(served), founder=False)


@pytest.mark.req("R13")
def test_an_active_has_the_data_of_its_epoch_whole() -> None:
    found = standing(dataset(position=at(2, 1)), role=Role.ACTIVE, epoch=6)
    assert (found.data, found.sound) == (6, True)


@pytest.mark.req("R13")
@pytest.mark.parametrize("role", [None, Role.STANDBY])
def test_a_node_that_served_last_has_the_data_of_that_epoch_whole(role: Role | None) -> None:
    found = standing(dataset(position=at(4, 7), consistent=False), role=role, epoch=6, served=4)
    assert (found.data, found.sound) == (4, True)


@pytest.mark.req("R13")
def test_the_first_position_of_a_higher_epoch_makes_it_the_data_of_a_standby_as_old_as_its_oldest_dataset() -> None:
    found = standing(dataset("cdr", at(6, 1)), dataset("config", at(4, 9)), served=4)
    assert found.data == 4
    assert standing(dataset("cdr", at(6, 1)), dataset("config", at(6, 2)), served=4).data == 6


@pytest.mark.req("R12", "R13")
@pytest.mark.parametrize("lacking", [{"consistent": False}, {"position": at(6, 0, NO_INCARNATION)}])
def test_it_is_sound_only_when_every_dataset_has_a_consistent_copy(lacking: dict[str, object]) -> None:
    whole = dataset("cdr", at(6, 1))
    assert standing(whole, dataset("config", at(6, 3)), served=4).sound
    assert not standing(whole, dataset("config", **({"position": at(6, 3)} | lacking)), served=4).sound


@pytest.mark.req("R12")
def test_a_node_that_never_had_data_is_not_sound_but_for_the_one_that_began_the_pair() -> None:
    fresh = dataset(position=NOWHERE, consistent=False)
    assert standing(fresh).sound is False
    for role in (None, Role.STANDBY):
        founder = standing_of([fresh], role=role, epoch=Epoch(1), served=Epoch(0), founder=True)
        assert (founder.data, founder.sound) == (0, True)


@pytest.mark.req("R13")
def test_what_the_active_has_nothing_of_yet_is_left_out() -> None:
    nothing = dataset("voicemail", NOWHERE, absent=True, consistent=False, connected=False)
    found = standing(dataset("cdr", at(6, 1)), nothing, served=4)
    assert (found.data, found.sound, found.current) == (6, True, True)


@pytest.mark.req("R13")
def test_where_that_is_all_the_data_of_the_epoch_is_had() -> None:
    nothing = dataset("voicemail", NOWHERE, absent=True, consistent=False, connected=False)
    found = standing(nothing, epoch=6)
    assert (found.data, found.sound, found.current, found.positions) == (6, True, True, "")


def test_what_was_absent_and_has_come_counts() -> None:
    come = dataset("voicemail", at(6, 1), absent=True, consistent=False)
    assert not standing(come, served=4).sound


@pytest.mark.req("R12")
@pytest.mark.parametrize(
    "lacking",
    [{"connected": False}, {"state": DatasetState.SYNCING}, {"state": DatasetState.WAITING}],
)
def test_a_standby_is_current_when_every_stream_is_connected_and_none_is_in_a_full_sync(
    lacking: dict[str, object],
) -> None:
    assert standing(dataset("cdr"), dataset("config", state=DatasetState.DEGRADED)).current
    assert not standing(dataset("cdr"), dataset("config", **lacking)).current


def test_progress_grows_with_the_data() -> None:
    before = standing(dataset("cdr", at(4, 7)), dataset("config", at(4, 2)))
    after = standing(dataset("cdr", at(4, 8)), dataset("config", at(4, 2)))
    assert (before.progress, after.progress) == (9, 10)


@pytest.mark.req("R6")
def test_both_nodes_write_the_same_text_when_everything_is_acknowledged() -> None:
    captured = dataset("cdr", at(4, 9), acknowledged=at(4, 9))
    empty = dataset("config", at(4, 0, b"\1" * 16))
    active = standing(captured, empty, role=Role.ACTIVE)
    assert active.positions == standing(dataset("config", NOWHERE), dataset("cdr", at(4, 9))).positions != ""


positions = st.builds(
    at, st.integers(0, 3), st.integers(0, 3), st.sampled_from([NO_INCARNATION, JOURNAL, bytes([1] * 16)])
)
nodes = st.dictionaries(st.sampled_from(["a", "ab", "b", "config"]), positions, max_size=4)


@given(mine=nodes, theirs=nodes)
@pytest.mark.req("R6")
def test_equal_text_means_equal_data(mine: dict[str, Position], theirs: dict[str, Position]) -> None:
    texts = [
        standing(*(dataset(name, position) for name, position in node.items())).positions for node in (mine, theirs)
    ]
    captured = [{name: position for name, position in node.items() if position.sequence > 0} for node in (mine, theirs)]
    assert (texts[0] == texts[1]) == (captured[0] == captured[1])


@given(node=nodes, name=st.sampled_from(["a", "ab", "b", "config"]), acknowledged=positions)
@pytest.mark.req("R6")
def test_what_the_standby_does_not_have_is_not_in_the_actives_text(
    node: dict[str, Position], name: str, acknowledged: Position
) -> None:
    assume(name in node and acknowledged != node[name])
    ours = [dataset(each, position) for each, position in node.items()]
    told = [replace(one, acknowledged=acknowledged) if one.name == name else one for one in ours]
    theirs = [dataset(each, acknowledged if each == name else position) for each, position in node.items()]
    assert standing(*told, role=Role.ACTIVE).positions == standing(*theirs).positions
