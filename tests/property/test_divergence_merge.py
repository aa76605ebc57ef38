"""The pure rules of a merge: multisets of records and of messages, numbers without gaps, names by content."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_sync.divergence.mail import Identity, lacking, name_of, next_number, order_of, parsed
from ha_sync.divergence.naming import names_for
from ha_sync.divergence.same import grouped, missing
from ha_sync.files.confine import NAME_MAX_BYTES, split

RECORDS = st.lists(st.integers(0, 5), max_size=30)
NAMES = st.binary(min_size=1, max_size=250).filter(lambda name: not {b"/", b"\0"} & {bytes((c,)) for c in name})
TEXTS = st.lists(st.sampled_from([b"a", b"b", b"c"]), max_size=20)


def inserted(archive: list[int], table: list[int]) -> list[int]:
    """The records that a merge of ``archive`` inserts into ``table``."""
    firsts: dict[int, int] = {}
    for place, record in enumerate(archive):
        firsts.setdefault(record, place)
    groups = grouped([(firsts[record], place) for place, record in enumerate(archive)])
    have = {firsts[record]: count for record, count in Counter(table).items() if record in firsts}
    return [archive[place] for place in missing(groups, have)]


@pytest.mark.req("R13")
@given(RECORDS, RECORDS)
def test_a_merge_of_records_is_the_union_of_multisets(archive, table):
    merged = Counter(table) + Counter(inserted(archive, table))
    assert merged == Counter(archive) | Counter(table)


@pytest.mark.req("R13")
@given(RECORDS, RECORDS)
def test_a_second_merge_inserts_nothing(archive, table):
    assert inserted(archive, table + inserted(archive, table)) == []


@pytest.mark.req("R13")
@given(RECORDS, RECORDS, st.data())
def test_a_merge_that_was_cut_off_is_completed_by_the_next(archive, table, data):
    first = inserted(archive, table)
    cut = data.draw(st.integers(0, len(first)))
    second = inserted(archive, table + first[:cut])
    assert Counter(first[:cut]) + Counter(second) == Counter(first)


def identities(names: list[bytes]) -> list[Identity]:
    return [Identity(origin=((b"msg_id", name),), sounds=()) for name in names]


@pytest.mark.req("R13")
@given(TEXTS, TEXTS)
def test_a_merge_of_messages_is_the_union_of_multisets(theirs, mine):
    wanted = [theirs[place] for place in lacking(identities(theirs), Counter(identities(mine)))]
    assert Counter(mine) + Counter(wanted) == Counter(theirs) | Counter(mine)


@pytest.mark.req("R13", "R25")
@given(st.integers(0, 40), st.integers(1, 20))
def test_new_messages_get_the_next_numbers_without_a_gap(there, added):
    names = {name_of(number, extension) for number in range(there) for extension in (b"txt", b"wav")}
    for _ in range(added):
        number = next_number(names)
        assert number is not None
        assert not any(parsed(name)[0] == number for name in names)
        names |= {name_of(number, extension) for extension in order_of((b"txt", b"gsm"))}
    complete = sorted(parsed(name)[0] for name in names if name.endswith(b".txt"))
    assert complete == list(range(there + added))


@pytest.mark.req("R25")
@given(st.sets(st.integers(0, 12)), st.sets(st.integers(0, 12)))
def test_a_number_that_something_bears_is_never_given(complete, half):
    names = {name_of(n, b"txt") for n in complete} | {name_of(n, b"wav") for n in complete | half}
    number = next_number(names)
    first = next(n for n in range(14) if n not in complete)
    assert number == (None if first in half else first)


@given(st.lists(st.sampled_from([b"wav", b"gsm", b"txt", b"WAV"]), unique=True, min_size=1))
def test_the_commit_mark_comes_last(extensions):
    ordered = order_of(extensions)
    assert sorted(ordered) == sorted(extensions)
    assert b"txt" not in ordered[:-1]


def test_a_full_folder_takes_no_message():
    names = {name_of(number, b"txt") for number in range(10_000)}
    assert next_number(names) is None


@given(NAMES, st.binary(min_size=16, max_size=16))
def test_other_names_stand_beside_the_first_keep_the_extension_and_differ(name, content):
    path = b"folder/" + name
    names = list(names_for(path, content))
    assert names[0] == path
    assert len(set(names)) == len(names)
    for other in names[1:]:
        folder, last = split(other)
        assert folder == b"folder"
        assert len(last) <= NAME_MAX_BYTES
        stem, _, extension = name.rpartition(b".")
        if stem:
            assert last.endswith(b"." + extension) or len(extension) > 200
    assert names == list(names_for(path, content))
