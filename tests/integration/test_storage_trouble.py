"""What goes wrong in the middle of a sync: engines killed, disks full and pulled out, servers that do not answer."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.capture.tree.parts import PART_BYTES
from ha_sync.sample.pair import LocalNode
from tests.support.hanging_mount import HangingMount, cannot_hang
from tests.support.storage_pair import STORAGE, StoragePair, cannot_mount, ended, sync, tree_of, until

pytestmark = [
    pytest.mark.req("R9"),
    pytest.mark.skipif(bool(cannot_mount()), reason=cannot_mount() or "mounts"),
]

FILES = 60
SIZE = 600_000
SLOW = STORAGE + "rate_mib_per_s = 8\n"


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[StoragePair]:
    """A first sync of 36 MB takes some seconds."""
    with StoragePair(tmp_path, storage=SLOW) as made:
        made.mount()
        made.begin()
        here, _ = made.places
        for number in range(FILES):
            folder = here / f"d{number % 5}"
            folder.mkdir(exist_ok=True)
            (folder / f"f{number:02}").write_bytes(number.to_bytes(2, "big") + os.urandom(SIZE))
        yield made


def going(node: LocalNode) -> pb.FullBackupProgress:
    answer: pb.ListStoragesResponse = node.control().ListStorages(pb.ListStoragesRequest())
    return answer.storages[0].sync.progress


def in_the_middle(pair: StoragePair) -> None:
    _, there = pair.places
    until(lambda: 3 <= len([*there.rglob("d*/f*")]) < FILES, "some files are there, and some are not")


def test_a_sync_is_paused_resumed_and_cancelled(slow: StoragePair) -> None:
    here, there = slow.places
    sync(slow.a)
    in_the_middle(slow)
    slow.a.command("storage", "pause", "usb0")
    assert going(slow.a).phase == "paused"
    # What is under way arrives; then nothing more.
    until(lambda: sent_by(slow.a) == sent_after(slow.a), "it stands still")
    assert len([*there.rglob("d*/f*")]) < FILES
    slow.a.command("storage", "resume", "usb0")
    until(lambda: going(slow.a).phase != "paused", "it goes on")
    slow.a.command("storage", "cancel", "usb0")
    assert going(slow.a).result == "cancelled"
    until(lambda: "not synchronised yet" in slow.a.dataset("usb0").reason, "nothing follows by itself")
    # Asked again it sends the rest.
    before = len([*there.rglob("d*/f*")])
    assert before < FILES
    told = ended(slow.a)
    assert tree_of(there) == tree_of(here)
    assert int(str(told["wire_bytes"])) < (FILES - before + 16) * (SIZE + 2000)  # a group may be under way
    assert slow.a.command("storage", "pause", "usb0", check=False).returncode == 3


def sent_after(node: LocalNode) -> int:
    """What was sent a moment later."""
    time.sleep(0.5)
    return sent_by(node)


@pytest.mark.parametrize("victim", ["a", "b"])
def test_a_killed_engine_goes_on_where_it_was(slow: StoragePair, victim: str) -> None:
    here, there = slow.places
    node, role = (slow.a, "active") if victim == "a" else (slow.b, "standby")
    sync(slow.a)
    rng = random.Random(victim)
    for _ in range(2):
        in_the_middle(slow)
        wanted = len([*there.rglob("d*/f*")]) + rng.randrange(1, 8)
        until(lambda wanted=wanted: len([*there.rglob("d*/f*")]) >= min(wanted, FILES), "some more")  # type: ignore[misc]
        node.kill()
        node.serve(role, 1)
        if len([*there.rglob("d*/f*")]) >= FILES:
            break
    until(lambda: going(slow.a).state == "idle" and tree_of(there) == tree_of(here), "both are the same", timeout_s=90)
    told = ended(slow.a, "--verify")
    assert (told["differing"], told["unverified"]) == (0, 0)


@pytest.mark.req("R31")
@pytest.mark.parametrize("trouble", ["active killed", "standby killed", "standby pulled out"])
def test_a_large_file_goes_on_where_it_was(tmp_path: Path, trouble: str) -> None:
    """Of an archive that takes many seconds nothing goes twice but what was under way."""
    with StoragePair(tmp_path, storage=SLOW, size_mib=128) as pair:
        pair.mount()
        pair.begin()
        here, there = pair.places
        size = 48 * 1024 * 1024 + 4711
        (here / "archive").write_bytes(random.Random(trouble).randbytes(size))
        sync(pair.a)
        sent = 0
        for seconds in (2.0, 1.3):
            until(lambda: sent_by(pair.a) > 0, "it goes")
            time.sleep(seconds)
            assert not (there / "archive").exists()
            if trouble == "active killed":
                sent += sent_by(pair.a)
                pair.a.kill()
                pair.a.serve("active", 1)
            elif trouble == "standby killed":
                pair.b.kill()
                pair.b.serve("standby", 1)
            else:
                pair.disks[1].unmount(there)
                until(lambda: "nothing is mounted" in pair.b.dataset("usb0").reason, "it is seen")
                pair.disks[1].mount(there)
        until(
            lambda: going(pair.a).state == "idle" and tree_of(there) == tree_of(here), "both are the same", timeout_s=90
        )
        sent += sent_by(pair.a)
        assert size <= sent <= size + 2 * 2 * PART_BYTES, sent - size


def sent_by(node: LocalNode) -> int:
    return int(node.dataset("usb0").counts["sent_bytes"])


@pytest.mark.parametrize("side", [0, 1], ids=["active", "standby"])
def test_a_disk_that_is_pulled_out_in_mid_run_stops_it_and_it_goes_on_when_it_is_back(
    slow: StoragePair, side: int
) -> None:
    here, there = slow.places
    sync(slow.a)
    in_the_middle(slow)
    place = slow.places[side]
    slow.disks[side].unmount(place)
    node = slow.b if side else slow.a
    until(lambda: "nothing is mounted" in node.dataset("usb0").reason, "it is seen")
    assert [name for name in os.listdir(place) if not name.startswith(".")] == []
    assert going(slow.a).state != "idle"
    slow.disks[side].mount(place)
    until(lambda: going(slow.a).state == "idle", "the run ends", timeout_s=120)
    assert going(slow.a).result == "done", going(slow.a)
    assert tree_of(there) == tree_of(here)
    assert os.listdir(place)


def fill(ballast: Path) -> None:
    """Until nothing is left."""
    step, size = 4 * 1024 * 1024, 0
    with ballast.open("wb") as file:
        while step >= 4096:
            try:
                os.posix_fallocate(file.fileno(), size, step)
                size += step
            except OSError:
                step //= 2


def test_a_disk_that_fills_in_mid_run_is_waited_for(tmp_path: Path) -> None:
    with StoragePair(tmp_path, storage=SLOW) as pair:
        pair.mount()
        pair.begin()
        here, there = pair.places
        for number in range(20):
            (here / f"f{number}").write_bytes(os.urandom(1_000_000))
        sync(pair.a)
        until(lambda: len([*there.glob("f*")]) >= 3, "it is in the middle")
        ballast = there / ".ha-ballast"  # a name of ours, so that no guard takes it away
        fill(ballast)
        until(lambda: "disk full" in pair.b.dataset("usb0").reason, "it is full")
        assert going(pair.a).state != "idle"
        ballast.unlink()
        until(lambda: going(pair.a).state == "idle", "it goes on", timeout_s=120)
        assert going(pair.a).result == "done"
        assert tree_of(there) == tree_of(here)


def test_after_a_switch_the_new_active_goes_on_with_a_storage_that_was_in_step(slow: StoragePair) -> None:
    here, there = slow.places
    ended(slow.a)
    until(lambda: slow.b.dataset("usb0").state == "streaming", "in step")
    slow.a.set_role("standby", 2)
    slow.b.set_role("active", 2)
    (there / "on b").write_text("written on the new active")
    until((here / "on b").exists, "it follows the other way")
    assert (here / "on b").read_text() == "written on the new active"
    told = ended(slow.b)
    assert told["differing"] == 0


@pytest.mark.skipif(bool(cannot_hang()), reason=cannot_hang() or "mounts")
@pytest.mark.parametrize("side", [0, 1], ids=["active", "standby"])
def test_a_storage_that_never_answers_holds_up_nobody_else(tmp_path: Path, side: int) -> None:
    with StoragePair(tmp_path) as pair:
        pair.mount()
        pair.begin()
        here, there = pair.places
        (here / "a").write_text("a")
        ended(pair.a)
        node = pair.b if side else pair.a
        silent = HangingMount(str(pair.places[side]))
        try:
            until(lambda: "no answer within" in node.command("storage", "list").stdout, "it is told")
            # The rest of the node goes on, and so do changes of role.
            Path(pair.a.place.root, "files", "one").write_text("1")
            until(Path(pair.b.place.root, "files", "one").exists, "the other dataset flows")
            code, told = sync(pair.a)
            assert code == 6, told
            pair.a.set_role("standby", 2)
            pair.b.set_role("active", 2)
            Path(pair.b.place.root, "files", "two").write_text("2")
            until(Path(pair.a.place.root, "files", "two").exists, "the other way too")
        finally:
            silent.gone()
        (there / "b").write_text("b")
        until((here / "b").exists, "it goes on when it answers again", timeout_s=90)
