"""Which objects go in the next group. Sizes in bytes. Blocking; belongs to the dataset's thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

from ha_sync.capture.tree.journal import Journal
from ha_sync.capture.tree.mailboxes import Mailboxes
from ha_sync.capture.tree.parts import Parts
from ha_sync.capture.tree.reading import Item
from ha_sync.core.position import Sequence

GROUP_CHANGES_MAX = 2000
GROUP_BYTES_MAX = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """``status_of`` answers what stands at a path; None: nothing."""

    journal: Journal
    parts: Parts
    mailboxes: Mailboxes
    status_of: Callable[[bytes], os.stat_result | None]

    def live(self) -> list[Item]:
        """The oldest live changes, which are live no more. Large files are left to the bulk: they would hold it up."""
        journal = self.journal
        items: list[Item] = []
        large: list[bytes] = []
        size = 0
        for path, (sequence, noticed) in journal.live.items():
            # Without an item the bulk would go next, above the positions of what is still live.
            if items and self._is_enough(items, size, path):
                break
            status = self.status_of(path)
            # A large file was read for its hash: that counts too, or many of them would hold up what can go now.
            size += status.st_size if status is not None else 0
            if self.parts.wants(path, status):
                large.append(path)
            else:
                items.append(Item(path=path, mark=sequence, noticed=noticed, status=status))
        journal.defer(large)
        for item in items:
            del journal.live[item.path]
        return items

    def bulk(self, taken: list[tuple[bytes, Sequence]]) -> list[Item]:
        """The first of what was taken of the bulk; the rest is put back. Empty: a part of the first goes next."""
        items: list[Item] = []
        size = 0
        for place, (path, mark) in enumerate(taken):
            status = self.status_of(path)
            if self.parts.wants(path, status) or self._is_enough(items, size, path):
                self.journal.put_back(items[-1].mark if items else Sequence(mark - 1), len(taken) - place)
                break
            items.append(Item(path=path, mark=mark, status=status))
            size += status.st_size if status is not None else 0
        return items

    def _is_enough(self, items: list[Item], size: int, path: bytes) -> bool:
        """Mailboxes are not torn apart."""
        full = len(items) >= GROUP_CHANGES_MAX or size >= GROUP_BYTES_MAX
        return full and not self.mailboxes.continues(items, path)
