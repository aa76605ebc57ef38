"""What survives a restart of the engine: the run that goes on, where it is in each dataset, when the last one began.

One small JSON file, replaced whole and durably. One that cannot be read is begun anew: a run then starts from its
beginning, which costs time and nothing else. Wall-clock times in seconds since 1970. Blocking.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ha_sync.core.examine import Depth, Examined
from ha_sync.core.position import Epoch
from ha_sync.database.durable import write_durably

NOTHING = Examined(objects=0, content_bytes=0, differing=0, repaired=0, unverified=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetState:
    """Where a run is in one dataset."""

    cursor: str = ""  # hexadecimal
    begun_unix_s: float = 0.0  # of this dataset's examination
    done: Examined | None = None  # complete
    so_far: Examined = NOTHING  # of earlier parts of it


@dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """A run that was begun and is not over."""

    depth: Depth
    trigger: str
    epoch: Epoch
    begun_unix_s: float
    datasets: dict[str, DatasetState] = field(default_factory=dict)
    troubled: tuple[str, ...] = ()  # datasets that could not be examined to their end


@dataclass(frozen=True, slots=True, kw_only=True)
class Remembered:
    """All of the file."""

    last_begun_unix_s: float = 0.0  # on whichever node; 0: never
    run: RunState | None = None


class Memory:
    """The file."""

    def __init__(self, path: str) -> None:
        self._path = path
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        self.now = _read(path)

    def store(self, remembered: Remembered) -> None:
        """Durable when it returns. Raises OSError where it is not; it counts all the same while this engine runs."""
        self.now = remembered
        write_durably(self._path, json.dumps(_plain(remembered)).encode())

    def begun(self, unix_s: float) -> None:
        """A full backup began at that time, here or on the other node."""
        if unix_s > self.now.last_begun_unix_s:
            self.store(replace(self.now, last_begun_unix_s=unix_s))


def plus(one: Examined, other: Examined) -> Examined:
    """Both together."""
    return Examined(**{name: getattr(one, name) + getattr(other, name) for name in Examined.__slots__})


def _plain(remembered: Remembered) -> dict[str, Any]:
    plain = asdict(remembered)
    if remembered.run is not None:
        plain["run"]["depth"] = remembered.run.depth.value
    return plain


def _read(path: str) -> Remembered:
    try:
        with open(path, "rb") as file:
            plain = json.loads(file.read())
        return Remembered(last_begun_unix_s=float(plain["last_begun_unix_s"]), run=_run(plain["run"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Remembered()


def _run(plain: dict[str, Any] | None) -> RunState | None:
    if plain is None:
        return None
    return RunState(
        depth=Depth(plain["depth"]),
        trigger=str(plain["trigger"]),
        epoch=Epoch(int(plain["epoch"])),
        begun_unix_s=float(plain["begun_unix_s"]),
        datasets={str(name): _dataset(value) for name, value in plain["datasets"].items()},
        troubled=tuple(str(name) for name in plain["troubled"]),
    )


def _dataset(plain: dict[str, Any]) -> DatasetState:
    return DatasetState(
        cursor=bytes.fromhex(plain["cursor"]).hex(),
        begun_unix_s=float(plain["begun_unix_s"]),
        done=None if plain["done"] is None else Examined(**plain["done"]),
        so_far=Examined(**plain["so_far"]),
    )
