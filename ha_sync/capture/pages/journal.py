"""What a pages source remembers over a restart: its incarnation, its sequence, and what the Standby acknowledged.

Sequences are reserved in advance and durably, so that none is used twice after a crash. What the Standby has is
written now and then without a sync: if it is too old after a crash, the answer to the subscriber is *compare*.
Blocking; call from an executor.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass

from ha_sync.capture.pages.content import Known
from ha_sync.core.position import Epoch, Incarnation, Sequence, new_incarnation
from ha_sync.database.durable import write_durably

RESERVED_AT_ONCE = 10_000
_NOTHING_YET = Sequence(0)


@dataclass(slots=True, kw_only=True)
class Journal:
    """The state, and its place on disk."""

    path: str
    epoch: Epoch
    incarnation: Incarnation
    sequence: Sequence = _NOTHING_YET  # the last one given
    reserved: Sequence = _NOTHING_YET  # none above was ever given
    mark: bytes = b""  # tells the content that the last sequence stands for
    acknowledged: Sequence = _NOTHING_YET
    standby: Known | None = None  # what the Standby has at `acknowledged`

    @classmethod
    def open(cls, path: str, epoch: Epoch) -> Journal:
        """Goes on where the last run of this epoch stopped, else begins a new incarnation."""
        try:
            with open(path, "rb") as file:
                journal = _decoded(path, file.read())
        except (OSError, ValueError, KeyError, TypeError):
            journal = None
        if journal is None or journal.epoch != epoch:
            journal = cls(path=path, epoch=epoch, incarnation=new_incarnation())
        journal.store()
        return journal

    def next_sequence(self) -> tuple[Sequence, bool]:
        """The next sequence, and whether it must be reserved (``store``) before it is used."""
        self.sequence = Sequence(self.sequence + 1)
        return self.sequence, self.sequence > self.reserved

    def store(self, *, durable: bool = True) -> None:
        """Writes everything; a durable write reserves sequences too."""
        if durable:
            self.reserved = Sequence(max(self.reserved, self.sequence + RESERVED_AT_ONCE))
        write_durably(self.path, self._encoded(clean=False), durable=durable)

    def close(self) -> None:
        """The orderly end: the next run need not skip the reserved sequences."""
        write_durably(self.path, self._encoded(clean=True))

    def _encoded(self, *, clean: bool) -> bytes:
        standby = None
        if self.standby is not None:
            standby = {
                "size": self.standby.size,
                "block_size": self.standby.block_size,
                "hashes": base64.b85encode(self.standby.hashes).decode(),
                "owner_and_mode": self.standby.owner_and_mode,
            }
        return json.dumps(
            {
                "version": 1,
                "epoch": self.epoch,
                "incarnation": self.incarnation.hex(),
                "sequence": self.sequence if clean else self.reserved,
                "mark": self.mark.hex() if clean else "",
                "acknowledged": self.acknowledged,
                "standby": standby,
            }
        ).encode()


def read_standby(path: str) -> Known | None:
    """What the Standby is known to have, by the file of a source that does not run; None where nothing is."""
    try:
        with open(path, "rb") as file:
            return _decoded(path, file.read()).standby
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _decoded(path: str, data: bytes) -> Journal:
    state = json.loads(data)
    standby = None
    if state["standby"] is not None:
        kept = state["standby"]
        standby = Known(
            size=int(kept["size"]),
            block_size=int(kept["block_size"]),
            hashes=base64.b85decode(kept["hashes"]),
            owner_and_mode=None if kept["owner_and_mode"] is None else tuple(kept["owner_and_mode"]),
        )
    return Journal(
        path=path,
        epoch=Epoch(int(state["epoch"])),
        incarnation=Incarnation(bytes.fromhex(state["incarnation"])),
        sequence=Sequence(int(state["sequence"])),
        reserved=Sequence(int(state["sequence"])),
        mark=bytes.fromhex(state["mark"]),
        acknowledged=Sequence(int(state["acknowledged"])),
        standby=standby,
    )
