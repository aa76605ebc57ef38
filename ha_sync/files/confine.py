"""Opens paths below a dataset's root and nowhere else.

Every path is relative bytes without empty, ``.`` or ``..`` components. Each component is opened with ``O_NOFOLLOW``
from its parent's descriptor, so neither a symlink in the way nor a rename during the walk leads outside. Blocking.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections import OrderedDict

from ha_sync.errors import ProtocolFault, Refused

PATH_MAX_BYTES = 4096
NAME_MAX_BYTES = 255
DEPTH_MAX = 512
DESCRIPTORS_MAX = 64
"""Parents kept open: groups touch few directories, and a walk per file would double the system calls."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def components(path: bytes) -> list[bytes]:
    """The components of a relative path; raises ProtocolFault where it is not one (hostile or broken sender)."""
    if not path:
        return []
    parts = path.split(b"/")
    faulty = (
        len(path) >= PATH_MAX_BYTES
        or len(parts) > DEPTH_MAX
        or b"\0" in path
        or any(part in {b"", b".", b".."} or len(part) > NAME_MAX_BYTES for part in parts)
    )
    if faulty:
        raise ProtocolFault("refused the path", subject=repr(path[:200]), hint="paths are relative and plain")
    return parts


def split(path: bytes) -> tuple[bytes, bytes]:
    """Parent and name."""
    parent, _, name = path.rpartition(b"/")
    return parent, name


class Root:
    """A dataset's root directory, held open, with a small cache of its directories' descriptors.

    Not thread-safe: one per executor thread.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._parents: OrderedDict[bytes, int] = OrderedDict()

    @property
    def fd(self) -> int:
        """The root's own descriptor."""
        return self._fd

    def close(self) -> None:
        """Closes every descriptor."""
        self.forget()
        os.close(self._fd)

    def forget(self) -> None:
        """Drops cached descriptors: after directories were renamed or removed they would point elsewhere."""
        while self._parents:
            _, fd = self._parents.popitem()
            os.close(fd)

    def directory(self, path: bytes) -> int:
        """A descriptor of a directory below the root, owned by this cache; valid until the next call of any method.

        Raises FileNotFoundError, NotADirectoryError, or Refused where a symlink stands in the way.
        """
        if not path:
            return self._fd
        cached = self._parents.get(path)
        if cached is not None:
            self._parents.move_to_end(path)
            return cached
        fd = self._walk(components(path))
        self._parents[path] = fd
        if len(self._parents) > DESCRIPTORS_MAX:
            _, oldest = self._parents.popitem(last=False)
            os.close(oldest)
        return fd

    def _walk(self, parts: list[bytes]) -> int:
        current = os.dup(self._fd)
        for part in parts:
            try:
                below = os.open(part, _DIRECTORY, dir_fd=current)
            except OSError as error:
                is_link = False
                with contextlib.suppress(OSError):
                    is_link = stat.S_ISLNK(os.stat(part, dir_fd=current, follow_symlinks=False).st_mode)
                os.close(current)
                if is_link:
                    raise Refused(
                        "would not follow the symlink", subject=repr(b"/".join(parts)), hint="remove it"
                    ) from error
                raise
            os.close(current)
            current = below
        return current

    def open(self, path: bytes, flags: int, mode: int = 0o600) -> int:
        """Opens a file below the root; never follows a symlink. The caller closes it."""
        parent, name = self._locate(path)
        return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=parent)

    def lstat(self, path: bytes) -> os.stat_result:
        """Of the object itself, not of what a symlink points to."""
        if not path:
            return os.fstat(self._fd)
        parent, name = self._locate(path)
        return os.stat(name, dir_fd=parent, follow_symlinks=False)

    def readlink(self, path: bytes) -> bytes:
        """The target of a symlink."""
        parent, name = self._locate(path)
        return os.readlink(name, dir_fd=parent)

    def _locate(self, path: bytes) -> tuple[int, bytes]:
        components(path)
        parent, name = split(path)
        return self.directory(parent), name
