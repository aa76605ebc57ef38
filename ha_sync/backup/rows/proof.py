"""That both copies of a database were equal once: the fingerprints of both files, taken before and after a comparison.

While both files still bear them, every byte is as it was then, so the copies are equal without looking at the rows; a
bit that flipped in either file since makes another fingerprint (docs/adr/0014). A small JSON file that may be lost at
any time: then the rows are compared. Blocking.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass

from ha_sync.database.durable import write_durably

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """Hexadecimal fingerprints, and what was compared."""

    active: str
    standby: str
    settings: str  # what is node-local decides what was compared
    objects: int

    def store(self, path: str) -> None:
        """Replaces the one before."""
        write_durably(path, json.dumps([FORMAT, asdict(self)]).encode(), durable=False)


def read_proof(path: str) -> Proof | None:
    """None where there is none that can be read."""
    try:
        with open(path, "rb") as file:
            number, values = json.loads(file.read())
        return Proof(**values) if number == FORMAT else None
    except (OSError, ValueError, TypeError):
        return None


def forget_proof(path: str) -> None:
    """There is none any more."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
