"""Datasets that would replicate the same bytes twice, or the engine's own files.

Paths are compared after symbolic links are resolved, and files that exist also by device and inode, so that two names
of one database are found. A database inside a tree is fine where the tree leaves out the database *and* its journals:
a tree would otherwise put a journal beside a database that is written by other means, which destroys it.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterable, Iterator
from itertools import combinations

from ha_sync.config.reading import Faults, shown
from ha_sync.config.settings import DatasetSettings, NodeSettings, SqliteSettings, TreeSettings

JOURNALS = ("-wal", "-shm", "-journal")
"""What SQLite puts beside a database."""


def check_overlaps(node: NodeSettings, datasets: tuple[DatasetSettings, ...], faults: Faults) -> None:
    """Writes down every pair that gets in each other's way."""
    for line in (*_same_names(datasets), *_same_bytes(datasets), *_own_files(node, datasets)):
        faults.add(line)


def _same_names(datasets: Iterable[DatasetSettings]) -> Iterator[str]:
    seen: set[str] = set()
    for dataset in datasets:
        if dataset.name in seen:
            yield f"dataset[{dataset.name}].name: stands there twice: every dataset needs a name of its own"
        seen.add(dataset.name)


def _same_bytes(datasets: tuple[DatasetSettings, ...]) -> Iterator[str]:
    for one, other in combinations(datasets, 2):
        if _is_same(one.path, other.path):
            yield (
                f"dataset[{other.name}].path = {shown(other.path)}: is the same as that of dataset[{one.name}]: "
                "drop one of the two"
            )
        elif isinstance(one, TreeSettings) and _below(one.path, other.path):
            yield from _inside(other, one)
        elif isinstance(other, TreeSettings) and _below(other.path, one.path):
            yield from _inside(one, other)


def _inside(inner: DatasetSettings, outer: TreeSettings) -> Iterator[str]:
    relative = _below(outer.path, inner.path)
    suffixes = ("", *JOURNALS) if isinstance(inner, SqliteSettings) else ("",)
    if all(is_left_out(relative + suffix, outer) for suffix in suffixes):
        return
    pattern = relative + ("*" if isinstance(inner, SqliteSettings) else "")
    yield (
        f"dataset[{inner.name}].path = {shown(inner.path)}: lies inside dataset[{outer.name}]: "
        f"leave it out there with exclude = [{shown(pattern)}]"
    )


def _own_files(node: NodeSettings, datasets: Iterable[DatasetSettings]) -> Iterator[str]:
    for key, own in (("state_dir", node.state_dir), ("run_dir", node.run_dir)):
        for dataset in datasets:
            if problem := _own_file(f"node.{key} ({own})", own, dataset):
                yield f"dataset[{dataset.name}].path = {shown(dataset.path)}: {problem}"


def _own_file(key: str, own: str, dataset: DatasetSettings) -> str:
    if _is_same(own, dataset.path) or _below(own, dataset.path):
        return f"lies in the engine's own {key}: replicate the program's data only"
    relative = _below(dataset.path, own)
    if not isinstance(dataset, TreeSettings) or not relative or is_left_out(relative, dataset):
        return ""
    return f"holds the engine's own {key}: leave it out with exclude = [{shown(relative)}]"


def is_left_out(relative: str, tree: TreeSettings) -> bool:
    """Whether ``exclude`` covers this path or a folder above it; a pattern is matched component by component."""
    parts = relative.split("/")
    return any(_covers(pattern.removesuffix("/").split("/"), parts) for pattern in tree.exclude)


def _covers(pattern: list[str], parts: list[str]) -> bool:
    if len(pattern) > len(parts):
        return False
    return all(fnmatch.fnmatchcase(part, glob) for part, glob in zip(parts, pattern, strict=False))


def _is_same(one: str, other: str) -> bool:
    if os.path.realpath(one) == os.path.realpath(other):
        return True
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False  # one of them does not exist yet


def _below(root: str, path: str) -> str:
    """``path`` relative to ``root`` if it lies below it, else an empty string."""
    real_root, real_path = os.path.realpath(root), os.path.realpath(path)
    prefix = real_root.rstrip("/") + "/"
    return real_path[len(prefix) :] if real_path.startswith(prefix) else ""
