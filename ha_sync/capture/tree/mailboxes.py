"""Mailboxes: the messages of one belong together, and none is read while a folder of it is locked.

A look under the lock would mix messages (one is being renamed over another). A mailbox that stays locked for longer
than Settle waits is read as it is. Blocking.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from ha_sync.capture.tree.reading import Item
from ha_sync.errors import HaSyncError
from ha_sync.files.confine import Root
from ha_sync.files.rules import LOCK, Rules


@dataclass(slots=True, kw_only=True)
class Relocked:
    """A mailbox found locked when it was to be read: it waits again."""

    mailbox: bytes
    folder: bytes
    paths: dict[bytes, float] = field(default_factory=dict)


class Mailboxes:
    """See the module."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._overdue: set[bytes] = set()  # locked for too long: read as they are

    def is_overdue(self, mailbox: bytes) -> None:
        """This one is read although it is locked, once."""
        self._overdue.add(mailbox)

    def continues(self, items: list[Item], path: bytes) -> bool:
        """Whether the path belongs to the same mailbox as the last item: a unit is never cut."""
        mailbox = self._rules.mailbox_of(path)
        return mailbox is not None and mailbox == self._rules.mailbox_of(items[-1].path)

    def units(self, root: Root, items: list[Item]) -> tuple[list[Item], list[Relocked]]:
        """Gives the messages of one mailbox their number; those of a mailbox that is locked now must wait."""
        if not self._rules.has_units:
            return items, []
        numbers: dict[bytes, int] = {}
        waits: dict[bytes, Relocked] = {}
        kept: list[Item] = []
        for item in items:
            mailbox = self._rules.mailbox_of(item.path)
            if mailbox is not None and mailbox not in numbers:
                numbers[mailbox] = len(numbers) + 1
                folder = None if mailbox in self._overdue else _locked_folder(root, mailbox)
                if folder is not None:
                    waits[mailbox] = Relocked(mailbox=mailbox, folder=folder)
            if mailbox in waits:
                waits[mailbox].paths[item.path] = item.noticed
                continue
            item.unit = numbers[mailbox] if mailbox is not None else 0
            kept.append(item)
        self._overdue.difference_update(numbers)
        return kept, list(waits.values())


def _locked_folder(root: Root, mailbox: bytes) -> bytes | None:
    try:
        names = os.listdir(root.directory(mailbox))
    except (OSError, HaSyncError):
        return None
    for name in names:
        folder = (mailbox + b"/" if mailbox else b"") + os.fsencode(name)
        try:
            root.lstat(folder + b"/" + LOCK)
        except (OSError, HaSyncError):
            continue
        return folder
    return None
