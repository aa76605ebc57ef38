"""What a pages sink knows over a crash: what it published, and what it was about to publish.

Invariant: an intent is durable before anything at the dataset's path changes, and its temporary file is whole and
durable before the intent is. So after a crash either the intent is found done (the file at the path is the temporary's
inode) or it can be done now, or nothing has changed yet. Blocking.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from ha_sync.core.position import NOWHERE, Epoch, Incarnation, Position, Sequence
from ha_sync.database.durable import write_durably


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A content at a position. ``mode`` is the Active's, which promotion gives back; the copy itself is read-only."""

    position: Position
    size: int
    block_size: int
    whole: bytes
    uid: int
    gid: int
    mode: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """The temporary file that takes the path next."""

    name: str
    inode: int
    content: Published


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """``published`` is None while the file at the path is the node's own (never synced, or promoted since)."""

    published: Published | None = None
    intent: Intent | None = None
    own_kept: bool = False  # node-local rows of the node's own file are in safe keeping
    position: Position = NOWHERE

    def store(self, path: str) -> None:
        """Durably."""
        state = {
            "version": 1,
            "published": _encoded(self.published),
            "intent": None
            if self.intent is None
            else {
                "name": self.intent.name,
                "inode": self.intent.inode,
                "content": _encoded(self.intent.content),
            },
            "own_kept": self.own_kept,
            "position": _position_out(self.position),
        }
        write_durably(path, json.dumps(state).encode())

    @classmethod
    def load(cls, path: str) -> Ledger:
        """Empty where there is none or it is damaged: then a compare mends everything."""
        try:
            with open(path, "rb") as file:
                state = json.loads(file.read())
            intent = state["intent"]
            content = None if intent is None else _decoded(intent["content"])
            return cls(
                published=_decoded(state["published"]),
                intent=None if content is None else Intent(name=intent["name"], inode=intent["inode"], content=content),
                own_kept=bool(state["own_kept"]),
                position=_position_in(state["position"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return cls()


def _encoded(content: Published | None) -> dict[str, object] | None:
    if content is None:
        return None
    return {
        "position": _position_out(content.position),
        "size": content.size,
        "block_size": content.block_size,
        "whole": content.whole.hex(),
        "uid": content.uid,
        "gid": content.gid,
        "mode": content.mode,
    }


def _decoded(kept: dict[str, object] | None) -> Published | None:
    if kept is None:
        return None
    numbers = {key: int(str(kept[key])) for key in ("size", "block_size", "uid", "gid", "mode")}
    return Published(position=_position_in(kept["position"]), whole=bytes.fromhex(str(kept["whole"])), **numbers)


def _position_out(position: Position) -> list[object]:
    return [position.epoch, position.incarnation.hex(), position.sequence]


def _position_in(kept: object) -> Position:
    if not isinstance(kept, list):
        raise TypeError(kept)
    epoch, incarnation, sequence = kept
    return Position(
        epoch=Epoch(int(epoch)),
        incarnation=Incarnation(bytes.fromhex(str(incarnation))),
        sequence=Sequence(int(sequence)),
    )
