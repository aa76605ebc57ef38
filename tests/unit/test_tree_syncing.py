"""What a full sync has made durable leaves the page cache."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ha_sync.apply.tree.syncing import syncfs_and_drop
from ha_sync.files.watch import filesystem_type

SIZE = 256 * 1024


def is_cached(path: Path) -> bool:
    """Whether its first page is in memory."""
    with path.open("rb") as file:
        try:
            return bool(os.preadv(file.fileno(), [bytearray(4096)], 0, os.RWF_NOWAIT))
        except BlockingIOError:
            return False


@pytest.mark.req("R20")
def test_files_that_are_durable_leave_the_page_cache_and_keep_their_content(tmp_path: Path) -> None:
    if (kind := filesystem_type(str(tmp_path))) not in {"ext4", "xfs", "btrfs"}:
        pytest.skip(f"what {kind} caches is not dropped, or is all there is")
    content = os.urandom(SIZE)
    for name in ("dropped", "kept"):
        (tmp_path / name).write_bytes(content)
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        syncfs_and_drop(fd, [b"gone", b"dropped"])
    finally:
        os.close(fd)
    assert is_cached(tmp_path / "kept")
    assert not is_cached(tmp_path / "dropped")
    assert (tmp_path / "dropped").read_bytes() == content
