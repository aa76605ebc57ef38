"""What is mounted where, from a table as the kernel writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ha_sync.files.mounts import mounted_at, parsed, table

pytestmark = pytest.mark.req("R9")

TABLE = """\
25 1 8:2 / / rw,relatime shared:1 - ext4 /dev/sda2 rw
40 25 8:17 / /media/usb0 rw,nosuid shared:7 - vfat /dev/sdb1 rw,fmask=0022
41 25 0:50 / /media/my\\040disk ro,relatime - nfs4 nas:/export/calls rw,vers=4.2
42 25 0:51 / /media/auto rw - autofs systemd-1 rw
43 25 8:33 / /media/over rw - ext4 /dev/sdc1 rw
44 43 8:34 / /media/over rw master:3 propagate_from:2 - xfs /dev/sdd1 ro,noatime
nonsense
"""
MOUNTS = parsed(TABLE.splitlines())


def test_a_mount_point_is_found_with_its_filesystem_and_source() -> None:
    usb0 = mounted_at("/media/usb0/", MOUNTS)
    assert usb0 is not None
    assert (usb0.kind, usb0.source, usb0.device, usb0.read_only) == ("vfat", "/dev/sdb1", "8:17", False)


def test_a_directory_below_a_mount_point_is_none() -> None:
    assert mounted_at("/media/usb0/recordings", MOUNTS) is None
    assert mounted_at("/media", MOUNTS) is None


def test_names_with_blanks_and_exports_are_read() -> None:
    nas = mounted_at("/media/my disk", MOUNTS)
    assert nas is not None
    assert (nas.kind, nas.source, nas.read_only) == ("nfs4", "nas:/export/calls", True)


def test_what_was_mounted_last_lies_on_top() -> None:
    over = mounted_at("/media/over", MOUNTS)
    assert over is not None
    assert (over.kind, over.read_only) == ("xfs", True)


def test_a_place_where_something_would_be_mounted_on_demand_is_not_mounted() -> None:
    assert mounted_at("/media/auto", MOUNTS) is None


def test_a_symlink_in_the_way_is_followed(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    line = f"9 1 8:1 / {tmp_path.resolve()}/there/disk rw - ext4 /dev/x rw"
    assert mounted_at(f"{tmp_path}/link/disk", parsed([line])) is not None


def test_this_kernels_table_has_the_root() -> None:
    assert mounted_at("/", table()) is not None
