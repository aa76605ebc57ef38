"""Source and sink of one database in a process of their own, to be killed: prints every acknowledged sequence."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from ha_sync.apply.pages import PagesSink
from ha_sync.capture.pages import PagesSource
from ha_sync.core.position import Epoch, Position
from tests.support.pages_pipe import Events, Pipe, settings_of


class Telling(Pipe):
    def _on_durable(self, position: object) -> None:
        assert isinstance(position, Position)
        print(position.sequence, flush=True)
        super()._on_durable(position)


async def main(folder: Path) -> None:
    source = PagesSource(settings_of(folder / "a.db"), state_path=folder / "source", report=Events())
    sink = PagesSink(settings_of(folder / "b" / "a.db"), state_path=folder / "sink", report=Events())
    await source.open(Epoch(2))
    await sink.open(Epoch(2), active_at="")
    await Telling(source, sink).run()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
