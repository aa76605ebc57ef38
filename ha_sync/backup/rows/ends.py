"""What the full backup of a database asks of its dataset's two ends. Only types."""

from __future__ import annotations

from typing import Protocol


class ActiveEnd(Protocol):
    """The source of rows."""

    @property
    def scratch(self) -> str:
        """Where a copy may be kept for as long as it is read."""

    @property
    def proof(self) -> str:
        """Where it is kept that both copies were equal."""

    async def copied(self, target: str) -> None:
        """Writes a lock-free copy of a rollback-journal database. Raises ``Retryable`` where none can be had now."""

    async def put_back(self) -> tuple[str, ...]:
        """Tables whose triggers were gone and were made again since the last call."""

    async def resend(self, objects: tuple[bytes, ...]) -> None:
        """Sends these (``RowsObjects``) again through the live stream."""


class StandbyEnd(Protocol):
    """The sink of rows. All calls block and come from a thread that is not the event loop's."""

    @property
    def scratch(self) -> str:
        """Where a copy may be kept for as long as it is read."""

    def looked(self) -> None:
        """Looks for guards that are gone and for a schema that was changed, and puts them right."""

    def noticed(self, told: int) -> tuple[tuple[int, str], ...]:
        """What was put right, numbered; what has a number up to ``told`` is forgotten."""

    def copied(self, target: str) -> None:
        """Writes a copy of the database, page by page, between two applies."""

    def renewed(self) -> str:
        """Makes a damaged database anew from what can be read of it; says how. The rest comes by a full sync."""
