"""One conformance suite for every kind of storage: ext4, xfs and btrfs on loop devices, FAT where the kernel has it.

Where the kernel has no FAT its rules are enforced by a layer of the tests over an ordinary filesystem (see
``test_storage_fat``): that shows what is left out and that nothing flaps, not what a FAT driver does. NFS and CIFS
cannot be mounted by the tests; what sets them apart (polling, answers that never come) is tested by its own means.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.storage_pair import StoragePair, ended, lacks, sync, tree_of, until

pytestmark = pytest.mark.req("R9")

PAIRS = [("ext4", "ext4"), ("xfs", "ext4"), ("ext4", "btrfs"), ("btrfs", "xfs"), ("ext4", "vfat"), ("vfat", "ext4")]


@pytest.fixture(params=PAIRS, ids="-".join)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StoragePair]:
    kinds: tuple[str, str] = request.param
    for kind in kinds:
        if reason := lacks(kind):
            pytest.skip(reason)
    with StoragePair(tmp_path, kinds=kinds) as made:
        made.mount()
        made.begin()
        yield made


def furnish(root: Path, *, plain: bool) -> None:
    for number in range(30):
        folder = root / f"2026-{number % 3:02}" / "monitor"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"call-{number:03}.wav"
        path.write_bytes(number.to_bytes(2, "big") + os.urandom(3000))
        os.utime(path, ns=(0, 1_700_000_000_123_456_789 + number))
    (root / "empty").mkdir()
    (root / "nothing").write_bytes(b"")
    (root / "large").write_bytes(os.urandom(2_000_000))
    if not plain:
        (root / "link").symlink_to("large")
        os.chmod(root / "nothing", 0o640)
        os.setxattr(root / "nothing", "user.note", b"kept")


def test_a_storage_of_any_kind(pair: StoragePair) -> None:
    here, there = pair.places
    fat = "vfat" in {disk.kind for disk in pair.disks}
    furnish(here, plain=fat)
    ended(pair.a)
    assert tree_of(there) == tree_of(here)
    if not fat:
        assert os.stat(there / "nothing").st_mode & 0o777 == 0o640
        assert os.getxattr(there / "nothing", "user.note") == b"kept"
        assert os.stat(there / "2026-01" / "monitor" / "call-001.wav").st_mtime_ns == 1_700_000_000_123_456_790
    # Nothing changed: nothing differs, by metadata and by content, and nothing is sent.
    for verify in ((), ("--verify",)):
        told = ended(pair.a, *verify)
        assert (told["differing"], told["unverified"]) == (0, 0)
        assert int(str(told["wire_bytes"])) < 100_000
    # Renamed, changed, new, deleted.
    (here / "2026-00").rename(here / "2025-12")
    with (here / "large").open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")
    (here / "new").write_text("new")
    (here / "nothing").unlink()
    ended(pair.a)
    missing = {key: value for key, value in tree_of(here).items() if tree_of(there).get(key) != value}
    assert missing == {}
    assert (there / "nothing").exists()
    assert (there / "2026-00").exists()
    # Both engines anew, both media put in again.
    for node, disk, place in zip((pair.a, pair.b), pair.disks, pair.places, strict=True):
        node.stop()
        disk.unmount(place)
        disk.mount(place)
    pair.a.serve("active", 1)
    pair.b.serve("standby", 1)
    told = ended(pair.a, "--verify")
    assert told["differing"] == 0
    assert int(str(told["wire_bytes"])) < 200_000


def test_a_mirror_deletes_but_not_everything_at_once(tmp_path: Path) -> None:
    if reason := lacks("ext4"):
        pytest.skip(reason)
    mirror = '\n[[storage]]\nname = "usb0"\nmedium = "usb"\npath = "{root}/usb0"\nmode = "mirror"\nreconcile_s = 2\n'
    with StoragePair(tmp_path, storage=mirror) as pair:
        pair.mount()
        pair.begin()
        here, there = pair.places
        furnish(here, plain=False)
        ended(pair.a)
        (here / "large").unlink()
        until(lambda: not (there / "large").exists(), "a deletion follows")
        code, plan = sync(pair.a, "--dry-run")
        assert (code, plan["plans"][0]["delete_objects"]) == (0, 0)  # type: ignore[index]
        for path in [*here.rglob("*.wav")]:
            path.unlink()
        until(lambda: pair.a.dataset("usb0").state == "halted", "the guard halts")
        assert len([path for path in tree_of(there) if path.endswith(".wav")]) >= 20
        pair.a.command("resume", "usb0", "--accept-deletes")
        until(lambda: not [path for path in tree_of(there) if path.endswith(".wav")], "an operator accepts")
