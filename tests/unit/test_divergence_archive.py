"""Archives are whole or not there, stay within their bound, and are made once for each service."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ha_sync.catalogue.tree import TreeCatalogue
from ha_sync.config import DivergenceSettings, NodeSettings, Settings, SqliteSettings, TreeSettings
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.core.position import Epoch
from ha_sync.divergence import serving
from ha_sync.divergence.archive import STAGING, Archives, Standing, State
from ha_sync.divergence.keeper import Keeper
from ha_sync.errors import ConfigFault, OperatorNeeded, Retryable


class Node:
    """A state directory, one tree, and what was reported."""

    def __init__(self, folder: Path, *, max_mib: int = 1) -> None:
        self.place = folder / "state" / "datasets" / "recordings"
        self.place.mkdir(parents=True)
        self.root = folder / "recordings"
        self.root.mkdir()
        self.tree = TreeSettings(name=DatasetName("recordings"), path=str(self.root), priority=Priority.RECORDINGS)
        self.settings = Settings(
            node=NodeSettings(state_dir=str(folder / "state")),
            divergence=DivergenceSettings(max_mib=max_mib),
            datasets=(self.tree,),
        )
        self.events: list[tuple[str, str, dict[str, object]]] = []
        self.cluster = "one"
        self.keeper = self.restarted()

    def restarted(self) -> Keeper:
        self.keeper = Keeper.of(self.settings, cluster=lambda: self.cluster, report=self._report)
        return self.keeper

    @property
    def archives(self) -> Archives:
        return self.keeper.archives

    def _report(self, severity: str, what: str, fields: dict[str, object]) -> None:
        self.events.append((severity, what, fields))

    def serve(self, epoch: int) -> None:
        self.keeper.serve(self.tree, str(self.place), Epoch(epoch), based=True)

    def save(self):
        return self.keeper.save(self.tree, str(self.place), lambda _: None)


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.mark.req("R13")
def test_without_a_service_there_is_nothing_to_save(node):
    (node.root / "f").write_bytes(b"1")
    assert node.save() is None
    assert node.archives.listed() == []


@pytest.mark.req("R13")
def test_an_archive_is_made_once_and_the_mark_goes(node):
    node.serve(3)
    (node.root / "f").write_bytes(b"1")
    made = node.save()
    assert (made.about.id, made.about.dataset, made.about.counts["files"]) == ("3", "recordings", 1)
    assert serving.load(str(node.place)) is None
    assert node.save() is None
    assert [severity for severity, _, _ in node.events] == ["error"]
    assert (Path(made.folder) / "summary.txt").read_text().startswith("What this node wrote to recordings")


@pytest.mark.req("R13")
def test_a_crash_between_archive_and_mark_makes_no_second_one(node):
    node.serve(3)
    (node.root / "f").write_bytes(b"1")
    mark = (node.place / serving.NAME).read_bytes()
    made = node.save()
    (node.place / serving.NAME).write_bytes(mark)
    node.restarted()
    assert node.save().folder == made.folder
    assert len(node.archives.listed()) == 1


@pytest.mark.req("R13")
def test_a_second_service_of_the_same_epoch_has_an_archive_of_its_own(node):
    (node.root / "f").write_bytes(b"1")
    for _ in range(2):
        node.serve(3)
        node.save()
    assert [item.about.id for item in node.archives.listed()] == ["3", "3-2"]


@pytest.mark.req("R13")
def test_what_a_crash_left_half_built_is_built_again(node):
    node.serve(3)
    (node.root / "f").write_bytes(b"1")
    left = Path(node.archives.folder, f"{STAGING}recordings", "files", "0")
    left.mkdir(parents=True)
    (left / "1").write_bytes(b"half")
    assert node.archives.listed() == []
    made = node.save()
    assert (Path(made.folder) / "files" / "0" / "1").read_bytes() == b"1"


@pytest.mark.req("R13")
def test_a_damaged_mark_stands_for_a_service_of_which_nothing_is_known(node):
    node.serve(3)
    (node.place / serving.NAME).write_bytes(b"{")
    (node.root / "f").write_bytes(b"1")
    assert node.save().about.epoch == 0


@pytest.mark.req("R13")
def test_the_base_of_a_service_is_kept_over_a_restart(node):
    node.keeper.serve(node.tree, str(node.place), Epoch(3), based=False)
    node.keeper.serve(node.tree, str(node.place), Epoch(5), based=True)
    assert serving.load(str(node.place)).based is False
    assert serving.load(str(node.place)).epoch == 5


@pytest.mark.req("R13")
def test_merged_archives_give_way_and_others_never_do(node):
    big = b"x" * 700_000
    node.serve(1)
    (node.root / "first").write_bytes(big)
    first = node.save()
    (node.root / "first").unlink()
    node.serve(2)
    (node.root / "second").write_bytes(big)
    second = node.save()
    assert second.about.left_out_count == 1
    assert "no room" in second.about.left_out[0]
    assert any("does not fit" in what and severity == "error" for severity, what, _ in node.events)
    assert os.path.exists(first.folder)
    node.archives.note(first, Standing(state=State.MERGED))
    node.serve(3)
    third = node.save()
    assert (third.about.left_out_count, third.about.counts["files"]) == (0, 1)
    assert not os.path.exists(first.folder)
    assert any("made room" in what for _, what, _ in node.events)


@pytest.mark.req("R13")
def test_a_database_that_cannot_be_read_is_kept_as_it_is(tmp_path):
    node = Node(tmp_path)
    path = tmp_path / "broken.db"
    path.write_bytes(b"this is no database at all, but it was one" * 100)
    settings = SqliteSettings(name=DatasetName("cdr"), path=str(path), priority=Priority.CDR)
    place = str(node.place)
    node.keeper.serve(settings, place, Epoch(1), based=True)
    made = node.keeper.save(settings, place, lambda _: None)
    assert "not a SQLite database" in made.about.trouble
    assert not made.to_merge
    assert (Path(made.folder) / "raw.db").read_bytes() == path.read_bytes()


@pytest.mark.req("R13")
def test_an_empty_database_file_is_nothing_that_anybody_lacks(tmp_path):
    node = Node(tmp_path)
    path = tmp_path / "empty.db"
    path.touch()
    settings = SqliteSettings(name=DatasetName("cdr"), path=str(path), priority=Priority.CDR)
    node.keeper.serve(settings, str(node.place), Epoch(1), based=True)
    assert node.keeper.save(settings, str(node.place), lambda _: None) is None


@pytest.mark.req("R13")
def test_a_directory_that_is_not_mounted_holds_the_standby_back(node):
    node.serve(1)
    catalogue = TreeCatalogue(str(node.place / "catalogue.db"))
    catalogue.put("root_identity", "abc")
    from ha_sync.catalogue.tree import Entry

    catalogue.put_entries([Entry(path=b"f", type=1)])
    catalogue.close()
    with pytest.raises(OperatorNeeded, match="marker"):
        node.save()
    assert serving.load(str(node.place)) is not None


@pytest.mark.req("R13")
def test_a_change_of_role_ends_a_saving_and_keeps_the_mark(node):
    node.serve(1)
    (node.root / "f").write_bytes(b"1")

    def taken_over(_: str) -> None:
        raise AssertionError

    node.keeper._given_up.add("recordings")
    with pytest.raises(Retryable, match="role changes"):
        node.keeper.save(node.tree, str(node.place), taken_over)
    node.keeper._given_up.discard("recordings")
    assert node.keeper.is_own(node.tree, str(node.place))
    assert node.archives.listed() == []


@pytest.mark.req("R13")
def test_what_was_written_for_another_pair_is_no_divergence_of_this_one(node):
    node.serve(1)
    (node.root / "f").write_bytes(b"1")
    node.cluster = "two"
    assert node.save() is None
    assert serving.load(str(node.place)) is None


@pytest.mark.req("R13")
def test_what_was_written_before_there_was_a_pair_belongs_to_the_first(node):
    node.cluster = ""
    node.serve(1)
    (node.root / "f").write_bytes(b"1")
    node.cluster = "one"
    assert node.save().about.cluster == "one"


@pytest.mark.req("R33")
def test_an_unknown_id_or_dataset_names_what_there_is(node):
    node.serve(1)
    (node.root / "f").write_bytes(b"1")
    node.save()
    with pytest.raises(ConfigFault, match="there are: 1"):
        node.archives.get("2")
    with pytest.raises(ConfigFault, match="it has: recordings"):
        node.archives.get("1", "cdr")


@pytest.mark.req("R13")
def test_a_removed_archive_is_gone_with_its_folder(node):
    node.serve(1)
    (node.root / "f").write_bytes(b"1")
    made = node.save()
    node.archives.remove(made)
    assert node.archives.listed() == []
    assert [name for name in os.listdir(node.archives.folder) if not name.startswith(".")] == []
