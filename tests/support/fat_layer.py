"""FAT's rules over an ordinary directory, for a process of the tests: what a FAT driver refuses is refused, what it
rounds is rounded. It knows nothing of clusters, damage or mount options; names keep their case, as VFAT's do, and two
that differ in case only are one (looked up by ``FoldingRoot``).
"""

from __future__ import annotations

import errno
import os
from typing import Any

import pytest

from ha_sync.core.representation import folded
from ha_sync.files.confine import Root, split

FORBIDDEN = frozenset(b'"*:<>?|\\')
STEP_NS = 2_000_000_000


class FoldingRoot(Root):
    """Finds a name in whatever case it stands."""

    def lstat(self, path: bytes) -> os.stat_result:
        at = b""
        for part in path.split(b"/") if path else ():
            names = os.listdir(os.path.join(os.fsencode(self.path), at))
            match = [name for name in names if folded(name) == folded(part)]
            if not match:
                raise FileNotFoundError(errno.ENOENT, "no such file", path)
            at = os.path.join(at, match[0])
        return super().lstat(at)


def _checked(name: Any) -> None:
    _, last = split(os.fsencode(name)) if not isinstance(name, int) else (b"", b"")
    if not FORBIDDEN.isdisjoint(last):
        raise OSError(errno.EINVAL, "Invalid argument", name)


def lay(patch: pytest.MonkeyPatch, root: str) -> None:
    """From here on this process sees FAT at ``root``, and takes it for a mounted storage."""
    device = os.stat(root).st_dev
    real_utime, real_rename, real_mkdir = os.utime, os.rename, os.mkdir

    def utime(path: Any, times: Any = None, *, ns: tuple[int, int] | None = None, **more: Any) -> None:
        if ns is not None:
            ns = (ns[0] - ns[0] % STEP_NS, ns[1] - ns[1] % STEP_NS)
            real_utime(path, ns=ns, **more)
        else:
            real_utime(path, times, **more)

    def refuse(*_arguments: Any, **_more: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def rename(source: Any, target: Any, **more: Any) -> None:
        _checked(target)
        real_rename(source, target, **more)

    def mkdir(path: Any, *arguments: Any, **more: Any) -> None:
        _checked(path)
        real_mkdir(path, *arguments, **more)

    assert device
    patch.setattr("ha_sync.apply.tree.applier.filesystem_type", lambda _path: "vfat")
    patch.setattr("ha_sync.apply.tree.rooting.not_mounted", lambda _path: "")
    patch.setattr("ha_sync.apply.tree.rooting.Root", FoldingRoot)
    patch.setattr(os, "utime", utime)
    patch.setattr(os, "rename", rename)
    patch.setattr(os, "mkdir", mkdir)
    for name in ("symlink", "fchown", "chown", "fchmod", "setxattr"):
        patch.setattr(os, name, refuse)
