"""What is read ahead of a group: only while reading waits, each file once, and never more than fits."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ha_sync.capture.tree.ahead import AHEAD_BYTES, AHEAD_ITEMS, COLD_ITEMS, Ahead
from ha_sync.capture.tree.reading import Item
from ha_sync.files.blocks import BLOCK_MIN
from ha_sync.files.confine import Root


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    made = Root(str(tmp_path))
    yield made
    made.close()


@pytest.fixture
def advised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    real = os.posix_fadvise

    def advise(fd: int, offset: int, length: int, advice: int) -> None:
        assert (offset, length, advice) == (0, os.fstat(fd).st_size, os.POSIX_FADV_WILLNEED)
        asked.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        real(fd, offset, length, advice)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    return asked


def items(root: Path, count: int, size: int = 100) -> list[Item]:
    made = []
    for number in range(count):
        path = root / f"{number:04}"
        path.write_bytes(bytes(size))
        made.append(Item(path=path.name.encode(), status=path.lstat()))
    return made


def test_what_is_in_the_cache_is_not_asked_for(root: Root, tmp_path: Path, advised: list[str]) -> None:
    ahead = Ahead(root, items(tmp_path, 5))
    ahead.ask(0)
    ahead.read(0.00001)
    ahead.ask(1)
    assert advised == []


def test_after_a_wait_each_file_is_asked_for_once_until_nothing_waits_any_more(
    root: Root, tmp_path: Path, advised: list[str]
) -> None:
    made = items(tmp_path, 2 * COLD_ITEMS)
    ahead = Ahead(root, made)
    ahead.read(0.01)
    for at in range(len(made)):
        ahead.ask(at)
    assert advised == [f"{number:04}" for number in range(1, COLD_ITEMS + AHEAD_ITEMS)]


def test_no_more_is_asked_for_than_a_bound(root: Root, tmp_path: Path, advised: list[str]) -> None:
    ahead = Ahead(root, items(tmp_path, 60, BLOCK_MIN))
    ahead.read(0.01)
    ahead.ask(0)
    assert len(advised) * BLOCK_MIN <= AHEAD_BYTES


def test_what_is_no_small_file_is_passed_over(root: Root, tmp_path: Path, advised: list[str]) -> None:
    made = items(tmp_path, 3)
    (tmp_path / "0001").unlink()
    (tmp_path / "link").symlink_to("0002")
    (tmp_path / "large").write_bytes(bytes(BLOCK_MIN + 1))
    (tmp_path / "empty").touch()
    made[1:1] = [Item(path=name.encode(), status=(tmp_path / name).lstat()) for name in ("link", "large", "empty", ".")]
    made.insert(1, Item(path=b"gone"))
    ahead = Ahead(root, made)
    ahead.read(0.01)
    ahead.ask(0)
    assert advised == ["0002"]
