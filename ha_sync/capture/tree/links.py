"""Remembers which names are hard links: a change through one name of a file is told for that name only.

When a name that was a link changes, goes, or stands for another file, the other names must be looked for: what was
written through it before is seen by a scan alone. A link that came and went between two looks is left to the reconcile.
"""

from __future__ import annotations

import os
import stat

LINKS_MAX = 50_000
"""Names remembered; beyond it the oldest are forgotten, and what is written through them waits for the reconcile."""


class Links:
    """See the module. Blocking; one thread."""

    def __init__(self) -> None:
        self._names: dict[bytes, None] = {}

    def stands(self, path: bytes, status: os.stat_result) -> bool:
        """Whether other names of what stands, or stood, there may have changed with it."""
        was = self.went(path)
        if status.st_nlink > 1 and stat.S_ISREG(status.st_mode):
            self._names[path] = None
            if len(self._names) > LINKS_MAX:
                del self._names[next(iter(self._names))]
            return True
        return was

    def went(self, path: bytes) -> bool:
        """Whether the name was a link."""
        known = path in self._names
        self._names.pop(path, None)
        return known
