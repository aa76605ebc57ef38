"""Finishes what the dead node left half done, before the PBX starts here (DESIGN 7a); and takes our traces away.

Each step looks only at what may be unfinished (partials, held files, mailbox folders, the newest recordings) and
has a deadline; what it did not get to is said. Everything that is removed goes to the trash; an overwritten header
is kept in the report. Blocking.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Iterator

from ha_sync.apply.tree.applier import Applier, Tree
from ha_sync.apply.tree.partials import Partial
from ha_sync.apply.tree.survey import make_directories
from ha_sync.apply.tree.trash import remove_tree
from ha_sync.catalogue.tree import FILESYSTEM, IDENTITY, ROOT
from ha_sync.config import Hold
from ha_sync.core.dataset import Finished
from ha_sync.errors import Refused
from ha_sync.files import wav
from ha_sync.files.confine import split
from ha_sync.files.metadata import Metadata, apply_to_descriptor
from ha_sync.files.places import HELD, MARKER, PARTIAL, STAGE, TRASH, is_ours, join

MAILBOXES_S = 3.0
HEADERS_S = 3.0
HELD_S = 3.0
NEWEST_RECORDINGS = 1000
"""Of the files that came whole, so many of the newest are looked at for a header without lengths."""
RECENT_NS = 6 * 3600 * 10**9
"""Before the newest recording: what was being written when the node died is not older."""

_GONE = (FileNotFoundError, NotADirectoryError, Refused)
_MESSAGE = re.compile(rb"(msg[0-9]+)\.[A-Za-z0-9]+\Z")


def promote_tree(applier: Applier, *, clock: Callable[[], float]) -> tuple[Finished, ...]:
    """All steps, those first that the PBX needs to start."""
    tree = applier.ready(now=clock())
    applier.drop(everything=True)
    finished: list[Finished] = []
    if applier.settings.mailboxes:
        finished += _tidy_mailboxes(applier, tree, clock=clock)
    finished += _hand_over_held(applier, tree, clock=clock)
    finished += _publish_partials(applier, tree, now=clock())
    finished += _repair_newest(applier, tree, clock=clock)
    applier.settle()
    tree.publisher.sync_directories()
    with applier.catalogue.transaction(durable=True):
        applier.catalogue.put("guarded", "0")
        applier.catalogue.clear_intent()
    _leave(applier, tree)
    return tuple(finished)


def _leave(applier: Applier, tree: Tree) -> None:
    """The hidden directories that are empty now go; the trash and kept call files stay."""
    root = tree.root
    tree.trash.purge()
    held_empty = _is_empty_below(tree, HELD)
    for name in (STAGE, PARTIAL):
        remove_tree(root.fd, name)
    if held_empty:
        remove_tree(root.fd, HELD)
    applier.close_tree()


def _is_empty_below(tree: Tree, place: bytes) -> bool:
    return next(_files_below(tree, place), None) is None


def _files_below(tree: Tree, place: bytes) -> Iterator[bytes]:
    """Places of everything but directories."""
    try:
        names = sorted(os.fsencode(name) for name in os.listdir(tree.root.directory(place)))
    except _GONE:
        return
    for name in names:
        each = join(place, name)
        with contextlib.suppress(*_GONE):
            if stat.S_ISDIR(tree.root.lstat(each).st_mode):
                yield from _files_below(tree, each)
            else:
                yield each


# ---- mailboxes


def _tidy_mailboxes(applier: Applier, tree: Tree, *, clock: Callable[[], float]) -> list[Finished]:
    """A stale lock loses every new message of its folder, so this comes first."""
    finished: list[Finished] = []
    until = clock() + MAILBOXES_S
    tree.root.forget()
    for directory in applier.catalogue.directories():
        if clock() > until:
            finished.append(Finished(what="not all mailboxes were looked at", subject=os.fsdecode(directory)))
            break
        with contextlib.suppress(*_GONE):
            _tidy_folder(applier, tree, directory, finished)
    return finished


def _tidy_folder(applier: Applier, tree: Tree, directory: bytes, finished: list[Finished]) -> None:
    names = {os.fsencode(name) for name in os.listdir(tree.root.directory(directory))}
    for name in sorted(names):
        place = join(directory, name)
        if applier.scope.is_node_own(place) or is_ours(place):
            continue
        if name == b".lock" or name.startswith(b".lock-"):
            _discard(tree, place)
            finished.append(Finished(what="stale voicemail lock removed", subject=os.fsdecode(place)))
        elif name == b"tmp":
            for left in list(_files_below(tree, place)):
                _discard(tree, left)
                finished.append(Finished(what="unfinished voicemail removed", subject=os.fsdecode(left)))
        elif (message := _MESSAGE.match(name)) and message[1] + b".txt" not in names:
            _discard(tree, place)
            finished.append(
                Finished(what="voicemail without its text removed", subject=os.fsdecode(place), detail="in the trash")
            )


def _discard(tree: Tree, place: bytes) -> None:
    with contextlib.suppress(*_GONE):
        tree.publisher.take_away(place, tree.root.lstat(place))


# ---- call files


def _hand_over_held(applier: Applier, tree: Tree, *, clock: Callable[[], float]) -> list[Finished]:
    release = applier.settings.hold_at_promotion is Hold.RELEASE
    finished: list[Finished] = []
    until = clock() + HELD_S
    for place in list(_files_below(tree, HELD)):
        path = place[len(HELD) + 1 :]
        subject = os.fsdecode(path)
        if clock() > until:
            finished.append(Finished(what="not all call files were handed over", subject=subject))
            break
        if not release:
            finished.append(Finished(what="call file kept aside", subject=subject, detail=os.fsdecode(place)))
        elif _release(tree, place, path):
            finished.append(Finished(what="call file released", subject=subject))
        else:
            finished.append(Finished(what="call file kept aside", subject=subject, detail="its place is taken"))
    return finished


def _release(tree: Tree, place: bytes, path: bytes) -> bool:
    root = tree.root
    with contextlib.suppress(*_GONE):
        root.lstat(path)
        return False
    directory, name = split(path)
    if directory:
        make_directories(root, directory)
    held_directory, held_name = split(place)
    os.rename(
        held_name, name, src_dir_fd=root.directory(held_directory), dst_dir_fd=root.directory(directory)
    )  # fmt: skip
    tree.publisher.touched(directory)
    return True


# ---- recordings


def _publish_partials(applier: Applier, tree: Tree, *, now: float) -> list[Finished]:
    finished: list[Finished] = []
    for path in tree.partials.paths():
        partial = tree.partials.take(path)
        if partial.version:
            _forget(applier, partial)  # part of a file is no file; it goes with the hidden directory
            continue
        subject = os.fsdecode(path)
        repaired = wav.repair(partial.fd)
        _dress(partial)
        tree.publisher.put_in_place(partial.place, path, now=now)
        _forget(applier, partial)
        size = partial.size
        finished.append(Finished(what="interrupted recording published", subject=subject, detail=f"{size} bytes"))
        if repaired is not None:
            finished.append(_repaired(subject, repaired))
    return finished


def _forget(applier: Applier, partial: Partial) -> None:
    os.close(partial.fd)
    with applier.catalogue.transaction(durable=False):
        applier.catalogue.forget(partial.key)


def _dress(partial: Partial) -> None:
    apply_to_descriptor(
        partial.fd, Metadata(mode=partial.mode, uid=partial.uid, gid=partial.gid, mtime_ns=partial.mtime_ns)
    )
    os.fsync(partial.fd)


def _repaired(subject: str, repair: wav.Repair) -> Finished:
    return Finished(
        what="recording header repaired",
        subject=subject,
        detail=f"{repair.data_length} bytes of sound; header was {repair.original.hex()}",
    )


def _repair_newest(applier: Applier, tree: Tree, *, clock: Callable[[], float]) -> list[Finished]:
    """Recordings that came as whole files while they were being written."""
    finished: list[Finished] = []
    until = clock() + HEADERS_S
    newest = applier.catalogue.newest_files(endings=wav.SUFFIXES, limit=NEWEST_RECORDINGS)
    for path, mtime_ns in newest:
        if mtime_ns < newest[0][1] - RECENT_NS:
            break
        subject = os.fsdecode(path)
        if clock() > until:
            finished.append(Finished(what="not all recent recordings were looked at", subject=subject))
            break
        with contextlib.suppress(*_GONE):
            repaired = _repair_one(tree, applier.scope.place(path))
            if repaired is not None:
                finished.append(_repaired(subject, repaired))
    return finished


def _repair_one(tree: Tree, place: bytes) -> wav.Repair | None:
    reading = tree.root.open(place, os.O_RDONLY | os.O_NONBLOCK)
    try:
        header, status = wav.read_header(reading), os.fstat(reading)
        interrupted = header is not None and header.data_length == 0 and status.st_size > header.data_at
        if not stat.S_ISREG(status.st_mode) or not interrupted:
            return None
    finally:
        os.close(reading)
    fd = tree.root.open(place, os.O_RDWR)
    try:
        repaired = wav.repair(fd)
        os.utime(fd, ns=(status.st_atime_ns, status.st_mtime_ns))
        os.fsync(fd)
    finally:
        os.close(fd)
    return repaired


# ---- detaching


def detach_tree(applier: Applier) -> tuple[str, ...]:
    """Removes the hidden directories, the trash with them, and the marker. Kept call files are the PBX's: they stay."""
    applier.close_tree()
    removed: list[str] = []
    base = os.fsencode(applier.settings.path)
    try:
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ()
    try:
        for name in sorted(os.fsencode(each) for each in os.listdir(fd)):
            if name in (STAGE, PARTIAL, TRASH, MARKER):
                remove_tree(fd, name)
                removed.append(os.fsdecode(join(base, name)))
    finally:
        os.close(fd)
    with applier.catalogue.transaction(durable=True):
        for key in (ROOT, IDENTITY, FILESYSTEM):
            applier.catalogue.forget(key)
    return tuple(removed)
