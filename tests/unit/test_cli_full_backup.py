"""What ``ha-sync full-backup`` and ``status`` say of a full backup."""

from __future__ import annotations

import pytest

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.full_backup import BAR, bar, line_of, outcome, shown

pytestmark = pytest.mark.req("R23", "R30")


def progress(**fields: object) -> pb.FullBackupProgress:
    plain: dict[str, object] = {
        "state": "backing up",
        "run": "20260301T020000-3fa4c1",
        "phase": "comparing",
        "dataset": "recordings",
        "percent": 50.0,
        "objects": 1200,
        "bytes": 3 * 1024 * 1024,
        "bytes_per_s": 1.5 * 1024 * 1024,
        "left_s": 90.0,
    }
    return pb.FullBackupProgress(**{**plain, **fields})  # type: ignore[arg-type]


def test_a_line_says_how_far_it_is_how_fast_and_how_long() -> None:
    assert line_of(progress()) == " 50.0 %  comparing  recordings  1200 objects  1.5 MiB/s  1m 30s left"
    found = progress(differing=3, repaired=2, left_s=None, bytes_per_s=0.0)
    assert line_of(found) == " 50.0 %  comparing  recordings  1200 objects  3 differing, 2 repaired"


def test_the_bar_is_as_full_as_the_run() -> None:
    half = BAR // 2
    assert bar(progress()).startswith(f"[{'#' * half}{' ' * half}] ")
    assert bar(progress(percent=0.0)).startswith(f"[{' ' * BAR}] ")
    assert bar(progress(percent=100.0)).startswith(f"[{'#' * BAR}] ")


def test_the_outcome_names_the_result_and_where_to_look() -> None:
    clean = progress(state="idle", result="done", elapsed_s=61.0)
    (line,) = outcome(clean)
    assert line.startswith("full backup 20260301T020000-3fa4c1: done in 1m 1s; 1200 objects, 3 MiB compared, ")
    assert line.endswith("0 differed, 0 repaired, 0 not verified")
    spoilt = progress(state="idle", result="partial", differing=2, repaired=1, in_motion=4, reason="1 differ still")
    lines = outcome(spoilt)
    assert lines[0].endswith(", 2 differed, 1 repaired, 0 not verified, 4 in motion")
    assert lines[1:] == ["  1 differ still", "  see: ha-sync logs backup --run 20260301T020000-3fa4c1"]


def test_the_status_has_one_line() -> None:
    assert shown(progress())[0].startswith("backing up:  50.0 %")
    assert shown(progress(state="idle", result="")) == ["idle"]
    assert shown(progress(state="idle", result="failed", reason="no standby")) == [
        "idle; the last one: failed: no standby"
    ]
    assert shown(pb.FullBackupProgress()) == []
    asked = pb.FullBackupProgress(state="backing up", phase="answering the active", dataset="recordings")
    assert shown(asked) == ["backing up: answering the active: recordings"]
