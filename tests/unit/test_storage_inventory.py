"""What a node has: from the kernel's table and, with a deadline, from the filesystem."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ha_sync.config import Medium, StorageSettings, TreeSettings
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.external import inventory
from ha_sync.external.inventory import Inventory, look_now
from ha_sync.files.mounts import Mount

pytestmark = pytest.mark.req("R9")


def storage(path: Path) -> TreeSettings:
    return TreeSettings(
        name=DatasetName("usb0"), path=str(path), priority=Priority.STORAGE, storage=StorageSettings(medium=Medium.USB)
    )


@pytest.fixture
def mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    mount = Mount(
        number=1, device="8:1", root="/", place=str(tmp_path.resolve()), kind="ext4", source="/dev/sdz1",
        read_only=False,
    )  # fmt: skip
    monkeypatch.setattr(inventory, "table", lambda: (mount,))
    return tmp_path


async def test_a_directory_that_is_no_mount_point_is_no_storage(tmp_path: Path) -> None:
    found = Inventory([storage(tmp_path)])
    (usb0,) = await found.look()
    assert (usb0.mounted, usb0.size_bytes, usb0.trouble) == (False, 0, "nothing is mounted there")
    assert look_now(storage(tmp_path)) == usb0
    found.close()


async def test_a_mounted_one_has_size_room_identity_and_source(mounted: Path) -> None:
    (mounted / ".ha-dataset").write_text("0123abcd\n")
    found = Inventory([storage(mounted)])
    (usb0,) = await found.look()
    assert (usb0.mounted, usb0.filesystem, usb0.source, usb0.identity) == (True, "ext4", "/dev/sdz1", "0123abcd")
    assert usb0.size_bytes >= usb0.free_bytes > 0
    assert usb0.uuid
    assert not usb0.trouble
    found.close()


@pytest.mark.parametrize("name", [".ha-stage", ".ha-partial"])
def test_what_is_staged_is_room_for_what_is_still_to_come(
    mounted: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    free = os.statvfs(mounted)
    monkeypatch.setattr(os, "statvfs", lambda _: free)  # others write there too
    before = look_now(storage(mounted)).free_bytes
    (mounted / name / "removed").mkdir(parents=True)
    staged = mounted / name / "received"
    staged.write_bytes(bytes(range(256)) * 4096)
    assert look_now(storage(mounted)).free_bytes == before + staged.stat().st_blocks * 512 > before


async def test_one_that_does_not_answer_is_told_and_asked_by_one_thread_only(
    mounted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, asked = threading.Event(), []
    real = inventory.touch

    def touch(path: str) -> object:
        asked.append(path)
        answers.wait(30)
        return real(path)

    monkeypatch.setattr(inventory, "touch", touch)
    found = Inventory([storage(mounted)], deadline_s=0.05)
    for _ in range(3):
        (usb0,) = await found.look()
        assert "no answer within" in usb0.trouble
        assert usb0.mounted
    assert len(asked) == 1
    answers.set()
    while (await found.look())[0].trouble:
        pass
    found.close()
