"""Trees to copy, and rsync's daemon to copy them with.

Recordings are WAV files that compress as speech does; small files are text. No two files are alike. Sizes in bytes.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

from ha_sync.sample.audio import NoisePool
from ha_sync.sample.recordings import SoundFile

RECORDING_BYTES = 107_374  # 20,000 of them are 2 GiB
FOLDER_FILES = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeSize:
    """How many of each."""

    recordings: int
    small: int

    @property
    def files(self) -> int:
        """All."""
        return self.recordings + self.small


WHOLE = TreeSize(recordings=20_000, small=50_000)
TENTH = TreeSize(recordings=2_000, small=5_000)


def make_tree(root: str, size: TreeSize) -> None:
    """Recordings below ``monitor``, small files below ``small``, FOLDER_FILES to a folder."""
    pool, dice = NoisePool(11), random.Random(11)
    for number in range(size.recordings):
        file = SoundFile(_path(root, "monitor", number, "wav"))
        tag = b"%016d" % number
        file.append(tag + pool.piece(dice.randrange(1 << 20), RECORDING_BYTES - 60))
        file.close()
    words = pool.piece(0, 1 << 20).hex().encode()
    for number in range(size.small):
        start, length = dice.randrange(1 << 20), dice.randrange(1000, 8000)
        with open(_path(root, "small", number, "txt"), "wb", buffering=0) as out:
            out.write(b"%016d\n" % number + words[start : start + length])


def make_many(root: str, count: int) -> None:
    """``count`` files of some bytes each."""
    for number in range(count):
        with open(_path(root, "many", number, "txt"), "wb", buffering=0) as out:
            out.write(b"file %d\n" % number)


def _path(root: str, kind: str, number: int, ending: str) -> str:
    folder = os.path.join(root, kind, f"{number // FOLDER_FILES:05}")
    if number % FOLDER_FILES == 0:
        os.makedirs(folder)
    return os.path.join(folder, f"{number:08}.{ending}")


def count_files(root: str) -> int:
    """Regular files below ``root`` whose path has no hidden part."""
    total = 0
    for _, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".ha-")]
        total += sum(not name.startswith(".ha-") for name in names)
    return total


def settle() -> None:
    """Whatever was written before goes to the disk outside of what is measured."""
    os.sync()


@contextlib.contextmanager
def rsync_daemon(root: str, directory: str) -> Iterator[str]:
    """A daemon on loopback that serves ``root``; gives its address."""
    if shutil.which("rsync") is None:
        raise RuntimeError("rsync is not installed (as root: apt-get install rsync)")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = os.path.join(directory, "rsyncd.conf")
    with open(settings, "w", encoding="utf-8") as file:
        if os.getuid() == 0:
            file.write("uid = root\ngid = root\n")
        file.write(f"use chroot = no\n[tree]\npath = {root}\nread only = yes\n")
    command = ["rsync", "--daemon", "--no-detach", "--address=127.0.0.1", f"--port={port}", f"--config={settings}"]
    process = subprocess.Popen([*command, "--log-file=/dev/null"], stdin=subprocess.DEVNULL)
    try:
        _await_port(port)
        yield f"rsync://127.0.0.1:{port}/tree/"
    finally:
        process.terminate()
        process.wait()


def rsync_seconds(address: str, destination: str) -> float:
    """One ``rsync -a``."""
    since = time.monotonic()
    subprocess.run(["rsync", "-a", "--exclude=/.ha-*", address, destination + "/"], check=True)
    return time.monotonic() - since


def _await_port(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise RuntimeError("rsync's daemon does not answer")
        time.sleep(0.02)
