"""``ha-sync package``: everything of this node in one file, and back.

The engine packs and restores; the file of an export is written here, with the rights of whoever asks, beside its name
and renamed at the end, so that there is never half a package under it.
"""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Any, Final

import click

from ha_proto.sync.v1 import control_pb2 as pb
from ha_sync.cli.client import control
from ha_sync.cli.options import json_option, socket_option, socket_path
from ha_sync.cli.output import message_to_dict, plain, print_json
from ha_sync.cli.package_lines import Bar, exported_lines, restored_lines, told_lines
from ha_sync.errors import HaSyncError, OperatorNeeded, Refused, Retryable

EXIT_PARTIAL: Final = 4
STDOUT: Final = "-"
MARGIN_BYTES: Final = 16 * 1024 * 1024

dataset_option = click.option(
    "--dataset", "datasets", multiple=True, metavar="NAME", help="Only this one; may be given again."
)
foreign_option = click.option(
    "--foreign", is_flag=True, help="Also a package of another cluster or model: a deliberate migration."
)


@click.group()
def package() -> None:
    """Export everything of this node to one file; check it; restore it on the Active."""


@package.command()
@socket_option
@json_option
@click.option("--from-standby", is_flag=True, help="Also where this node is the Standby, if its data is consistent.")
@click.argument("file", type=click.Path(allow_dash=True, dir_okay=False))
@click.pass_context
def export(
    ctx: click.Context, *, config: str, socket: str | None, as_json: bool, from_standby: bool, file: str
) -> None:
    """Write everything of this node to FILE, or to standard output (-).

    Databases are copied without disturbing their programs; what is the node's own is left out. Ends with 4 where
    something could not be read: the package is whole, and what is missing is named. With -, what is told goes to
    standard error.
    """
    request = pb.ExportPackageRequest(allow_standby=from_standby)
    to_stdout = file == STDOUT
    bar = Bar(quiet=as_json)
    with control(socket_path(config, socket)) as stub, _target(file) as target:
        exported = _received(stub.ExportPackage(request), target, bar)
    if as_json:
        _json(exported, to_stdout=to_stdout)
    else:
        for line in exported_lines(exported, file):
            click.echo(line, err=to_stdout)
    ctx.exit(EXIT_PARTIAL if exported.faults else 0)


@package.command()
@socket_option
@json_option
@dataset_option
@foreign_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.pass_context
def verify(
    ctx: click.Context,
    *,
    config: str,
    socket: str | None,
    as_json: bool,
    datasets: tuple[str, ...],
    foreign: bool,
    file: str,
) -> None:
    """Read all of FILE, check every hash, and say whether it fits this node.

    Nothing is changed. Ends with 6 where it is damaged, hostile, or would not be restored here.
    """
    request = pb.VerifyPackageRequest(path=os.path.abspath(file), datasets=datasets, foreign=foreign)
    bar = Bar(quiet=as_json)
    with control(socket_path(config, socket)) as stub:
        told = _followed(stub.VerifyPackage(request), bar).package
    if as_json:
        print_json(message_to_dict(told))
        ctx.exit(Refused.exit_code if told.refusals else 0)
    for line in told_lines(told, file):
        click.echo(line)
    if told.refusals:
        raise Refused("it would not be restored here", reason="; ".join(map(plain, told.refusals)))


@package.command()
@socket_option
@json_option
@dataset_option
@foreign_option
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
def restore(
    *, config: str, socket: str | None, as_json: bool, datasets: tuple[str, ...], foreign: bool, file: str
) -> None:
    """Put the content of FILE in the place of this node's data. On the Active only: telephony stops meanwhile.

    Everything is checked before anything is touched; what fails, or is interrupted (Ctrl-C), leaves everything as it
    was. The epoch grows, the services start again, and the Standby follows by a full sync. What is the node's own
    stays.
    """
    request = pb.RestorePackageRequest(path=os.path.abspath(file), datasets=datasets, foreign=foreign)
    bar = Bar(quiet=as_json)
    with control(socket_path(config, socket)) as stub:
        restored = _followed(stub.RestorePackage(request), bar).restored
    if as_json:
        print_json(message_to_dict(restored))
    else:
        for line in restored_lines(restored):
            click.echo(line)


def _followed(call: Any, bar: Bar) -> pb.PackageProgress:
    last = pb.PackageProgress()
    try:
        for last in call:
            bar.show(last.phase, last.done_bytes, last.expected_bytes)
    finally:
        call.cancel()
        bar.end()
    return last


def _received(call: Any, target: _Target, bar: Bar) -> pb.PackageExported:
    expected = done = 0
    try:
        for response in call:
            match response.WhichOneof("part"):
                case "expected":
                    expected = response.expected.content_bytes
                    target.require_room(expected)
                case "data":
                    target.write(response.data)
                    done += len(response.data)
                    bar.show("exporting", done, expected)
                case "exported":
                    target.finish()
                    return pb.PackageExported.FromString(response.exported.SerializeToString())
    finally:
        call.cancel()
        bar.end()
    raise Retryable("the export ended before its end", hint="see `ha-sync logs backup`")


def _json(exported: pb.PackageExported, *, to_stdout: bool) -> None:
    if to_stdout:  # the package is there
        from json import dumps

        click.echo(dumps(message_to_dict(exported)), err=True)
    else:
        print_json(message_to_dict(exported))


class _Target:
    """Where a package goes: a file, or standard output."""

    def __init__(self, out: IO[bytes], folder: str, finish: Callable[[], None]) -> None:
        self._out = out
        self._folder = folder
        self.finish = finish

    def write(self, data: bytes) -> None:
        try:
            self._out.write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise _cannot_write(self._folder or "standard output", error) from error

    def require_room(self, content_bytes: int) -> None:
        """As if nothing could be compressed: recordings hardly can."""
        if not self._folder:
            return
        found = os.statvfs(self._folder)
        free = found.f_bavail * found.f_frsize
        if content_bytes + MARGIN_BYTES > free:
            raise OperatorNeeded(
                "no room for the package in",
                subject=self._folder,
                reason=f"up to {content_bytes + MARGIN_BYTES} bytes are needed, {free} are free",
                hint="make room, or export to standard output (-) and on to another machine",
            )


@contextmanager
def _target(file: str) -> Iterator[_Target]:
    if file == STDOUT:
        if sys.stdout.isatty():
            raise click.UsageError("a package is no text for a terminal: give a file, or a pipe")
        out = sys.stdout.buffer
        yield _Target(out, "", out.flush)
        return
    path = os.path.abspath(file)
    folder, name = os.path.split(path)
    unfinished = os.path.join(folder, f".{name}.part")
    try:
        fd = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _cannot_write(unfinished, error) from error
    finished = False

    def finish() -> None:
        nonlocal finished
        try:
            out.flush()
            os.fsync(fd)
            os.rename(unfinished, path)
            _sync_folder(folder)
        except OSError as error:
            raise _cannot_write(path, error) from error
        finished = True

    with open(fd, "wb") as out:
        _only_one(out, path)
        try:
            yield _Target(out, folder, finish)
        finally:
            if not finished:
                os.unlink(unfinished)


def _only_one(out: IO[bytes], path: str) -> None:
    """What a killed export left is used again; one that is running is not disturbed."""
    try:
        fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Refused("cannot export to", subject=path, reason="another export writes there") from None
    out.truncate()


def _sync_folder(folder: str) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _cannot_write(path: str, error: OSError) -> HaSyncError:
    return OperatorNeeded("cannot write", subject=path, reason=error.strerror or str(error))
