"""Entries of the backup log and the storage log for a person."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.output import GAP, plain, table
from ha_sync.cli.times import moment
from ha_sync.logs.runs import Kind, Result

RESULTS: Final = tuple(result.value for result in Result)
KINDS: Final = tuple(kind.value for kind in Kind)
NOTHING: Final = "-"

_HEADINGS: Final = (
    "BEGIN",
    "KIND",
    "TRIGGER",
    "RESULT",
    "SECONDS",
    "OBJECTS",
    "DIFFER",
    "REPAIRED",
    "READ",
    "SENT",
    "RUN",
)
# Fixed widths: with --follow nobody knows what is to come.
_WIDTHS: Final = (29, 12, 8, 11, 8, 9, 7, 8, 9, 9, 0)
_NUMBERS: Final = frozenset({4, 5, 6, 7, 8, 9})


def heading() -> str:
    """Above the entries."""
    return _row(_HEADINGS)


def lines_of(record: pb.RunRecord) -> list[str]:
    """The entry, and below it what not every run has."""
    row = (
        moment(record.begin_unix_s),
        record.kind,
        record.trigger,
        record.result,
        f"{record.took_s:.2f}" if record.HasField("took_s") else NOTHING,
        str(record.objects),
        str(record.differing),
        str(record.repaired),
        size(record.bytes_read),
        size(record.bytes_sent),
        record.id,
    )
    return [_row(row), *(f"    {name}: {plain(text)}" for name, text in _below(record))]


def finding_lines(findings: Iterable[pb.FindingRecord]) -> list[str]:
    """What a run found, as a table; nothing where it found nothing."""
    rows = [
        (
            plain(item.dataset),
            item.fault,
            item.side,
            "yes" if item.repaired else "no",
            moment(item.equal_until_unix_s) if item.HasField("equal_until_unix_s") else NOTHING,
            plain(item.subject) + (f" ({plain(item.detail)})" if item.detail else ""),
        )
        for item in findings
    ]
    return table(("DATASET", "FAULT", "SIDE", "REPAIRED", "EQUAL UNTIL", "SUBJECT"), rows) if rows else []


def size(count: int) -> str:
    """Bytes, short: ``512 B``, ``1.5 MiB``."""
    number, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if number < 1024:
            break
        number, unit = number / 1024, larger
    return f"{count} B" if unit == "B" else f"{number:.1f} {unit}"


def _below(record: pb.RunRecord) -> list[tuple[str, str]]:
    kept = record.findings_kept
    found = [("findings", f"{record.findings}" + ("" if kept == record.findings else f", of these {kept} kept"))]
    told = (
        *((("peer", record.peer),) if record.peer else ()),
        *sorted(record.facts.items()),
        *((("not verified", str(record.unverified)),) if record.unverified else ()),
        *(found if record.findings else ()),
        ("reason", record.reason),
        ("error", record.error),
    )
    return [(plain(name.replace("_", " ")), text) for name, text in told if text]


def _row(cells: tuple[str, ...]) -> str:
    return GAP.join(
        cell.rjust(width) if column in _NUMBERS else cell.ljust(width)
        for column, (cell, width) in enumerate(zip(cells, _WIDTHS, strict=True))
    ).rstrip()
