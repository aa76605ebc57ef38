"""What the filesystem of a storage cannot represent: told for each object, counted, left out; the rest goes on.

Where case is folded, two of the Active's names may be one here: the first that came stands. A deletion of the other
must not hit it. Blocking; belongs to the sink's thread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.apply.tree.changes import DELETE, DIRECTORY
from ha_sync.apply.tree.steps import TYPES
from ha_sync.catalogue.tree import TreeCatalogue
from ha_sync.core.representation import Holding, folded, refusal
from ha_sync.errors import HaSyncError
from ha_sync.files.confine import Root

KNOWN_MAX = 100_000


class Tell(Protocol):
    """Hears of each object that is left out."""

    def __call__(self, path: bytes, reason: str, *, first: bool) -> None:
        """``first``: for the first time."""


class Unheld:
    """See the module."""

    def __init__(self, holding: Holding, root: Root, catalogue: TreeCatalogue, *, tell: Tell) -> None:
        self._holding = holding
        self._root = root
        self._catalogue = catalogue
        self._tell = tell
        self._known: set[bytes] = set()
        self._taken: dict[str, bytes] = {}  # what came lately, by its name without case: it may not lie there yet

    def refuses(self, change: pb.TreeChange, staged: Callable[[bytes], bool]) -> bool:
        """Whether the change is to be passed over; ``staged``: whether a path will stand when the batch is done."""
        path = change.path
        if change.action == DELETE:
            return self._holding.folds_case and not self._is_ours(path, staged)
        reason = refusal(path, TYPES[change.type], change.size, self._holding) or self._clash(change, staged)
        if not reason:
            self._take(path)
            return False
        first = path not in self._known and len(self._known) < KNOWN_MAX
        self._known.add(path)
        self._tell(path, reason, first=first)
        return True

    def _take(self, path: bytes) -> None:
        if self._holding.folds_case:
            if len(self._taken) >= KNOWN_MAX:
                self._taken.clear()  # what was taken before lies on the disk by now
            self._taken[folded(path)] = path

    def _is_ours(self, path: bytes, staged: Callable[[bytes], bool]) -> bool:
        return not path or staged(path) or self._catalogue.knows(path)

    def _clash(self, change: pb.TreeChange, staged: Callable[[bytes], bool]) -> str:
        """Whether another name stands there, or leads there, in another case."""
        path = change.path
        if not self._holding.folds_case or self._is_ours(path, staged):
            return ""
        parent = path.rpartition(b"/")[0]
        if not self._is_ours(parent, staged):
            stands = self._taken.get(folded(parent), parent) != parent or self._stands(parent)
            return "its directory has no room beside one that differs in case only" if stands else ""
        other = self._taken.get(folded(path), path)
        if not (other != path and self._is_ours(other, staged)) and not self._stands(path):
            return ""
        kind = "directory" if change.type == DIRECTORY else "name"
        return f"{self._holding.kind} folds case: another {kind} stands there"

    def _stands(self, path: bytes) -> bool:
        try:
            self._root.lstat(path)
        except (OSError, HaSyncError):
            return False
        return True
