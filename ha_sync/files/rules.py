"""Which paths of a tree are replicated, and which belong together. Pure.

A pattern is a path from the dataset's root with a glob per component (``fnmatch``, case matters); what it matches goes
with all below it. Names that begin with ``.ha-`` are our own. In a dataset of mailboxes locks and ``tmp`` are left out
wherever they stand. Paths are relative bytes.
"""

from __future__ import annotations

import fnmatch
import os
import re

from ha_sync.files.confine import DEPTH_MAX, PATH_MAX_BYTES

OWN_PREFIX = ".ha-"
LOCK = b".lock"

_LOCKS = r"\.lock.*|lock|tmp"
_MESSAGE = re.compile(rb"msg[0-9]+\.", re.DOTALL)

Names = re.Pattern[str] | None
"""Matches the names that are left out in one directory."""


class Rules:
    """A dataset's patterns."""

    def __init__(self, patterns: tuple[str, ...], *, mailboxes: bool = False) -> None:
        self._patterns = [pattern.strip("/").split("/") for pattern in patterns if pattern.strip("/")]
        self._mailboxes = mailboxes
        self._everywhere = _union([_LOCKS] if mailboxes else [])
        self._depth = max((len(pattern) for pattern in self._patterns), default=0)

    @property
    def has_units(self) -> bool:
        """Whether some paths belong together."""
        return self._mailboxes

    def left_out_in(self, directory: bytes) -> Names:
        """What is left out in a directory that is itself replicated."""
        parts = os.fsdecode(directory).split("/") if directory else []
        if len(parts) >= self._depth:
            return self._everywhere
        found = [
            fnmatch.translate(pattern[-1])
            for pattern in self._patterns
            if len(pattern) == len(parts) + 1
            and all(fnmatch.fnmatchcase(part, glob) for part, glob in zip(parts, pattern, strict=False))
        ]
        return _union(found + ([_LOCKS] if self._mailboxes else [])) if found else self._everywhere

    def skips(self, directory: bytes, name: bytes) -> bool:
        """Whether ``name`` in a directory that is itself replicated is left out."""
        text = os.fsdecode(name)
        names = self.left_out_in(directory)
        return text.startswith(OWN_PREFIX) or (names is not None and names.fullmatch(text) is not None)

    def skips_path(self, path: bytes) -> bool:
        """Whether the path or one of its directories is left out."""
        at = b""
        for part in path.split(b"/") if path else ():
            if self.skips(at, part):
                return True
            at = at + b"/" + part if at else part
        return False

    @staticmethod
    def is_too_long(path: bytes) -> bool:
        """Whether no correct peer would take this path."""
        return len(path) >= PATH_MAX_BYTES or path.count(b"/") >= DEPTH_MAX

    def mailbox_of(self, path: bytes) -> bytes | None:
        """The mailbox that a message file belongs to (the directory above its folder); None for all else."""
        if not self._mailboxes:
            return None
        folder, _, name = path.rpartition(b"/")
        if not folder or not _MESSAGE.match(name):
            return None
        return mailbox_of_folder(folder)


def mailbox_of_folder(folder: bytes) -> bytes:
    """The mailbox that holds a folder."""
    return folder.rpartition(b"/")[0]


def unit_order(path: bytes) -> tuple[bool, bytes]:
    """Sorts a mailbox's files: ``.txt``, the commit mark, comes last."""
    return path.endswith(b".txt"), path


def _union(expressions: list[str]) -> Names:
    return re.compile("|".join(f"(?:{e})" for e in expressions), re.DOTALL) if expressions else None
