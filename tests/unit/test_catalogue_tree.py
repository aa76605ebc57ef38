"""The catalogue of a tree: walk order, the dirty set, loss."""

from pathlib import Path

import pytest

from ha_sync.catalogue.tree import TYPE_FILE, Entry, TreeCatalogue, Witness
from ha_sync.core.position import Epoch, Incarnation, Position, Sequence


@pytest.fixture
def catalogue(tmp_path: Path) -> TreeCatalogue:
    return TreeCatalogue(str(tmp_path / "c" / "tree.db"))


def test_entries_come_in_walk_order_a_directory_before_its_neighbour_with_a_longer_name(catalogue):
    catalogue.put_entries(Entry(path=p, type=TYPE_FILE) for p in [b"a-b", b"a/c", b"a", b"b", b"", b"a/c/d", b"a/c-"])
    assert [e.path for e in catalogue.entries()] == [b"", b"a", b"a/c", b"a/c/d", b"a/c-", b"a-b", b"b"]
    assert [e.path for e in catalogue.entries(after=b"a/c", limit=2)] == [b"a/c/d", b"a/c-"]
    assert catalogue.entries_below(b"a") == [b"a/c", b"a/c/d", b"a/c-"]


def test_an_entry_reads_back_as_it_was_stored(catalogue):
    entry = Entry(path=b"x/\xff", type=TYPE_FILE, mode=0o4755, uid=2**31, gid=5, mtime_ns=-1, size=9000, hash=b"h" * 16,
                  block_size=128, block_hashes=b"b" * 32, link_target=b"", xattrs=b"x",
                  witness=Witness(inode=2**62, ctime_ns=7))  # fmt: skip
    catalogue.put_entries([entry])
    assert catalogue.entry(b"x/\xff") == entry
    assert catalogue.path_with(b"h" * 16) == b"x/\xff"


@pytest.mark.req("R22")
def test_a_path_that_became_dirty_again_stays_dirty_when_its_older_change_is_acknowledged(catalogue):
    catalogue.mark_dirty([(b"a/b", Sequence(1)), (b"c", Sequence(2))])
    catalogue.mark_dirty([(b"a/b", Sequence(3))])
    catalogue.clean([(b"a/b", Sequence(1)), (b"c", Sequence(2))])
    assert catalogue.dirty() == [(b"a/b", 3)]
    assert catalogue.dirty_count() == 1


def test_a_failed_transaction_leaves_nothing(catalogue):
    position = Position(epoch=Epoch(3), incarnation=Incarnation(bytes(16)), sequence=Sequence(9))
    with catalogue.transaction(durable=True):
        catalogue.put_position("applied", position)

    def fail() -> None:
        with catalogue.transaction(durable=True):
            catalogue.put("applied", "rubbish")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert catalogue.position("applied") == position


def test_a_damaged_catalogue_is_set_aside_and_said_to_be_lost(tmp_path):
    path = tmp_path / "tree.db"
    path.write_bytes(b"no database at all" * 1000)
    catalogue = TreeCatalogue(str(path))
    assert catalogue.lost
    assert catalogue.entry_count() == 0
    assert (tmp_path / "tree.db.damaged").exists()
