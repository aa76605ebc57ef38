"""What is told of packages: progress on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Final

import click

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.output import plain, table

TELL_EVERY_S: Final = 5.0
MIB: Final = 1024 * 1024
_PHASES: Final = {
    "verifying": "checking and unpacking beside the data",
    "stopping": "stopping the services",
    "exchanging": "exchanging the data",
    "raising": "raising the epoch",
    "exporting": "exporting",
}


class Bar:
    """On standard error: one line that changes on a terminal, one line now and then in a pipe."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._phase = ""
        self._told = float("-inf")
        self._open = False

    def show(self, phase: str, done_bytes: int, expected_bytes: int) -> None:
        """The newest state."""
        if self._quiet or phase not in _PHASES:
            return
        now = time.monotonic()
        text = _PHASES[phase]
        if phase in {"verifying", "exporting"}:
            text += f": {done_bytes / MIB:.1f} MiB"
            if expected_bytes:
                text += f" of {'at most ' if phase == 'exporting' else ''}{expected_bytes / MIB:.1f} MiB"
        if self._terminal:
            click.echo(f"\r\x1b[K{text}", err=True, nl=False)
            self._open = True
        elif phase != self._phase or now - self._told >= TELL_EVERY_S:
            self._told = now
            click.echo(text, err=True)
        self._phase = phase

    def end(self) -> None:
        """Nothing more comes."""
        if self._open:
            click.echo("\r\x1b[K", err=True, nl=False)
            self._open = False


def exported_lines(exported: pb.PackageExported, file: str) -> Iterator[str]:
    """After an export."""
    size = f"{exported.content_bytes / MIB:.1f} MiB in {exported.package_bytes / MIB:.1f} MiB"
    yield f"exported {exported.entries} objects, {size}, to {file}"
    yield f"blake2b {exported.blake2b}"
    for name in exported.absent:
        yield f"this node has nothing of dataset {name}"
    for path in exported.moving:
        yield f"did not hold still, packed as it was got: {plain(path)}"
    if exported.moving_count > len(exported.moving):
        yield f"... and {exported.moving_count - len(exported.moving)} more did not hold still"
    for one in exported.faults:
        yield f"{one.fault}: {one.dataset} {plain(one.subject)}: {plain(one.detail)}"


def told_lines(told: pb.PackageTold, file: str) -> Iterator[str]:
    """After a check."""
    yield f"{file} is whole: {told.entries} objects, {told.content_bytes / MIB:.1f} MiB, format {told.format}"
    origin = plain(told.node) or plain(told.node_id) or "a node without a name"
    yield f"made on {plain(told.created)} by {origin} as {told.role} in epoch {told.epoch}, version {told.made_by}"
    if told.model or told.firmware:
        yield f"model {plain(told.model) or 'unknown'}, firmware {plain(told.firmware) or 'unknown'}"
    if told.cluster_id:
        yield f"cluster {plain(told.cluster_id)}"
    rows = [
        (
            plain(one.name),
            one.kind,
            str(one.user_version) if one.HasField("user_version") else "",
            "" if one.present else "nothing",
            "; ".join(map(plain, one.notes)),
        )
        for one in told.datasets
    ]
    yield from table(("DATASET", "KIND", "SCHEMA", "CONTENT", "NOTES"), rows)
    for note in told.notes:
        yield f"note: {plain(note)}"


def restored_lines(restored: pb.PackageRestored) -> Iterator[str]:
    """After a restore."""
    size = f"{restored.entries} objects, {restored.content_bytes / MIB:.1f} MiB"
    yield f"restored {', '.join(restored.datasets)}: {size}; epoch {restored.epoch} is served now"
    if restored.left_out:
        yield f"{restored.left_out} objects of the package are this node's own and stayed as they were"
    for what in restored.not_applied:
        yield f"not applied: {what}"
    for note in restored.notes:
        yield f"note: {plain(note)}"
    yield "the Standby follows by a full sync: see `ha-sync status`"
