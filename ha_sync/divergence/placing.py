"""Puts files into a live tree beside a running PBX: whole, durable, under a name that nothing else has.

A file is built in our hidden folder of the tree (its names begin with ``.ha-``: the capture leaves them out), synced,
and renamed where no file of that name stands. Missing folders are made. Nothing outside the root is opened, no symlink
is followed, nothing is replaced. Not thread-safe; blocking.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat

from ha_sync.divergence.saving_tree import copied
from ha_sync.divergence.tree_index import Object
from ha_sync.errors import ProtocolFault
from ha_sync.files.blocks import hash_file
from ha_sync.files.confine import Root, components, split
from ha_sync.files.metadata import Metadata, apply_to_descriptor

FOLDER = b".ha-merge"
_NOREPLACE = 1


class Placing:
    """In one tree, for one merge."""

    def __init__(self, path: str) -> None:
        self.root = Root(path)
        self._count = 0
        self._begun = False

    def close(self) -> None:
        """Removes what was not placed."""
        if self._begun:
            self._sweep()
            with contextlib.suppress(OSError):
                os.rmdir(FOLDER, dir_fd=self.root.fd)
        self.root.close()

    def _begin(self) -> None:
        if not self._begun:
            with contextlib.suppress(FileExistsError):
                os.mkdir(FOLDER, 0o700, dir_fd=self.root.fd)
            self._begun = True
            self._sweep()  # what an earlier merge left when it was cut off

    def _sweep(self) -> None:
        fd = self.root.directory(FOLDER)
        for name in os.listdir(fd):
            os.unlink(name, dir_fd=fd)

    def hash_at(self, path: bytes) -> bytes | None:
        """The content hash of the file there; empty for anything that is no file, None where nothing is."""
        try:
            fd = self.root.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return b""
            raise
        try:
            return hash_file(fd).hash if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)

    def read(self, path: bytes, limit: int) -> bytes:
        """The content of a small file."""
        fd = self.root.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            return os.read(fd, limit)
        finally:
            os.close(fd)

    def names(self, folder: bytes) -> list[bytes]:
        """In a folder; nothing where there is none."""
        try:
            return [os.fsencode(name) for name in os.listdir(self.root.directory(folder))]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def stage(self, content: str, item: Object) -> bytes:
        """Copies a content into the tree's hidden folder, with its metadata, durably; its place there.

        Raises ProtocolFault where the content is not what the index says.
        """
        self._begin()
        self._count += 1
        place = FOLDER + b"/%d" % self._count
        fd = self.root.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        try:
            source = os.open(content, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                copied(source, fd)
            finally:
                os.close(source)
            if hash_file(fd).hash != item.hash:
                raise ProtocolFault("refused a content of an archive", subject=repr(item.path), reason="wrong hash")
            wanted = Metadata(
                mode=item.mode, uid=item.uid, gid=item.gid, mtime_ns=item.mtime_ns, xattrs=item.xattrs
            )  # fmt: skip
            apply_to_descriptor(fd, wanted)
            os.fsync(fd)
        finally:
            os.close(fd)
        return place

    def publish(self, place: bytes, path: bytes) -> bool:
        """Gives a staged file its name, durably; False where something has the name."""
        folder, name = split(path)
        self.make_folder(folder)
        source = self.root.directory(FOLDER)
        target = self.root.directory(folder)
        if not _renamed(source, split(place)[1], target, name):
            return False
        os.fsync(target)
        return True

    def make_folder(self, path: bytes) -> None:
        """With all above it; each new one is owned, and may be entered, as the folder above it."""
        at = b""
        for part in components(path):
            above = self.root.directory(at)
            status = os.fstat(above)
            at = at + b"/" + part if at else part
            try:
                os.mkdir(part, 0o700, dir_fd=above)
            except FileExistsError:
                continue
            made = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=above)
            try:
                with contextlib.suppress(PermissionError):
                    os.fchown(made, status.st_uid, status.st_gid)
                os.fchmod(made, stat.S_IMODE(status.st_mode))
            finally:
                os.close(made)
            os.fsync(above)

    def link(self, item: Object) -> bool:
        """Makes a symlink; False where something else stands there."""
        folder, name = split(item.path)
        self.make_folder(folder)
        directory = self.root.directory(folder)
        try:
            os.symlink(item.link_target, name, dir_fd=directory)
        except FileExistsError:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            return stat.S_ISLNK(status.st_mode) and os.readlink(name, dir_fd=directory) == item.link_target
        os.fsync(directory)
        return True

    def inode(self, path: bytes) -> int:
        """Of what stands there."""
        return self.root.lstat(path).st_ino


def _renamed(source: int, name: bytes, target: int, new_name: bytes) -> bool:
    """Moves without ever replacing: by the kernel where it can, else a name is reserved first."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(source, name, target, new_name, _NOREPLACE) == 0:
        return True
    error = ctypes.get_errno()
    if error == errno.EEXIST:
        return False
    if error not in {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}:
        raise OSError(error, os.strerror(error), os.fsdecode(new_name))
    try:
        os.close(os.open(new_name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target))
    except FileExistsError:
        return False
    os.rename(name, new_name, src_dir_fd=source, dst_dir_fd=target)
    return True
