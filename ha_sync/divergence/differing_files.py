"""What an archive's files are against the tree as it is now: for a person, path by path. Blocking; changes nothing."""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
from collections.abc import Iterator

from ha_sync.catalogue.tree import TYPE_FILE
from ha_sync.config import TreeSettings
from ha_sync.divergence.differing import Line
from ha_sync.divergence.merging_tree import TreeMerge
from ha_sync.divergence.placing import Placing
from ha_sync.divergence.tree_index import Action, Object, TreeIndex, content_path


def differing_files(settings: TreeSettings, index_path: str, contents: str, *, records: bool, limit: int) -> list[Line]:
    """At most ``limit`` lines. ``records``: only what a merge would bring, by what it is, under whatever name."""
    lines = _missing(settings, index_path, contents) if records else _by_path(settings, index_path, contents)
    return list(itertools.islice(lines, limit))


def _missing(settings: TreeSettings, index_path: str, contents: str) -> Iterator[Line]:
    merge = TreeMerge(settings, index_path, note="", look_only=True)
    try:
        for unit in merge.units():
            for item in unit.files:
                yield _line("record", item, contents, new=_told(item))
        for reason in merge.outcome.reasons:
            yield {"what": "left", "key": reason}
    finally:
        merge.close()


def _by_path(settings: TreeSettings, index_path: str, contents: str) -> Iterator[Line]:
    placing = Placing(settings.path)
    try:
        with TreeIndex(index_path) as index:
            for item in index.objects():
                old, same = _here(placing, item)
                if item.action is Action.GONE:
                    if old:
                        yield _line("deleted", item, contents, old=old)
                elif item.action is Action.META:
                    if old and not same:
                        yield _line("metadata", item, contents, old=old, new=_told(item))
                elif not same:
                    yield _line("changed" if old else "new", item, contents, old=old, new=_told(item))
    finally:
        placing.close()


def _here(placing: Placing, item: Object) -> tuple[str, bool]:
    """What stands there now, in words, and whether it is what the archive has."""
    status = None
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        status = placing.root.lstat(item.path)
    if status is None:
        return "", False
    mode = stat.S_IMODE(status.st_mode)
    if item.action is Action.META:
        same = (mode, status.st_uid, status.st_gid) == (item.mode, item.uid, item.gid)
    elif item.type == TYPE_FILE:
        same = placing.hash_at(item.path) == item.hash
    elif item.link_target:
        same = stat.S_ISLNK(status.st_mode) and placing.root.readlink(item.path) == item.link_target
    else:
        same = stat.S_ISDIR(status.st_mode)
    return f"{status.st_size} bytes, mode {mode:04o}, owner {status.st_uid}:{status.st_gid}", same


def _told(item: Object) -> str:
    return f"{item.size} bytes, mode {item.mode:04o}, owner {item.uid}:{item.gid}"


def _line(what: str, item: Object, contents: str, *, old: str = "", new: str = "") -> Line:
    kept_at = content_path(contents, item.number) if item.kept else ""
    return {"what": what, "key": os.fsdecode(item.path), "old": old, "new": new, "kept_at": kept_at}
