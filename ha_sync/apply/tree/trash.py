"""Removed and replaced content, kept for a while: a hidden directory below the root, bounded, the oldest dropped
first.

Everything that leaves the tree is *renamed* into here or into the stage, never unlinked where it stands: so its
inode cannot be given to another object before the group's intent is cleared, and what an administrator or a bug
deleted can be had back. ``purge`` removes for good; it is called between groups. Sizes in bytes. Blocking.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import OrderedDict, deque

from ha_sync.apply.tree.rooting import make_own_directory
from ha_sync.files.confine import Root
from ha_sync.files.places import STAGE, TRASH

ITEMS_MAX = 100_000
"""Names kept, however small."""
REPLACED_SHARE = 16
"""A replaced file is kept only if it is at most this part of the bound: one large file must not drop all the rest."""
REPLACED_PAUSE_S = 60.0
"""One replaced version of a path a minute: a log that grows must not fill the trash with its copies."""
REPLACED_PATHS_MAX = 10_000
NAME_KEPT = 200

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Trash:
    """See the module."""

    def __init__(self, root: Root, *, limit: int) -> None:
        self._root = root
        self._limit = limit
        self._items: deque[tuple[bytes, int]] = deque()
        self._dead: list[bytes] = []  # in the stage: removed, not worth keeping
        self._bytes = 0
        self._next = 1
        self._replaced: OrderedDict[bytes, float] = OrderedDict()
        self._fd = -1
        if limit > 0:
            self._fd = hidden_directory(root, TRASH)
            self._load()

    def close(self) -> None:
        """Releases the directory."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def size(self) -> int:
        """Bytes kept."""
        return self._bytes

    def _load(self) -> None:
        for name in sorted(os.fsencode(each) for each in os.listdir(self._fd)):
            self._items.append((name, tree_size(self._fd, name)))
            self._bytes += self._items[-1][1]
            with contextlib.suppress(ValueError):
                self._next = max(self._next, int(name.partition(b"-")[0], 16) + 1)

    def take(self, place: bytes, status: os.stat_result, *, unused: bytes) -> None:
        """Moves an object out of the tree. ``unused`` is a fresh name in the stage for what is not kept."""
        parent, name = self._parent_of(place)
        if self._limit > 0:
            size = tree_size(parent, name) if stat.S_ISDIR(status.st_mode) else status.st_size
            target = self._name(name)
            if size <= self._limit and self._move(parent, name, self._fd, target):
                self._note(target, size)
                self._forget_below(status)
                return
        stage = self._root.open(STAGE, _DIRECTORY)
        try:
            if self._move(parent, name, stage, unused):
                self._dead.append(unused)
            else:
                remove_tree(parent, name)  # on a filesystem of its own: it cannot be moved
        finally:
            os.close(stage)
        self._forget_below(status)

    @staticmethod
    def _move(parent: int, name: bytes, directory: int, target: bytes) -> bool:
        try:
            os.rename(name, target, src_dir_fd=parent, dst_dir_fd=directory)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return False
        return True

    def _parent_of(self, place: bytes) -> tuple[int, bytes]:
        directory, _, name = place.rpartition(b"/")
        return self._root.directory(directory), name

    def _forget_below(self, status: os.stat_result) -> None:
        if stat.S_ISDIR(status.st_mode):
            self._root.forget()

    def keep_replaced(self, place: bytes, *, now: float) -> None:
        """Gives the object that is about to be replaced a second name here, if that is cheap and worth it."""
        if self._limit <= 0:
            return
        last = self._replaced.get(place)
        if last is not None and now - last < REPLACED_PAUSE_S:
            return
        parent, name = self._parent_of(place)
        target = self._name(name)
        try:
            os.link(name, target, src_dir_fd=parent, dst_dir_fd=self._fd, follow_symlinks=False)
        except OSError:
            return  # nothing there, a directory, another filesystem, no hard links: it is replaced all the same
        size = os.stat(target, dir_fd=self._fd, follow_symlinks=False).st_size
        if size > self._limit // REPLACED_SHARE:
            os.unlink(target, dir_fd=self._fd)
            return
        self._note(target, size)
        self._replaced[place] = now
        if len(self._replaced) > REPLACED_PATHS_MAX:
            self._replaced.popitem(last=False)

    def _name(self, name: bytes) -> bytes:
        self._next += 1
        return b"%016x-%s" % (self._next - 1, name[:NAME_KEPT])

    def _note(self, name: bytes, size: int) -> None:
        self._items.append((name, size))
        self._bytes += size

    def empty(self) -> int:
        """Removes all of the trash; bytes that it had. Only while no intent is open."""
        had = self._bytes
        while self._items:
            name, size = self._items.popleft()
            remove_tree(self._fd, name)
            self._bytes -= size
        return had

    def purge(self) -> None:
        """Removes what is dead, and the oldest of the trash down to its bounds. Only while no intent is open."""
        if self._dead:
            stage = self._root.directory(STAGE)
            for name in self._dead:
                remove_tree(stage, name)
            self._dead.clear()
        while self._items and (self._bytes > self._limit or len(self._items) > ITEMS_MAX):
            name, size = self._items.popleft()
            remove_tree(self._fd, name)
            self._bytes -= size


def hidden_directory(root: Root, name: bytes) -> int:
    """Opens one of our own directories, making it where it is missing; what else has its name is removed."""
    for _ in range(2):
        with contextlib.suppress(FileExistsError):
            make_own_directory(root.fd, name)
            # Staged files must not inherit the access list that the root gives to what is created in it.
            with contextlib.suppress(OSError):
                os.removexattr(b"/proc/self/fd/%d/%s" % (root.fd, name), "system.posix_acl_default")
        try:
            return os.open(name, _DIRECTORY, dir_fd=root.fd)
        except (NotADirectoryError, OSError):
            if stat.S_ISDIR(os.stat(name, dir_fd=root.fd, follow_symlinks=False).st_mode):
                raise
            os.unlink(name, dir_fd=root.fd)
    return os.open(name, _DIRECTORY, dir_fd=root.fd)


def tree_size(directory: int, name: bytes) -> int:
    """Bytes of a file, or of all files below a directory; symlinks are not followed."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if not stat.S_ISDIR(status.st_mode):
            return status.st_size
        return sum(
            os.stat(each, dir_fd=fd, follow_symlinks=False).st_size
            for _, _, files, fd in os.fwalk(name, dir_fd=directory)
            for each in files
        )
    except FileNotFoundError:
        return 0


def remove_tree(directory: int, name: bytes) -> None:
    """Removes an object and all below it; what is gone already is no fault. Nothing outside is ever touched."""
    try:
        os.unlink(name, dir_fd=directory)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        _remove_directory(directory, name)


def _remove_directory(directory: int, name: bytes) -> None:
    try:
        fd = os.open(name, _DIRECTORY, dir_fd=directory)
    except FileNotFoundError:
        return
    try:
        with contextlib.suppress(OSError):
            os.fchmod(fd, 0o700)
        for each in os.listdir(fd):
            remove_tree(fd, os.fsencode(each))
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=directory)
