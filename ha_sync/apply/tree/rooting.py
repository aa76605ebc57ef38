"""Finds the dataset's root on the Standby and says why it cannot be used.

The root is made where it is missing and its parent is there. A marker and the root's inode tell an empty mount
point from the dataset: if both have changed, nothing is written before an operator agrees. Blocking.
"""

from __future__ import annotations

import contextlib
import os
import stat
import uuid

from ha_sync.catalogue.tree import FILESYSTEM, IDENTITY, ROOT, TreeCatalogue
from ha_sync.core.dataset import Report
from ha_sync.errors import OperatorNeeded, Retryable
from ha_sync.files.confine import Root
from ha_sync.files.mounts import not_mounted
from ha_sync.files.places import MARKER

MARKER_MAX = 256


def open_storage(path: str, catalogue: TreeCatalogue) -> Root:
    """The root of a storage: never made, never taken for another one. Raises Retryable, or OperatorNeeded."""
    if reason := not_mounted(path):
        raise Retryable("waits for the storage", subject=path, reason=reason)
    root = Root(path)
    known, here = catalogue.get(IDENTITY), _identity(root)
    if known is not None and here != known:
        root.close()
        reason = "another storage is mounted" if here else "the storage has lost its marker"
        hint = "mount the right one, or `ha-sync resume NAME --accept-deletes` on this node to take this one"
        raise OperatorNeeded("will not write into", subject=path, reason=reason, hint=hint)
    _mark(root, catalogue)
    if known is None:
        with catalogue.transaction(durable=True):
            catalogue.put(IDENTITY, _identity(root))
    return root


def _identity(root: Root) -> str:
    try:
        fd = root.open(MARKER, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        return ""
    try:
        return os.read(fd, MARKER_MAX).decode("ascii", "replace").strip()
    finally:
        os.close(fd)


def open_root(path: str, catalogue: TreeCatalogue, *, report: Report) -> Root:
    """Raises OperatorNeeded with the reason."""
    known = catalogue.get(ROOT)
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        _make(path)
        if known is not None:
            report("warning", "the dataset's directory was gone on this node; it comes again", {"path": path})
        return _adopt(path, catalogue)
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error
    if stat.S_ISLNK(status.st_mode):
        status = os.stat(path)
    if not stat.S_ISDIR(status.st_mode):
        raise _unusable(path, "it is no directory")
    root = Root(path)
    if known is None or os.path.lexists(_marker(path)):
        _mark(root, catalogue)
        return root
    if known != str(status.st_ino):
        root.close()
        raise OperatorNeeded(
            "will not write into",
            subject=path,
            reason="it is another directory than before and has no marker (is its filesystem mounted?)",
            hint="mount it, or `ha-sync resume` to take this one",
        )
    report("warning", "the dataset's marker was gone and is back", {"path": path})
    _mark(root, catalogue)
    return root


def make_own_directory(parent: int, name: bytes) -> None:
    """Makes one of our directories; the parent keeps its time, which is the Active's. Raises FileExistsError."""
    before = os.fstat(parent).st_mtime_ns
    os.mkdir(name, 0o700, dir_fd=parent)
    os.utime(parent, ns=(before, before))


def is_same(root: Root) -> bool:
    """Whether the root's path still leads to the open directory."""
    with contextlib.suppress(OSError):
        now, then = os.stat(root.path), os.fstat(root.fd)
        return (now.st_dev, now.st_ino) == (then.st_dev, then.st_ino)
    return False


def _unusable(path: str, reason: str) -> OperatorNeeded:
    return OperatorNeeded("cannot use the dataset's directory", subject=path, reason=reason)


def _make(path: str) -> None:
    try:
        os.mkdir(path, 0o700)
    except FileNotFoundError as error:
        raise _unusable(path, "its parent directory does not exist") from error
    except OSError as error:
        raise _unusable(path, error.strerror or str(error)) from error


def _adopt(path: str, catalogue: TreeCatalogue) -> Root:
    """A new directory: what the catalogue knew is not there."""
    with catalogue.transaction(durable=True):
        forget_all(catalogue)
    root = Root(path)
    _mark(root, catalogue)
    return root


def forget_all(catalogue: TreeCatalogue) -> None:
    """Nothing is known of what stands below the root: the next stream compares."""
    catalogue.clear_entries()
    catalogue.clear_intent()
    for key, _ in catalogue.values_with_prefix("partial:"):
        catalogue.forget(key)
    for key in ("applied", "consistent", "guarded", IDENTITY, FILESYSTEM, ROOT):
        catalogue.forget(key)


def _marker(path: str) -> str:
    return os.path.join(path, os.fsdecode(MARKER))


def _mark(root: Root, catalogue: TreeCatalogue) -> None:
    status = os.fstat(root.fd)
    if catalogue.get(ROOT) == str(status.st_ino) and os.path.lexists(_marker(root.path)):
        return
    with contextlib.suppress(FileExistsError):
        fd = os.open(MARKER, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=root.fd)
        try:
            # The Active's end knows the marker by its content: what it once wrote here is written again.
            os.write(fd, f"{catalogue.get(IDENTITY) or uuid.uuid4().hex}\n".encode())
            os.fsync(fd)
        finally:
            os.close(fd)
    # The marker changed the times of the root: they are the Active's.
    os.utime(root.fd, ns=(status.st_mtime_ns, status.st_mtime_ns))
    with catalogue.transaction(durable=True):
        catalogue.put(ROOT, str(status.st_ino))
