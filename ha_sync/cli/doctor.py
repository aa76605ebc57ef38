"""``ha-sync doctor``: one archive with what a supporter needs, and without secrets.

It works whatever is down: a daemon that does not answer, settings that cannot be read, a filesystem that hangs. The
archive appears whole under its name, readable for its owner alone, and is at most 64 MiB before compression.
"""

from __future__ import annotations

import contextlib
import io
import os
import tarfile
import tempfile
import threading
from datetime import UTC, datetime
from typing import Final

import click

from ha_sync.cli.doctor_looks import Look, bounded, looks, reason_of, scene_of, secrets_of
from ha_sync.cli.options import agent_option, json_option
from ha_sync.cli.output import print_json
from ha_sync.cli.redaction import Redactor
from ha_sync.errors import OperatorNeeded

LOOK_WITHIN_S: Final = 20.0
TOTAL_BYTES_MAX: Final = 64 * 1024 * 1024
HA_TOML: Final = "ha.toml"
ABOUT: Final = """\
Made by `ha-sync doctor` at {at}.

Keys, tokens and passwords were taken out: {gone} stands there. Names, addresses and paths of this node are in it, and
what its logs say. It has no call, message or recording, and no row of a database.

{missing}
"""


@click.command()
@agent_option
@json_option
@click.option(
    "--agent-config", default=None, envvar="HA_AGENT_CONFIG", show_envvar=True, metavar="FILE",
    help="The settings of the agent. [default: ha.toml beside --config]",
)  # fmt: skip
@click.option(
    "--output",
    default=None,
    metavar="FILE",
    help="The archive (.tar.gz). [default: ha-sync-doctor-NODE-TIME.tar.gz in this folder]",
)
def doctor(
    *,
    config: str,
    socket: str | None,
    agent_socket: str | None,
    as_json: bool,
    agent_config: str | None,
    output: str | None,
) -> None:
    """Collect what a supporter needs in one archive, without secrets.

    Versions, settings, status, alarms, logs, mounts, addresses, limits, space, who has files open, journal modes, time.
    A daemon that is down is said to be. Run it as root, else much of it cannot be read.
    """
    now = datetime.now(UTC)
    beside = os.path.join(os.path.dirname(os.path.abspath(config)), HA_TOML)
    scene = scene_of(config, agent_config or beside, socket, agent_socket)
    redactor = Redactor(secrets_of(scene))
    name = f"ha-sync-doctor-{scene.node.name or 'node'}-{now:%Y%m%dT%H%M%SZ}".replace("/", "_")
    path = output or f"{name}.tar.gz"
    if os.path.exists(path):
        raise OperatorNeeded("cannot write", subject=path, reason="it is there already", hint="name another file")
    found, missing = collect(looks(scene, redactor), redactor)
    told = "\n".join(("Not there:", *(f"  {what}: {why}" for what, why in missing.items()))) if missing else ""
    about = ABOUT.format(at=f"{now:%Y-%m-%d %H:%M:%S} UTC", gone="[removed]", missing=told)
    size = write(path, name, {"README.txt": about, **found}, now=now)
    if as_json:
        print_json({"file": os.path.abspath(path), "bytes": size, "files": sorted(found), "missing": missing})
        return
    for what, why in missing.items():
        click.echo(f"not there: {what}: {why}")
    click.echo(f"{path}: {size} bytes, {len(found)} files")


def collect(asked: dict[str, Look], redactor: Redactor) -> tuple[dict[str, str], dict[str, str]]:
    """What each look found, and why others found nothing; both without secrets."""
    found: dict[str, str] = {}
    missing: dict[str, str] = {}
    left = TOTAL_BYTES_MAX
    for name, look in asked.items():
        answer = _within(look)
        if isinstance(answer, BaseException):
            missing[name] = redactor.text(reason_of(answer))
            continue
        # Cut after it was redacted: half a secret is not recognised.
        text = bounded(redactor.text(answer).splitlines())
        if len(text) > left:
            missing[name] = "the archive is full"
            continue
        left -= len(text)
        found[name] = text + "\n"
    return found, missing


def _within(look: Look) -> str | BaseException:
    """A filesystem whose server is gone never answers: such a look is left behind."""
    answer: list[str | BaseException] = []

    def run() -> None:
        try:
            answer.append(look())
        except BaseException as failed:  # noqa: BLE001 - told instead
            answer.append(failed)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(LOOK_WITHIN_S)
    return answer[0] if answer else TimeoutError(f"no answer within {LOOK_WITHIN_S:g} s")


def write(path: str, folder: str, files: dict[str, str], *, now: datetime) -> int:
    """The archive under its name, whole; its size. Raises OperatorNeeded."""
    unfinished = ""
    try:
        number, unfinished = tempfile.mkstemp(dir=os.path.dirname(os.path.abspath(path)), prefix=".ha-sync-doctor-")
        with open(number, "wb") as file:  # mode 0600
            with tarfile.open(fileobj=file, mode="w:gz") as archive:
                for name, text in files.items():
                    content = text.encode(errors="backslashreplace")
                    entry = tarfile.TarInfo(f"{folder}/{name}")
                    entry.size, entry.mode, entry.mtime = len(content), 0o600, int(now.timestamp())
                    archive.addfile(entry, io.BytesIO(content))
            file.flush()
            os.fsync(file.fileno())
        os.rename(unfinished, path)
        return os.stat(path).st_size
    except OSError as failed:
        raise OperatorNeeded("cannot write", subject=path, reason=failed.strerror or str(failed)) from failed
    finally:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
