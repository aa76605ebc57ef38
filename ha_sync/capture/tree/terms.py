"""On what terms a storage is sent: when it is there, once an operator asked for it, and unless both nodes share it.

A tree that is no storage has none of this. Nothing of a storage leaves before it was *admitted* by the first sync,
which is remembered; the Standby of a storage that was in step has admitted it too, for the day it is the Active. *Gone*
is a storage that is not mounted, or not the one it was: it is waited for. Belongs to the dataset's thread; the plain
fields may be read from the event loop.
"""

from __future__ import annotations

from ha_sync.capture.tree.guard import RootGuard
from ha_sync.capture.tree.told import Event
from ha_sync.catalogue.tree import ADMITTED, IDENTITY, ROOT, TreeCatalogue
from ha_sync.config import TreeSettings
from ha_sync.core.representation import EVERYTHING, Holding, holding_of
from ha_sync.errors import Retryable
from ha_sync.files.confine import Root
from ha_sync.files.mounts import LOST, not_mounted

RACY_NS = 20_000_000
"""A file that changed less than this before it was read may change again without a new ctime (a clock tick)."""


class Terms:
    """See the module."""

    def __init__(self, settings: TreeSettings, catalogue: TreeCatalogue) -> None:
        self._settings = settings
        self._catalogue = catalogue
        self.is_storage = settings.storage is not None
        self.admitted = not self.is_storage or catalogue.get(ADMITTED) == "1"
        self.known = any(catalogue.get(key) is not None for key in (IDENTITY, ROOT))  # it was there before
        self.withheld = ""  # why nothing may be sent although it was asked for: it is shared
        self.held = False  # a sync is paused
        self.away = ""  # why it is not there
        self.holding: Holding = EVERYTHING
        self._told_away = ""
        self._been = False

    # ---- whether anything may go

    @property
    def refusal(self) -> str:
        """Why a Standby is not served; empty where it is."""
        if self.withheld or self.away:
            return self.withheld or self.away
        return "" if self.admitted else f"not synchronised yet: ha-sync storage sync {self._settings.name}"

    @property
    def hold(self) -> bool:
        """Whether nothing may be sent now."""
        return self.held or bool(self.refusal)

    def admit(self, admitted: bool) -> None:
        """An operator asked for the first sync, or ended it."""
        assert self.is_storage, self._settings.name
        self._catalogue.put(ADMITTED, "1" if admitted else "0")
        self.admitted = admitted

    # ---- whether it is there

    def guard_of(self, root: Root) -> RootGuard:
        """What says whether an open root is the one that it was."""
        percent = self._settings.mass_delete_percent
        return RootGuard(root, self._catalogue, percent=percent, removable=self.is_storage)

    def gone(self) -> bool:
        """Whether nothing is mounted at the path of a storage."""
        return self.is_storage and bool(reason := not_mounted(self._settings.path)) and self.went(reason)

    def went(self, reason: str) -> bool:
        """It cannot be believed now; False for what is no storage."""
        self.away = reason if self.is_storage else ""
        return self.is_storage

    def entered(self, kind: str) -> list[Event]:
        """It is there, on this kind of filesystem."""
        was, self.away, self._told_away = self.away, "", ""
        self.known = True
        if self.is_storage:
            self.holding = holding_of(kind)
        return [("info", "the storage is back", {"path": self._settings.path})] if was and self._been else []

    def news(self) -> list[Event]:
        """That it is away, and why: once."""
        if not self.away or self.away == self._told_away:
            return []
        self._told_away, self._been = self.away, True
        hint = "nothing is deleted on the standby; goes on when it is back. `ha-sync storage list`"
        return [("error", "the storage is not there", {"reason": self.away, "path": self._settings.path, "hint": hint})]

    def must_not_vanish(self, error: Exception) -> None:
        """What cannot be looked at on a storage is not gone. Raises Retryable."""
        if self.is_storage and isinstance(error, OSError) and error.errno in LOST:
            raise Retryable("cannot look at", subject=self._settings.path, reason=error.strerror or "") from error

    @property
    def racy_ns(self) -> int:
        """How old a change must be to be known by its times."""
        return max(RACY_NS, 2 * self.holding.time_ns if not self.holding.inodes else 0)
