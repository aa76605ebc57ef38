"""Capture and apply of one database without tasks, threads or a wire: a thousand plans take seconds.

The writer is a connection of this process through the same SQLite as the engine's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import apsw

from ha_proto.sync.v1 import replication_pb2 as pb
from ha_sync.apply.rows.applier import Applier
from ha_sync.apply.rows.incoming import Incoming
from ha_sync.capture.rows.capture import Batch, Capture
from ha_sync.capture.rows.compare import Inventory
from ha_sync.config import SqliteSettings
from ha_sync.config.settings import NodeLocalRows
from ha_sync.core.dataset import DatasetName, Priority
from ha_sync.core.frame import Body, Frame
from ha_sync.core.position import Epoch
from ha_sync.database.image import Facts, Image
from ha_sync.database.snapshot import lock_free_snapshot

EPOCH = Epoch(2)


class RowsDirect:
    """An Active's database with a writer, and its Standby."""

    def __init__(
        self,
        directory: Path,
        *schema: str,
        node_local: Iterable[tuple[str, str]] = (),
        live_triggers: bool = True,
    ) -> None:
        self.active, self.standby = directory / "active.db", directory / "standby.db"
        self.writer = apsw.Connection(str(self.active))
        for script in ("PRAGMA journal_mode=wal; PRAGMA synchronous=OFF", *schema):
            self.run(script)
        settings = SqliteSettings(
            name=DatasetName("config"),
            path=str(self.active),
            priority=Priority.CONFIG,
            live_triggers=live_triggers,
            node_local_rows=tuple(NodeLocalRows(table=t, where=w) for t, w in node_local),
        )
        self.settings, self.directory = settings, directory
        self.errors: list[str] = []
        self.bytes = 0
        self._open()
        self._incoming = str(directory / "incoming")
        self._facts: Facts | None = None
        self._compare(Inventory(str(directory / "inventory")))

    def _open(self) -> None:
        state = str(self.directory / "source.state")
        self.capture = Capture(self.settings, state_path=state, snapshot=lock_free_snapshot)
        self.capture.open(EPOCH)
        self.applier_settings = replace(self.settings, path=str(self.standby))
        self.applier = Applier(self.applier_settings)
        self.applier.open("192.0.2.1")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compare(self, inventory: Inventory) -> None:
        for chunk in self.applier.inventory():
            inventory.take(chunk)
        inventory.complete()
        batch = self.capture.compare(inventory)
        assert batch is not None
        self._apply(batch)
        inventory.discard()

    def work(self, *statements: str, keep: bool = True) -> None:
        """One transaction; a statement that fails is skipped, as a program would that handles its errors."""
        self.writer.execute("BEGIN IMMEDIATE")
        for statement in statements:
            try:
                self.run(statement)
            except apsw.Error as error:
                self.errors.append(str(error))
        if self.writer.in_transaction:
            self.writer.execute("COMMIT" if keep else "ROLLBACK")

    def run(self, statement: str) -> None:
        """One statement, or several, outside of a transaction."""
        for _ in self.writer.execute(statement):
            pass

    def ship(self) -> None:
        """Applies everything that the Standby has not got."""
        while (batch := self.capture.batch(self.applier.position.sequence, self._facts)) is not None:
            self._apply(batch)

    def lose(self) -> None:
        """A batch is built and lost on its way."""
        batch = self.capture.batch(self.applier.position.sequence, self._facts)
        if batch is not None and batch.image is not None:
            batch.image.discard()

    def crash(self) -> None:
        """Both ends lose what they had in memory; the subscription resumes without the facts that were sent."""
        self.capture.journal.save = lambda: None  # type: ignore[method-assign]
        self.capture.close()
        self.applier.close()
        self._open()
        self._facts = None

    def on_standby(self, sql: str) -> list[tuple[Any, ...]]:
        """Runs a statement of a program there."""
        db = apsw.Connection(str(self.standby))
        try:
            return db.execute(sql).fetchall()
        finally:
            db.close()

    def close(self) -> None:
        """Lets go of both."""
        self.applier.close()
        self.capture.close()
        self.writer.close()

    def _apply(self, batch: Batch) -> None:
        incoming = None
        if batch.image is not None:
            incoming = Incoming(self._incoming)
            for frame in _frames(batch, batch.image):
                incoming.take(frame)
            self.bytes += batch.image.size
            batch.image.discard()
        self.applier.apply(incoming, batch.position)
        if incoming is not None:
            incoming.discard()
        self._facts = batch.facts


def _frames(batch: Batch, image: Image) -> Iterator[Frame]:
    for offset, payload, whole in image.slices():
        body = pb.RowsImage(image_bytes=image.size, offset=offset, image_hash=whole)
        yield Frame(
            position=batch.position,
            kind=Body.ROWS,
            body=body.SerializeToString(),
            payload=payload,
            group_end=bool(whole),
        )
