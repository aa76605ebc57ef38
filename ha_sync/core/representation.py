"""What a filesystem can hold of an object, and how two of different kinds are compared without flapping.

A *representation* is what is left of an object where it lies: FAT keeps times of two seconds, no owners, modes, links
or attributes, folds case, forbids characters and files from 4 GiB on. Two nodes compare what *both* can hold
(``common``): ``told`` gives that of an object, the same whether the object comes from the one side or the other. What
cannot be held at all has a ``refusal``. Kinds are the kernel's names; of an unknown one nothing is held back. Pure.
Times in nanoseconds since 1970, sizes in bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ha_sync.core.compare import Seen

SECOND_NS = 1_000_000_000
FAT_FIRST_NS = 315_532_800 * SECOND_NS  # 1980-01-01
FAT_LAST_NS = 4_354_819_198 * SECOND_NS  # 2107-12-31T23:59:58
FAT_SIZE_MAX = (1 << 32) - 1
NAME_UNITS_MAX = 255

Facts = tuple[int, int, int, int, bytes]
"""Mode, owner, group, modification time, attributes."""

_DIRECTORY = 2
_SYMLINK = 3
_CONTROL = bytes(range(1, 32))
_WINDOWS = _CONTROL + b'"*:<>?|\\'


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """What one kind of filesystem holds; the intersection of two is one too."""

    kind: str = ""
    time_ns: int = 1  # the granularity of modification times
    first_ns: int | None = None
    last_ns: int | None = None
    directory_times: bool = True
    owners: bool = True
    modes: bool = True
    symlinks: bool = True
    attributes: bool = True
    folds_case: bool = False
    forbidden: frozenset[int] = frozenset()
    bare_ends: bool = False  # a name may not end with a dot or a space, and must be Unicode
    size_max: int | None = None
    inodes: bool = True  # a file keeps its inode number from mount to mount

    @property
    def complete(self) -> bool:
        """Whether it holds everything."""
        return replace(self, kind="") == EVERYTHING


EVERYTHING = Holding()

_FAT = Holding(
    time_ns=2 * SECOND_NS,
    first_ns=FAT_FIRST_NS,
    last_ns=FAT_LAST_NS,
    directory_times=False,
    owners=False,
    modes=False,
    symlinks=False,
    attributes=False,
    folds_case=True,
    forbidden=frozenset(_WINDOWS),
    bare_ends=True,
    size_max=FAT_SIZE_MAX,
    inodes=False,
)
_EXFAT = replace(_FAT, size_max=None)
_CIFS = Holding(
    time_ns=100,
    owners=False,
    modes=False,
    symlinks=False,
    attributes=False,
    folds_case=True,
    forbidden=frozenset(_WINDOWS),
    bare_ends=True,
    inodes=False,
)
_NTFS = replace(_CIFS, folds_case=False)
_NFS = Holding(attributes=False)

_KINDS = {
    "vfat": _FAT,
    "msdos": _FAT,
    "exfat": _EXFAT,
    "cifs": _CIFS,
    "smb3": _CIFS,
    "smbfs": _CIFS,
    "ntfs": _NTFS,
    "ntfs3": _NTFS,
    "fuseblk": _NTFS,
    "nfs": _NFS,
    "nfs4": _NFS,
}


def holding_of(kind: str) -> Holding:
    """By the kernel's name."""
    return replace(_KINDS.get(kind, EVERYTHING), kind=kind)


def common(one: Holding, other: Holding) -> Holding:
    """What both hold."""
    sizes = [size for size in (one.size_max, other.size_max) if size is not None]
    firsts = [time for time in (one.first_ns, other.first_ns) if time is not None]
    lasts = [time for time in (one.last_ns, other.last_ns) if time is not None]
    return Holding(
        kind=one.kind if one.kind == other.kind else f"{one.kind} and {other.kind}",
        # The coarser one: all of these divide one another.
        time_ns=max(one.time_ns, other.time_ns),
        first_ns=max(firsts, default=None),
        last_ns=min(lasts, default=None),
        directory_times=one.directory_times and other.directory_times,
        owners=one.owners and other.owners,
        modes=one.modes and other.modes,
        symlinks=one.symlinks and other.symlinks,
        attributes=one.attributes and other.attributes,
        folds_case=one.folds_case or other.folds_case,
        forbidden=one.forbidden | other.forbidden,
        bare_ends=one.bare_ends or other.bare_ends,
        size_max=min(sizes, default=None),
        inodes=one.inodes and other.inodes,
    )


def time_in(mtime_ns: int, holding: Holding) -> int:
    """A modification time as it is kept there; what is kept already stays as it is."""
    kept = mtime_ns
    if holding.first_ns is not None:
        kept = max(kept, holding.first_ns)
    if holding.last_ns is not None:
        kept = min(kept, holding.last_ns)
    return kept - kept % holding.time_ns


def told(seen: Seen, holding: Holding) -> Seen:
    """What is compared of an object."""
    of = (seen.mode, seen.uid, seen.gid, seen.mtime_ns, seen.xattrs)
    mode, uid, gid, mtime_ns, xattrs = facts(of, holding, directory=seen.type == _DIRECTORY)
    return seen._replace(mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=xattrs)


def facts(of: Facts, holding: Holding, *, directory: bool) -> Facts:
    """The same of the metadata alone."""
    mode, uid, gid, mtime_ns, xattrs = of
    timeless = directory and not holding.directory_times
    return (
        mode if holding.modes else 0,
        uid if holding.owners else 0,
        gid if holding.owners else 0,
        0 if timeless else time_in(mtime_ns, holding),
        xattrs if holding.attributes else b"",
    )


def refusal(path: bytes, kind: int, size: int, holding: Holding) -> str:
    """Why an object cannot lie there, for people; empty where it can. ``kind`` as in the protocol."""
    if kind == _SYMLINK and not holding.symlinks:
        return f"{holding.kind} has no symbolic links"
    if holding.size_max is not None and size > holding.size_max:
        return f"{holding.kind} takes files below 4 GiB"
    for name in path.split(b"/"):
        if reason := _name_refusal(name, holding):
            return reason
    return ""


def _name_refusal(name: bytes, holding: Holding) -> str:
    if holding.forbidden and not holding.forbidden.isdisjoint(name):
        found = next(byte for byte in name if byte in holding.forbidden)
        return f"{holding.kind} takes no {chr(found)!r} in a name"
    if not holding.bare_ends or not name:
        return ""
    if name.endswith((b".", b" ")):
        return f"{holding.kind} takes no name that ends with a dot or a space"
    try:
        text = name.decode()
    except UnicodeDecodeError:
        return f"{holding.kind} takes no name that is not UTF-8"
    return f"{holding.kind} takes no name so long" if len(text.encode("utf-16-le")) // 2 > NAME_UNITS_MAX else ""


def folded(path: bytes) -> str:
    """Two paths of which this is equal are one where case is folded."""
    return path.decode("utf-8", "surrogateescape").casefold()


class Names:
    """Finds, among paths in walk order, those whose name stands there already in another case.

    Memory: the names of the directories that lead to the present one.
    """

    def __init__(self) -> None:
        self._levels: list[tuple[bytes, dict[str, bytes]]] = []

    def clash(self, path: bytes) -> str:
        """The other name, for people; empty where there is none."""
        directory, _, name = path.rpartition(b"/")
        while self._levels and not _is_above(self._levels[-1][0], directory):
            self._levels.pop()
        if not self._levels or self._levels[-1][0] != directory:
            self._levels.append((directory, {}))
        other = self._levels[-1][1].setdefault(folded(name), name)
        return "" if other == name else other.decode("utf-8", "backslashreplace")


def _is_above(upper: bytes, directory: bytes) -> bool:
    return not upper or upper == directory or directory.startswith(upper + b"/")
