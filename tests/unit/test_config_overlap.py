"""Two datasets never replicate the same bytes, and none the engine's own files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ha_sync.config import Settings, load
from ha_sync.errors import ConfigFault

Entry = tuple[str, str, str, str]


def read(tmp_path: Path, *entries: Entry) -> Settings:
    lines = ["[node]", 'state_dir = "/nowhere/state"', 'run_dir = "/nowhere/run"']
    for name, kind, path, extra in entries:
        lines += ["[[dataset]]", f'name = "{name}"', f'kind = "{kind}"', f'path = "{path}"', extra]
    file = tmp_path / "sync.toml"
    file.write_text("\n".join(lines))
    return load(str(file))


def faults(tmp_path: Path, *entries: Entry) -> tuple[str, ...]:
    with pytest.raises(ConfigFault) as caught:
        read(tmp_path, *entries)
    return caught.value.faults


def test_two_of_one_name_are_refused(tmp_path: Path) -> None:
    (found,) = faults(tmp_path, ("a", "tree", "/srv/x", ""), ("a", "tree", "/srv/y", ""))
    assert found.startswith("dataset[a].name")


@pytest.mark.parametrize("kind", ["sqlite", "tree"])
def test_the_same_path_twice_is_refused(tmp_path: Path, kind: str) -> None:
    (found,) = faults(tmp_path, ("a", kind, "/srv/x", ""), ("b", kind, "/srv//x/", ""))
    assert "the same as that of dataset[a]" in found


def test_the_same_database_by_a_symbolic_or_hard_link_is_refused(tmp_path: Path) -> None:
    database = tmp_path / "pbx.db"
    database.touch()
    (tmp_path / "soft.db").symlink_to(database)
    os.link(database, tmp_path / "hard.db")
    for other in ("soft.db", "hard.db"):
        (found,) = faults(tmp_path, ("a", "sqlite", str(database), ""), ("b", "sqlite", str(tmp_path / other), ""))
        assert "the same as that of dataset[a]" in found


def test_a_tree_inside_a_tree_is_refused_in_either_order_until_it_is_left_out(tmp_path: Path) -> None:
    outer, inner = ("outer", "tree", "/srv/spool", ""), ("inner", "tree", "/srv/spool/voicemail/default", "")
    for order in ((outer, inner), (inner, outer)):
        (found,) = faults(tmp_path, *order)
        assert 'dataset[inner].path = "/srv/spool/voicemail/default"' in found
        assert 'exclude = ["voicemail/default"]' in found
    for pattern in ("voicemail/default", "voicemail", "v*", "*/default/"):
        assert read(tmp_path, inner, ("outer", "tree", "/srv/spool", f'exclude = ["{pattern}"]'))


def test_neighbours_with_a_common_beginning_do_not_overlap(tmp_path: Path) -> None:
    assert read(tmp_path, ("a", "tree", "/srv/spool", ""), ("b", "tree", "/srv/spool-old", ""))


def test_a_link_into_another_dataset_is_seen(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "spool")
    (found,) = faults(
        tmp_path, ("a", "tree", str(tmp_path / "spool"), ""), ("b", "tree", str(tmp_path / "link" / "sub"), "")
    )
    assert 'exclude = ["sub"]' in found


def test_a_database_inside_a_tree_needs_its_journals_left_out_too(tmp_path: Path) -> None:
    database = ("astdb", "sqlite", "/srv/lib/db/astdb.sqlite3", "")
    (found,) = faults(tmp_path, database, ("lib", "tree", "/srv/lib", 'exclude = ["db/astdb.sqlite3"]'))
    assert 'exclude = ["db/astdb.sqlite3*"]' in found
    assert read(tmp_path, database, ("lib", "tree", "/srv/lib", 'exclude = ["db/astdb.sqlite3*"]'))


@pytest.mark.parametrize("own", ["/nowhere/state", "/nowhere/run", "/nowhere/state/below"])
def test_the_engines_own_folders_are_no_dataset(tmp_path: Path, own: str) -> None:
    found = faults(tmp_path, ("a", "tree", own, ""))
    assert "the engine's own node." in found[0]


def test_a_tree_around_the_engines_own_folders_must_leave_them_out(tmp_path: Path) -> None:
    found = faults(tmp_path, ("a", "tree", "/nowhere", ""))
    assert [line[line.index("exclude") :] for line in found] == ['exclude = ["state"]', 'exclude = ["run"]']
    assert read(tmp_path, ("a", "tree", "/nowhere", 'exclude = ["state", "run"]'))
