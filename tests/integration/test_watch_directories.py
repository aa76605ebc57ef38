"""The watcher against the real kernel."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ha_sync.files import watch
from ha_sync.files.watch import Watcher


class Woken:
    def __init__(self) -> None:
        self.event = threading.Event()

    def __call__(self) -> None:
        self.event.set()


@pytest.fixture
def watcher(tmp_path):
    made = Watcher(Woken())
    yield made
    made.close()


def add(watcher: Watcher, path, name: bytes = b"") -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        assert watcher.add(name, fd, os.fstat(fd).st_ino)
    finally:
        os.close(fd)


def passed(watcher: Watcher, tmp_path) -> list[tuple[bytes, int, bytes]]:
    """Everything until now, by the fence."""
    done = threading.Event()
    watcher.fence(os.fsencode(tmp_path / "fence"), done.set)
    assert done.wait(10)
    return [(directory, mask, name) for directory, mask, _, name in watcher.drain().events]


def test_the_fence_covers_everything_that_happened_before_it(watcher, tmp_path):
    (tmp_path / "d").mkdir()
    add(watcher, tmp_path / "d")
    for number in range(500):
        (tmp_path / "d" / f"f{number}").write_text("x")
    closed = [name for _, mask, name in passed(watcher, tmp_path) if mask & watch.CLOSE_WRITE]
    assert len(closed) == 500


def test_more_events_than_the_kernel_keeps_are_said_to_be_lost(watcher, tmp_path):
    (tmp_path / "d").mkdir()
    add(watcher, tmp_path / "d")
    blocked, reading = threading.Event(), threading.Event()
    plain = watcher.on_event

    def hold(event):
        reading.set()
        blocked.wait(30)
        plain(event)

    watcher.on_event = hold  # type: ignore[method-assign]
    path = tmp_path / "d" / "f"
    path.write_text("x")
    assert reading.wait(10)
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 50_000:
        pytest.skip(f"this kernel keeps {limit} events: too many to overflow in a test")
    for _ in range(limit // 2 + 100):
        os.close(os.open(path, os.O_WRONLY))
        os.utime(path)
    blocked.set()
    lost = False
    for _ in range(200):
        lost = lost or watcher.drain().lost
        if lost:
            break
        threading.Event().wait(0.05)
    assert lost


def test_a_file_that_is_being_written_is_told_once_until_it_is_looked_at_and_wakes_nobody(tmp_path):
    woken, told = Woken(), []
    watcher = Watcher(woken, modified=lambda: told.append(1))
    try:
        (tmp_path / "d").mkdir()
        (tmp_path / "d" / "f").touch()
        with (tmp_path / "d" / "f").open("ab", buffering=0) as growing:
            add(watcher, tmp_path / "d")
            for number in (1, 2):
                for _ in range(20):
                    growing.write(b"spoken")
                assert {mask for _, mask, _ in passed(watcher, tmp_path)} == {watch.MODIFY}
                assert (len(told), woken.event.is_set()) == (number, False)
    finally:
        watcher.close()


def test_a_full_buffer_is_said_to_be_lost(tmp_path):
    watcher = Watcher(Woken(), buffer_max=10)
    try:
        (tmp_path / "d").mkdir()
        add(watcher, tmp_path / "d")
        for number in range(50):
            (tmp_path / "d" / f"f{number}").write_text("x")
        done = threading.Event()
        watcher.fence(os.fsencode(tmp_path / "fence"), done.set)
        assert done.wait(10)
        drained = watcher.drain()
        assert drained.lost
        assert len(drained.events) <= 10
        assert not watcher.drain().lost
    finally:
        watcher.close()


def test_a_renamed_directory_is_watched_under_its_new_name_after_it_was_forgotten(watcher, tmp_path):
    (tmp_path / "old").mkdir()
    add(watcher, tmp_path / "old", b"old")
    os.rename(tmp_path / "old", tmp_path / "new")
    watcher.forget(b"old")
    add(watcher, tmp_path / "new", b"new")
    (tmp_path / "new" / "f").write_text("x")
    assert {directory for directory, _, _ in passed(watcher, tmp_path)} == {b"new"}
    assert watcher.count == 1


def test_a_directory_that_was_removed_is_watched_no_more(watcher, tmp_path):
    (tmp_path / "d").mkdir()
    add(watcher, tmp_path / "d", b"d")
    os.rmdir(tmp_path / "d")
    passed(watcher, tmp_path)
    assert watcher.count == 0


def test_filesystems_that_need_polling():
    assert watch.needs_polling("nfs4")
    assert watch.needs_polling("fuse.sshfs")
    assert not watch.needs_polling("ext4")
    assert watch.filesystem_type("/proc") == "proc"
