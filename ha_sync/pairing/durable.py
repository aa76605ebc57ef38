"""Writes the small private files of the pair's identity: whole or not at all, durable, 0600 in a directory of 0700.

A file is written under another name, synced, renamed over, and its directory synced. A whole directory is made beside
its place in the same way. A crash at any point leaves the old state or the new one, and at most a name that begins
with ``.new-``, which the next writer removes. Blocking: call from an executor.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping

PRIVATE_FILE = 0o600
PRIVATE_DIRECTORY = 0o700
UNFINISHED = ".new-"


def sync_directory(path: str) -> None:
    """Makes the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_private_directory(path: str) -> None:
    """Makes ``path`` (0700) and what is missing above it, durably."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(os.path.abspath(path))
    make_private_directory(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, PRIVATE_DIRECTORY)
        os.chmod(path, PRIVATE_DIRECTORY)  # whatever the umask says
    sync_directory(parent)


def write_file(path: str, content: bytes) -> None:
    """Replaces ``path`` by ``content``."""
    directory, name = os.path.split(path)
    unfinished = os.path.join(directory, UNFINISHED + name)
    _write_synced(unfinished, content)
    os.rename(unfinished, path)
    sync_directory(directory)


def write_directory(path: str, files: Mapping[str, bytes]) -> None:
    """Makes the directory ``path``, which must not exist, with ``files`` in it: all of them or nothing."""
    parent, name = os.path.split(path)
    unfinished = os.path.join(parent, UNFINISHED + name)
    if os.path.lexists(unfinished):
        shutil.rmtree(unfinished)
    os.mkdir(unfinished, PRIVATE_DIRECTORY)
    os.chmod(unfinished, PRIVATE_DIRECTORY)
    for file, content in files.items():
        _write_synced(os.path.join(unfinished, file), content)
    sync_directory(unfinished)
    os.rename(unfinished, path)  # fails on a directory that has files: an identity is never replaced
    sync_directory(parent)


def remove_directory(path: str) -> None:
    """Removes ``path`` with all in it, durably; nothing to do where it does not exist.

    It is gone at once: a crash in the middle leaves no half of it, but a name that the next writer removes.
    """
    parent, name = os.path.split(path)
    going = os.path.join(parent, UNFINISHED + name)
    if os.path.lexists(path):
        if os.path.lexists(going):
            shutil.rmtree(going)
        os.rename(path, going)
        sync_directory(parent)
    if os.path.lexists(going):
        shutil.rmtree(going)
        sync_directory(parent)


@contextlib.contextmanager
def exclusive(directory: str) -> Iterator[None]:
    """Holds the directory against every other process and thread that reads, changes and writes its files."""
    descriptor = os.open(os.path.join(directory, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write_synced(path: str, content: bytes) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # left by a crash, perhaps with other permissions
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, PRIVATE_FILE)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), PRIVATE_FILE)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
