"""What the event loop of a tree's source learns from a piece of work of its thread. Times are monotonic seconds."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ha_sync.capture.tree.journal import Notice
    from ha_sync.capture.tree.mailboxes import Relocked
    from ha_sync.capture.tree.reading import Met

Event = tuple[str, str, dict[str, object]]
"""Severity, what happened, and the fields."""

WARNED_MAX = 1000
RESUME_HINT = "look at the root; then: ha-sync resume DATASET, with --accept-deletes if the files are meant to be gone"


@dataclass(slots=True, kw_only=True)
class Told:
    """What the event loop learns from a piece of work."""

    notices: list[Notice] = field(default_factory=list)
    again: list[bytes] = field(default_factory=list)
    costs: list[tuple[bytes, float]] = field(default_factory=list)
    logs: list[bytes] = field(default_factory=list)  # open files that are no recordings in progress
    relocked: list[Relocked] = field(default_factory=list)
    linked: bool = False  # a file with several names changed: its other names must be looked for
    reports: list[Event] = field(default_factory=list)


class Warnings:
    """What was met and an operator should know: once for each path, at most WARNED_MAX."""

    def __init__(self) -> None:
        self._warned: set[bytes] = set()

    def of(self, met: Met) -> list[Event]:
        """Of what reading has met."""
        events: list[Event] = []
        for path, reason in met.errors:
            if self._is_new(path):
                fields: dict[str, object] = {"path": os.fsdecode(path), "reason": reason}
                events.append(("warning", "an object cannot be read", fields))
        for path in met.databases:
            if self._is_new(path):
                hint = 'declare it as a dataset of its own: kind = "sqlite"'
                events.append(("warning", "a SQLite database inside a tree", {"path": os.fsdecode(path), "hint": hint}))
        return events

    def _is_new(self, path: bytes) -> bool:
        new = path not in self._warned and len(self._warned) < WARNED_MAX
        if new:
            self._warned.add(path)
        return new
