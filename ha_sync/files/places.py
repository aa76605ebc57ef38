"""Where things stand below the root of a Standby's tree: hidden directories of our own, held files, protected files.

A *path* is logical, as the Active names it; its *place* is where the object stands here. They differ only for held
files (call files), which stand in HELD until a promotion. Nothing of our own lies beside the PBX's files, so a
program that lists a directory never sees a half-written file, and a crash leaves nothing that would have to be
searched for. Pure.
"""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass

from ha_sync.config import TreeSettings

HIDDEN = b".ha-"
"""Names that begin so are ours; the Active never sends one."""

STAGE = b".ha-stage"  # received and not yet published; removed and not yet purged
PARTIAL = b".ha-partial"  # recordings that still grow
TRASH = b".ha-trash"  # deleted and replaced content
HELD = b".ha-held"  # call files, under their own paths
MARKER = b".ha-dataset"  # says that this is the dataset's root and not an empty mount point

Pattern = tuple[str, ...]


def is_ours(path: bytes) -> bool:
    """Whether a path lies in one of our own hidden places."""
    return path.startswith(HIDDEN) or b"/" + HIDDEN in path


def is_lock(name: bytes) -> bool:
    """Whether a name in a mailbox is a lock of Asterisk or its directory of unfinished messages."""
    return name in (b"lock", b"tmp") or name.startswith(b".lock")


def join(directory: bytes, name: bytes) -> bytes:
    """Of a relative directory, which may be the root."""
    return directory + b"/" + name if directory else name


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What of the tree is replicated, and where it stands."""

    node_patterns: tuple[Pattern, ...]
    held_patterns: tuple[Pattern, ...]
    mailboxes: bool = False  # locks and ``tmp`` are left out wherever they stand

    @classmethod
    def of(cls, settings: TreeSettings) -> Scope:
        """From the dataset's settings."""
        return cls(
            node_patterns=_patterns(settings.exclude + settings.node_local),
            held_patterns=_patterns(settings.hold),
            mailboxes=settings.mailboxes,
        )

    def is_node_own(self, path: bytes) -> bool:
        """The node's own (exclude, node_local): never touched, never deleted, not even with the directory above it."""
        return bool(self.node_patterns) and _matches(path, self.node_patterns)

    def is_left_out(self, path: bytes) -> bool:
        """Not part of the replicated tree: the node's own files, ours, and a mailbox's locks."""
        if is_ours(path) or self.is_node_own(path):
            return True
        return self.mailboxes and any(is_lock(part) for part in path.split(b"/"))

    def is_held(self, path: bytes) -> bool:
        """Kept aside until a promotion."""
        return bool(self.held_patterns) and _matches(path, self.held_patterns)

    def place(self, path: bytes) -> bytes:
        """Where the object of this path stands."""
        if self.held_patterns and _matches(path, self.held_patterns):
            return HELD + b"/" + path
        return path


def _patterns(globs: tuple[str, ...]) -> tuple[Pattern, ...]:
    return tuple(tuple(glob.strip("/").split("/")) for glob in globs if glob.strip("/"))


def _matches(path: bytes, patterns: tuple[Pattern, ...]) -> bool:
    """Component by component; what lies below a match matches too. The root itself matches nothing."""
    if not path:
        return False
    parts = os.fsdecode(path).split("/")
    return any(
        len(pattern) <= len(parts)
        and all(fnmatch.fnmatchcase(part, glob) for part, glob in zip(parts, pattern, strict=False))
        for pattern in patterns
    )
