"""The change from the present data to what was staged: all of it or nothing, whatever happens, at whatever moment.

An *intent* in ``state_dir`` says how far a restore is. It is durable before what it announces begins:

    staging    content is being put beside the data     a crash: what was staged is removed
    swapping   names are being changed, as listed       a crash: they are changed back, in reverse order
    committed  the new data is the data                 a crash: what is left to do is done
    sweeping   what is not needed any more is removed   a crash: it is removed

``recover`` brings whatever a crash left to one of the two ends; an engine calls it before it looks at any data. A
change of names is undone only where it is seen to have been made, so that it may be undone twice. Whoever calls
``Swap`` has made sure that no program has the data open. Paths are bytes. Blocking.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

from ha_sync.backup.package.format import bytes_of, text_of
from ha_sync.backup.package.places import COMPANIONS, HIDDEN, Place, place_of, remove_tree, times_kept
from ha_sync.backup.package.plan import DatasetPlan
from ha_sync.database.durable import sync_folder, write_durably
from ha_sync.database.keeping import drop, put_back, take_out
from ha_sync.errors import OperatorNeeded, Refused
from ha_sync.files.metadata import Metadata, apply_to_descriptor, metadata_of, read_xattrs

INTENT_NAME: Final = "restore.intent"
STAGING, SWAPPING, COMMITTED, SWEEPING = "staging", "swapping", "committed", "sweeping"
OWN = b".ha-"

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Move = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class RootMetadata:
    """Of a tree's root, before its content is exchanged."""

    path: bytes
    metadata: Metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """How far a restore is."""

    phase: str
    places: tuple[Place, ...]
    made: tuple[bytes, ...] = ()  # roots that were not there before
    roots: tuple[RootMetadata, ...] = ()
    moves: tuple[Move, ...] = ()
    forget: tuple[bytes, ...] = ()  # what the captures remember of the data before: files of the engine's own
    mark: tuple[bytes, ...] = ()  # files made instead: what is missing now was taken away on purpose


class Swap:
    """One restore: ``begin``, staging, ``exchange``, ``commit``, ``forget``; or, before the commit, ``give_up``.

    Both ways end with ``sweep``, which may take its time.
    """

    def __init__(self, state_dir: str, plans: tuple[DatasetPlan, ...]) -> None:
        self._state_dir = state_dir
        self._path = os.path.join(state_dir, INTENT_NAME)
        self._plans = plans
        self._intent: Intent | None = None
        self._committed = self._is_open = False

    def begin(self) -> None:
        """Staging may begin. Raises OperatorNeeded where a folder is missing."""
        places = tuple(place_of(plan) for plan in self._plans)
        for place in places:
            place.existing_folder()
        roots = [place.path for place in places if place.tree]
        made = tuple(root for root in roots if not os.path.isdir(root))
        self._note(Intent(phase=STAGING, places=places, made=made))
        assert self._intent is not None
        _clear(self._intent, _never)

    @property
    def committed(self) -> bool:
        """Whether the new data is the data."""
        return self._committed

    @property
    def is_open(self) -> bool:
        """Whether names were changed and neither committed nor changed back: nobody may use the data."""
        return self._is_open

    def choose(self, names: tuple[str, ...]) -> None:
        """Only these datasets were staged."""
        self._plans = tuple(plan for plan in self._plans if plan.name in names)

    def exchange(self, *, forget: tuple[bytes, ...] = (), mark: tuple[bytes, ...] = ()) -> None:
        """The staged content takes the place of the present one. Raises Refused, OSError; then call ``give_up``."""
        assert self._intent is not None
        moves: list[Move] = []
        roots: list[RootMetadata] = []
        for plan in self._plans:
            place = place_of(plan)
            if place.tree:
                roots.append(RootMetadata(path=place.path, metadata=_metadata(place.path)))
                moves += _tree_moves(plan, place)
            else:
                _keep_rows(plan, place, f"{self._path}.own")
                moves += _database_moves(place)
        self._note(
            replace(self._intent, phase=SWAPPING, roots=tuple(roots), moves=tuple(moves), forget=forget, mark=mark)
        )
        self._is_open = True
        for source, target in moves:
            _move(source, target)
        for plan in self._plans:
            place = place_of(plan)
            if place.tree:
                _apply(place.path, _metadata(place.new))
        _sync_folders(moves)

    def commit(self) -> None:
        """From here on the new data is the data."""
        assert self._intent is not None
        self._note(replace(self._intent, phase=COMMITTED, made=()))
        self._committed, self._is_open = True, False

    def forget(self) -> None:
        """What the captures remember is of the old data."""
        assert self._intent is not None
        _forget(self._intent)
        self._note(replace(self._intent, phase=SWEEPING))

    def give_up(self) -> None:
        """The data is as it was before ``begin``. May be called at any time before ``commit``, also again."""
        if self._intent is not None and self._intent.phase in {STAGING, SWAPPING}:
            _undo(self._intent)
            self._is_open = False
            self._note(_undone(self._intent))

    def _note(self, intent: Intent) -> None:
        write_durably(self._path, _out(intent))
        self._intent = intent


def recover(state_dir: str) -> str:
    """What a crash left of a restore is finished or undone; returns which: ``completed``, ``rolled back`` or empty.

    Quick, since an engine and the phones wait for it; what is left is removed by ``sweep``. Raises OperatorNeeded where
    it cannot be: then nothing may be captured or applied.
    """
    path = os.path.join(state_dir, INTENT_NAME)
    intent = _read(path)
    if intent is None or intent.phase == SWEEPING:
        return ""
    try:
        if intent.phase == COMMITTED:
            _forget(intent)
            write_durably(path, _out(replace(intent, phase=SWEEPING)))
            return "completed"
        _undo(intent)
        write_durably(path, _out(_undone(intent)))
    except OSError as error:
        raise _stuck(path, str(error)) from error
    return "rolled back"


def sweep(state_dir: str, *, stop: Callable[[], bool] = lambda: False) -> None:
    """Removes what a restore has left, if it is over. Raises ``Stopped`` as soon as ``stop`` says so, OSError."""
    path = os.path.join(state_dir, INTENT_NAME)
    intent = _read(path)
    if intent is None or intent.phase != SWEEPING:
        return
    _clear(intent, stop)
    for made in intent.made:
        with contextlib.suppress(OSError):
            os.rmdir(made)
    drop(f"{path}.own")
    os.unlink(path)
    sync_folder(state_dir)


def _read(path: str) -> Intent | None:
    try:
        with open(path, "rb") as file:
            return _in(file.read())
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise _stuck(path, f"it cannot be read: {error!r}") from error


def _stuck(path: str, reason: str) -> OperatorNeeded:
    return OperatorNeeded(
        "cannot undo the restore that was cut off, noted in",
        subject=path,
        reason=reason,
        hint="mend the disk and start again; the data before the restore is below .ha-restore beside its place",
    )


def _undo(intent: Intent) -> None:
    for source, target in reversed(intent.moves):
        was_made = _exists(target) and not _exists(source) and _exists(os.path.dirname(source))
        if was_made:
            _move(target, source)
    _sync_folders(intent.moves)
    for root in intent.roots:
        _apply(root.path, root.metadata)


def _undone(intent: Intent) -> Intent:
    return Intent(phase=SWEEPING, places=intent.places, made=intent.made)


def _never() -> bool:
    return False


def _clear(intent: Intent, stop: Callable[[], bool]) -> None:
    for place in intent.places:
        folder = place.path if place.tree else os.path.dirname(place.path)
        if os.path.isdir(folder):
            with times_kept(folder):
                place.clear(stop)
            sync_folder(os.fsdecode(folder))


def _forget(intent: Intent) -> None:
    for path in intent.forget:
        if os.path.isdir(path) and not os.path.islink(path):
            remove_tree(path, _never)
            continue
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    for path in intent.mark:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    for folder in {os.path.dirname(path) for path in intent.forget + intent.mark}:
        if os.path.isdir(folder):
            sync_folder(os.fsdecode(folder))


# ---- which names change


def _database_moves(place: Place) -> list[Move]:
    aside = [
        (place.path + end, place.old + end) for end in (b"", *COMPANIONS) if os.path.lexists(place.path + end)
    ]  # fmt: skip
    return [*aside, (place.new, place.path)]


def _keep_rows(plan: DatasetPlan, place: Place, keeping: str) -> None:
    """The node's own rows of the present database go into the staged one."""
    if not os.path.exists(place.path) or not (plan.local_tables or plan.local_rows):
        return
    before = os.stat(place.new)
    try:
        take_out(os.fsdecode(place.path), keeping, plan.locality)
        put_back(os.fsdecode(place.new), keeping, plan.locality)
    finally:
        drop(keeping)
    left = [end for end in COMPANIONS if os.path.lexists(place.new + end)]
    assert not left, left
    fd = os.open(place.new, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.fsync(fd)
    finally:
        os.close(fd)


def _tree_moves(plan: DatasetPlan, place: Place) -> list[Move]:
    """The objects of the root go aside, the staged ones take their places, what is the node's own comes back to its."""
    own = _own_paths(place.path, plan.left_out)
    _require_no_mount(place.path, own)
    staying = {path for path in own if b"/" not in path} | _special(place.path)
    returning = [path for path in own if b"/" in path]
    for path in returning:
        _make_way(place, path)
    aside = [name for name in _listed(place.path) if name not in staying]
    coming = _listed(place.new)
    for name in coming:
        if name in staying:
            raise Refused("cannot restore", subject=os.fsdecode(name), reason="an object of the node stands there")
    return [
        *((os.path.join(place.path, name), os.path.join(place.old, name)) for name in aside),
        *((os.path.join(place.new, name), os.path.join(place.path, name)) for name in coming),
        *((os.path.join(place.old, path), os.path.join(place.path, path)) for path in returning),
    ]


def _make_way(place: Place, path: bytes) -> None:
    """The folders that an object of the node lies in are there also where the package has none of them."""
    parts = path.split(b"/")[:-1]
    for depth in range(1, len(parts) + 1):
        parent = b"/".join(parts[:depth])
        wanted = os.path.join(place.new, parent)
        try:
            mode = os.lstat(wanted).st_mode
        except FileNotFoundError:
            with times_kept(os.path.dirname(wanted)):
                os.mkdir(wanted, 0o700)
                _apply(wanted, _metadata(os.path.join(place.path, parent)))
            continue
        if not stat.S_ISDIR(mode):
            raise Refused(
                "cannot restore",
                subject=os.fsdecode(os.path.join(place.path, path)),
                reason="it is this node's own, and the package has no folder where it lies",
                hint="move it away, or choose the other datasets with --dataset",
            )


def _own_paths(root: bytes, patterns: Iterable[str]) -> list[bytes]:
    """What matches a pattern, without what lies below another match."""
    found: set[bytes] = set()
    for pattern in patterns:
        parts = pattern.strip("/").split("/")
        if parts != [""]:
            found.update(_matching(root, b"", parts))
    return sorted(p for p in found if not any(_is_above(other, p) for other in found))


def _matching(root: bytes, directory: bytes, parts: list[str]) -> list[bytes]:
    folder = os.path.join(root, directory) if directory else root
    if not stat.S_ISDIR(os.lstat(folder).st_mode):
        return []
    matches = [
        os.path.join(directory, name) if directory else name
        for name in _listed(folder)
        if fnmatch.fnmatchcase(os.fsdecode(name), parts[0])
    ]
    if len(parts) == 1:
        return matches
    return [path for match in matches for path in _matching(root, match, parts[1:])]


def _is_above(other: bytes, path: bytes) -> bool:
    return other != path and path.startswith(other + b"/")


def _listed(folder: bytes) -> list[bytes]:
    return sorted(name for name in os.listdir(folder) if not name.startswith(OWN))


def _special(root: bytes) -> set[bytes]:
    """Sockets, FIFOs and devices are nobody's data: they stay where they are."""
    kinds = (stat.S_ISDIR, stat.S_ISREG, stat.S_ISLNK)
    return {
        name for name in _listed(root)
        if not any(kind(os.lstat(os.path.join(root, name)).st_mode) for kind in kinds)
    }  # fmt: skip


def _require_no_mount(root: bytes, own: list[bytes]) -> None:
    """A folder on which another filesystem is mounted cannot change its name, and its content must not be removed."""
    with open("/proc/self/mountinfo", "rb") as file:
        points = [line.split(b" ")[4].decode("unicode_escape").encode("latin-1") for line in file]
    for point in points:
        inside = point[len(root) + 1 :] if point.startswith(root + b"/") else b""
        if inside and not any(inside == path or _is_above(path, inside) for path in own):
            raise Refused(
                "cannot restore",
                subject=os.fsdecode(point),
                reason="another filesystem is mounted within the dataset",
                hint="unmount it, name it in node_local, or choose the other datasets with --dataset",
            )


# ---- names and metadata


def _move(source: bytes, target: bytes) -> None:
    """A change of name, without a trace in the times of the folders."""
    with times_kept(os.path.dirname(source)), times_kept(os.path.dirname(target)):
        os.rename(source, target)


def _exists(path: bytes) -> bool:
    return os.path.lexists(path)


def _sync_folders(moves: Iterable[Move]) -> None:
    for folder in {os.path.dirname(path) for move in moves for path in move}:
        if os.path.isdir(folder):
            sync_folder(os.fsdecode(folder))


def _metadata(folder: bytes) -> Metadata:
    fd = os.open(folder, _DIRECTORY)
    try:
        xattrs, _ = read_xattrs(fd)
        return metadata_of(os.fstat(fd), xattrs)
    finally:
        os.close(fd)


def _apply(folder: bytes, metadata: Metadata) -> None:
    fd = os.open(folder, _DIRECTORY)
    try:
        apply_to_descriptor(fd, metadata)
    finally:
        os.close(fd)


# ---- the file


def _out(intent: Intent) -> bytes:
    values = {
        "version": 1,
        "phase": intent.phase,
        "places": [
            [place.tree, *map(text_of, (place.path, place.hidden, place.new, place.old))] for place in intent.places
        ],
        "made": [text_of(path) for path in intent.made],
        "roots": [
            [
                text_of(root.path),
                root.metadata.mode,
                root.metadata.uid,
                root.metadata.gid,
                root.metadata.mtime_ns,
                root.metadata.xattrs.hex(),
            ]
            for root in intent.roots
        ],
        "moves": [[text_of(source), text_of(target)] for source, target in intent.moves],
        "forget": [text_of(path) for path in intent.forget],
        "mark": [text_of(path) for path in intent.mark],
    }
    return json.dumps(values).encode("ascii")


def _in(data: bytes) -> Intent:
    values = json.loads(data)
    if values["version"] != 1 or values["phase"] not in {STAGING, SWAPPING, COMMITTED, SWEEPING}:
        raise ValueError("of another version")
    places = []
    for tree, *paths in values["places"]:
        path, hidden, new, old = map(bytes_of, paths)
        if HIDDEN not in hidden:  # what is removed must be ours
            raise ValueError(f"{hidden!r} is none of ours")
        places.append(Place(tree=bool(tree), path=path, hidden=hidden, new=new, old=old))
    return Intent(
        phase=values["phase"],
        places=tuple(places),
        made=tuple(map(bytes_of, values["made"])),
        roots=tuple(
            RootMetadata(
                path=bytes_of(path),
                metadata=Metadata(mode=mode, uid=uid, gid=gid, mtime_ns=mtime_ns, xattrs=bytes.fromhex(xattrs)),
            )
            for path, mode, uid, gid, mtime_ns, xattrs in values["roots"]
        ),
        moves=tuple((bytes_of(source), bytes_of(target)) for source, target in values["moves"]),
        forget=tuple(map(bytes_of, values["forget"])),
        mark=tuple(map(bytes_of, values["mark"])),
    )
