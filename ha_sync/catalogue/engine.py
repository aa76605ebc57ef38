"""The node's epochs and role, stored durably before anybody acts on them (DESIGN 3).

``promised`` is the highest epoch seen or reserved, ``served`` the last one in which this node was Active, or about to
be. Both only grow. One SQLite file, one row, one thread at a time. Blocking.
"""

from __future__ import annotations

import os
import sqlite3
from dataclasses import dataclass, replace

import sqlite_utils

from ha_sync.core.dataset import Role
from ha_sync.core.position import Epoch
from ha_sync.errors import Fenced, OperatorNeeded


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the node knew when it stopped."""

    role: Role | None  # None: this node never ran
    promised: Epoch
    served: Epoch


FRESH = Stored(role=None, promised=Epoch(0), served=Epoch(0))


def admit(stored: Stored, *, role: Role, epoch: Epoch) -> None:
    """Whether this node may take ``role`` in ``epoch``; raises Fenced where that would go back. Pure.

    An Active may take an epoch that is higher than any seen, or go on in the one that it served itself; a Standby any
    that is not lower than the highest seen.
    """
    resumes = role is Role.ACTIVE and epoch == stored.served == stored.promised
    lowest = stored.promised + 1 if role is Role.ACTIVE else stored.promised
    if epoch < lowest and not resumes:
        raise Fenced(
            f"cannot become {role.value} in",
            subject=f"epoch {epoch}",
            reason=f"epoch {stored.promised} has been seen"
            + (f", {stored.served} was served here" if stored.served else ""),
            hint=f"use --epoch {lowest} or higher",
        )


class EngineState:
    """The file. Raises OperatorNeeded where it cannot be read: a lost epoch must never be guessed."""

    def __init__(self, path: str) -> None:
        self._path = path
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        try:
            connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA synchronous=EXTRA")
            self._table = sqlite_utils.Database(connection).table("engine", pk="id")
            self._connection = connection
            self._stored = self._read()
        except (sqlite3.DatabaseError, ValueError) as error:
            raise OperatorNeeded(
                "cannot read this node's epoch from",
                subject=path,
                reason=str(error),
                hint="move the file away only if the other node is Active; then start here with --role standby",
            ) from error

    def _read(self) -> Stored:
        if not self._table.exists():
            return FRESH
        row = self._table.get(1)
        return Stored(
            role=Role(row["role"]) if row["role"] else None,
            promised=Epoch(row["promised"]),
            served=Epoch(row["served"]),
        )

    @property
    def stored(self) -> Stored:
        """What is durable."""
        return self._stored

    def promise(self, epoch: Epoch) -> None:
        """Notes an epoch that was seen or reserved; durable when it returns."""
        if epoch > self._stored.promised:
            self._store(replace(self._stored, promised=epoch))

    def reserve(self, epoch: Epoch) -> None:
        """Notes an epoch that is about to be served here: a promotion that a crash cuts short is done again in it."""
        if epoch > self._stored.served:
            self._store(replace(self._stored, promised=max(epoch, self._stored.promised), served=epoch))

    def take(self, role: Role, epoch: Epoch) -> None:
        """Notes the role; as Active also that this epoch is served here. Durable when it returns."""
        served = max(epoch, self._stored.served) if role is Role.ACTIVE else self._stored.served
        self._store(Stored(role=role, promised=max(epoch, self._stored.promised), served=Epoch(served)))

    def leave(self) -> None:
        """This node has no role any more: its pair was dissolved. The epochs stay: they are never used twice."""
        self._store(replace(self._stored, role=None))

    def _store(self, stored: Stored) -> None:
        assert stored.promised >= self._stored.promised, (stored, self._stored)
        assert stored.served >= self._stored.served, (stored, self._stored)
        self._table.upsert(
            {
                "id": 1,
                "role": stored.role.value if stored.role else "",
                "promised": stored.promised,
                "served": stored.served,
            },
            pk="id",
        )
        self._stored = stored

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()
