"""What a run of the sample PBX does: where, how much, how fast. Facts only; every path below ``root`` is named here.

Times in seconds of the sample's own clock, which runs ``rate_scale`` times as fast as the wall's.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Final

CONFIG_DB: Final = "config.db"
CDR_DB: Final = "master.db"
CEL_DB: Final = "cel_master.db"
ASTDB: Final = "astdb.sqlite3"
CSV_DIR: Final = "cdr-csv"
LOG_DIR: Final = "log"
MONITOR_DIR: Final = "monitor"
VOICEMAIL_DIR: Final = "voicemail"
ETC_DIR: Final = "etc"
OUTGOING_DIR: Final = "outgoing"
OUTGOING_DONE_DIR: Final = "outgoing_done"
CALL_FILES_DIR: Final = "call-files"  # written here, then renamed into OUTGOING_DIR

PARTS: Final = (
    "config",
    "cdr",
    "cel",
    "astdb",
    "recordings",
    "voicemail",
    "config-files",
    "spool",
    "log",
)
"""What can be switched off one by one. ``cdr`` brings the CSV files with it."""

CALLS_MAX: Final = 1000
BOXES_MAX: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleSettings:
    """One run. The defaults give the busy rates that PBX.md measured: 40 calls at once with CEL on."""

    root: str
    ledger: str  # outside of root's replicated directories
    seed: int = 1
    run: int = 0  # grows with each start over the same files, so that unique ids do not repeat
    calls: int = 40  # at once
    seconds: float | None = None  # of wall time; None: until told to stop
    rate_scale: float = 1.0
    config_wal: bool = True  # config.db in WAL mode; False: rollback journal
    boxes: int = 12  # mailboxes
    parts: tuple[str, ...] = field(default=PARTS)

    def __post_init__(self) -> None:
        faults = [
            *self._out_of_range("calls", self.calls, 1, CALLS_MAX),
            *self._out_of_range("boxes", self.boxes, 1, BOXES_MAX),
            *self._out_of_range("rate_scale", self.rate_scale, 0.01, 100.0),
            *(f"parts: {part!r} is none of {', '.join(PARTS)}" for part in self.parts if part not in PARTS),
        ]
        if self.seconds is not None and self.seconds <= 0:
            faults.append(f"seconds: {self.seconds} is not above 0")
        if faults:
            raise ValueError("; ".join(faults))

    @staticmethod
    def _out_of_range(name: str, value: float, low: float, high: float) -> list[str]:
        return [] if low <= value <= high else [f"{name}: {value} is not between {low} and {high}"]


def start_command(settings: SampleSettings) -> list[str]:
    """The command line that runs the sample with these settings in a process of its own."""
    command = [sys.executable, "-m", "ha_sync.sample", "--root", settings.root, "--ledger", settings.ledger]
    command += ["--seed", str(settings.seed), "--run", str(settings.run), "--calls", str(settings.calls)]
    command += ["--rate-scale", repr(settings.rate_scale), "--boxes", str(settings.boxes)]
    if settings.seconds is not None:
        command += ["--seconds", repr(settings.seconds)]
    command.append("--config-wal" if settings.config_wal else "--no-config-wal")
    command += ["--parts", ",".join(settings.parts)]
    return command
