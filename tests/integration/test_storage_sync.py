"""Real filesystems on loop devices: what lies on the Active's storage comes to the Standby's, once, and stays safe."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.storage_pair import Disk, StoragePair, cannot_mount, ended, sync, tree_of, until

pytestmark = [
    pytest.mark.req("R9"),
    pytest.mark.skipif(bool(cannot_mount()), reason=cannot_mount() or "mounts"),
]


def furnish(root: Path, *, files: int = 40) -> None:
    for number in range(files):
        folder = root / f"2026-{number % 4:02}"
        folder.mkdir(exist_ok=True)
        (folder / f"call-{number:03}.wav").write_bytes(number.to_bytes(2, "big") + os.urandom(5000))
    (root / "large").write_bytes(os.urandom(3 * 1024 * 1024))


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[StoragePair]:
    with StoragePair(tmp_path) as made:
        made.mount()
        made.begin()
        yield made


def test_nothing_goes_before_it_is_asked_for_then_everything_then_what_is_new(pair: StoragePair) -> None:
    here, there = pair.places
    furnish(here)
    listed = pair.a.command("storage", "list").stdout
    assert "not synchronised yet" in listed, listed
    assert tree_of(there) == {}
    assert not (there / ".ha-stage").exists()

    code, plan = sync(pair.a, "--dry-run")
    assert code == 0
    assert plan["plans"][0]["send_objects"] == len(tree_of(here))
    assert tree_of(there) == {}

    told = ended(pair.a)
    assert tree_of(there) == tree_of(here)
    assert told["wire_bytes"] >= 3 * 1024 * 1024
    assert told["differing"] == 0

    (here / "2026-00" / "new.wav").write_bytes(b"later" * 1000)
    until((there / "2026-00" / "new.wav").exists, "a new file follows by itself")

    again = ended(pair.a, "--verify")
    assert (again["differing"], again["unverified"]) == (0, 0)
    assert again["wire_bytes"] < 200_000
    assert "storage-sync" in pair.a.command("logs", "storage").stdout
    assert "usb0" not in pair.a.command("logs", "backup").stdout


def test_a_renamed_directory_costs_no_data_also_when_no_engine_watched(pair: StoragePair) -> None:
    here, there = pair.places
    for number in range(5):
        (here / "old").mkdir(exist_ok=True)
        (here / "old" / f"{number}.wav").write_bytes(os.urandom(400_000))
    ended(pair.a)
    (here / "old").rename(here / "new")
    told = ended(pair.a)
    assert told["wire_bytes"] < 100_000
    assert (there / "new" / "3.wav").read_bytes() == (here / "new" / "3.wav").read_bytes()
    pair.a.stop()
    (here / "new").rename(here / "newer")
    pair.a.serve("active", 1)
    told = ended(pair.a)
    assert told["wire_bytes"] < 100_000
    assert (there / "newer" / "3.wav").read_bytes() == (here / "newer" / "3.wav").read_bytes()


def test_what_is_deleted_stays_on_an_add_only_storage_and_is_no_difference(pair: StoragePair) -> None:
    here, there = pair.places
    furnish(here)
    ended(pair.a)
    shutil.rmtree(here / "2026-01")
    (here / "large").unlink()
    told = ended(pair.a, "--verify")
    assert told["differing"] == 0
    assert (there / "large").exists()
    assert (there / "2026-01" / "call-001.wav").exists()


def test_what_is_written_to_the_standbys_storage_is_noticed_and_stays(pair: StoragePair) -> None:
    here, there = pair.places
    furnish(here)
    ended(pair.a)
    until(lambda: pair.b.dataset("usb0").state == "streaming", "in step")
    (there / "stranger.txt").write_text("from a laptop")
    words = "a file that is not the active's was written to the storage"
    until(lambda: words in pair.b.command("logs", "events").stdout, "it is noticed")
    assert (there / "stranger.txt").read_text() == "from a laptop"


@contextlib.contextmanager
def holding_a_device(folder: Path) -> Iterator[None]:
    """The loop device that would be next is taken: what is mounted now gets another number."""
    with (folder / "spare").open("wb") as file:
        file.truncate(1024 * 1024)
    found = subprocess.run(["losetup", "--find", "--show", str(folder / "spare")], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["losetup", "-d", found.stdout.decode().strip()], check=True)


def test_a_storage_that_is_not_mounted_is_refused_and_never_an_empty_disk(tmp_path: Path) -> None:
    with StoragePair(tmp_path) as pair:
        pair.mount()
        pair.begin()
        here, there = pair.places
        furnish(here)
        ended(pair.a)
        before = tree_of(there)
        pair.disks[0].unmount(here)
        until(lambda: "nothing is mounted" in pair.a.dataset("usb0").reason, "it is seen to be away")
        code, told = sync(pair.a)
        assert code == 6, told
        assert tree_of(there) == before
        assert "the storage is not there" in pair.a.command("logs", "events").stdout
        assert pair.a.wait_replicated() == ()  # the rest of the node does not wait for it
        # Back as another device, with a file more: it goes on by itself.
        with holding_a_device(tmp_path):
            pair.disks[0].mount(here)
        (here / "while away").write_text("x")
        until((there / "while away").exists, "it goes on")
        # The Standby's is pulled out.
        pair.disks[1].unmount(there)
        (here / "meanwhile").write_text("y")
        until(lambda: "nothing is mounted" in pair.b.dataset("usb0").reason, "the other node says so")
        assert os.listdir(there) == []
        pair.disks[1].mount(there)
        until((there / "meanwhile").exists, "it goes on there too")


def test_another_disk_in_the_place_is_not_taken_for_it(tmp_path: Path) -> None:
    with StoragePair(tmp_path) as pair:
        pair.mount()
        pair.begin()
        here, there = pair.places
        furnish(here)
        ended(pair.a)
        before = tree_of(there)
        other = Disk(tmp_path / "other")
        pair.disks[0].unmount(here)
        until(lambda: "nothing is mounted" in pair.a.dataset("usb0").reason, "it is away")
        other.mount(here)
        try:
            until(lambda: "marker" in pair.a.dataset("usb0").reason, "another one is there")
            assert tree_of(there) == before
        finally:
            other.unmount(here)
        pair.disks[0].mount(here)
        (here / "back").write_text("x")
        until((there / "back").exists, "the right one is back")
        # An operator takes the other one: it is the storage from now on.
        pair.disks[0].unmount(here)
        until(lambda: "nothing is mounted" in pair.a.dataset("usb0").reason, "it is away again")
        assert pair.a.command("resume", "usb0", "--accept-deletes", check=False).returncode == 3
        other.mount(here)
        pair.disks.append(other)
        (here / "on another").write_text("y")
        until(lambda: "marker" in pair.a.dataset("usb0").reason, "the other one is there again")
        pair.a.command("resume", "usb0", "--accept-deletes")
        until((there / "on another").exists, "it is taken")
        assert (there / "back").exists()


def test_one_filesystem_mounted_on_both_nodes_is_shared_and_nothing_is_copied(tmp_path: Path) -> None:
    with StoragePair(tmp_path) as pair:
        here, there = pair.places
        pair.disks[0].mount(here)
        there.mkdir(exist_ok=True)
        subprocess.run(["mount", "--bind", str(here), str(there)], check=True)
        pair.disks[0].mounted.append(there)
        pair.begin()
        furnish(here, files=4)
        until(lambda: "shared" in pair.a.command("storage", "list").stdout, "it is known to be shared")
        code, told = sync(pair.a)
        assert code == 6
        assert "shared" in str(told)
        assert sorted(os.listdir(here)) == sorted(
            [".ha-dataset", "lost+found", "large", *(f"2026-{n:02}" for n in range(4))]
        )


def test_without_room_on_the_other_side_not_a_byte_is_sent(tmp_path: Path) -> None:
    with StoragePair(tmp_path) as pair:
        pair.mount()
        pair.begin()
        here, there = pair.places
        (here / "big").write_bytes(os.urandom(20 * 1024 * 1024))
        (there / "already there").write_bytes(os.urandom(30 * 1024 * 1024))
        code, told = sync(pair.a, "--wait")
        assert code == 6, told
        assert "lacks room" in str(told)
        assert not (there / "big").exists()
        assert not (there / ".ha-stage").exists()
        (there / "already there").unlink()
        ended(pair.a)
        assert (there / "big").read_bytes() == (here / "big").read_bytes()


def test_kinds_that_differ_are_refused_unless_what_does_not_fit_may_be_left_out(tmp_path: Path) -> None:
    second = """
[[storage]]
name = "usb0"
medium = "usb"
path = "{root}/usb0"
[[storage]]
name = "sd0"
medium = "sd"
path = "{root}/sd0"
"""
    with StoragePair(tmp_path, storage=second) as pair:
        pair.mount()
        here, there = pair.places
        cards = [Disk(tmp_path / f"card-{name}") for name in "ab"]
        pair.disks += cards
        for node, card in zip("ab", cards, strict=True):
            card.mount(tmp_path / node / "data" / "sd0")
        pair.begin()
        (here / "a").write_text("a")
        cards[1].unmount(tmp_path / "b" / "data" / "sd0")
        until(lambda: "1 sd mounted here, 0" in pair.a.command("storage", "list").stdout, "a mismatch")
        code, told = sync(pair.a, "--all", names=())
        assert code == 6
        assert "sd0" in str(told)
        code, told = sync(pair.a, "--all", "--allow-mismatch", "--wait", names=())
        assert code == 0, told
        assert [line for line in told["left_out"] if "sd0" in line]  # type: ignore[attr-defined]
        assert (there / "a").read_text() == "a"


def test_data_inserted_at_the_front_of_a_large_file_costs_about_itself(tmp_path: Path) -> None:
    with StoragePair(tmp_path, size_mib=400) as pair:
        pair.mount()
        pair.begin()
        here, there = pair.places
        old = os.urandom(70 * 1024 * 1024)
        (here / "archive.tar").write_bytes(old)
        ended(pair.a)
        pair.a.stop()
        (here / "archive.tar").write_bytes(os.urandom(300_000) + old)
        pair.a.serve("active", 1)
        told = ended(pair.a, "--verify")
        assert told["wire_bytes"] < 2 * 1024 * 1024, told
        assert (there / "archive.tar").read_bytes() == (here / "archive.tar").read_bytes()
