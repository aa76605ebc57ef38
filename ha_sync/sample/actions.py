"""What the sample PBX does, one frozen fact per action. The plan makes them, the program performs them in order.

``at_s`` is in seconds of the sample's clock since its start. ``dice`` is a seed for choices that depend on what is on
the disk at that moment (which message, which extension); ``noise`` says where in the audio pool a piece begins.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """The least that an action says: when."""

    at_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLines(Action):
    """Lines of ``log/full``, one write each."""

    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRotate(Action):
    """``log/full`` and ``cdr-csv/Master.csv`` are renamed and begun anew."""

    suffix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingOpen(Action):
    """A recording begins under its final name."""

    key: str
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingPiece(Action):
    """A full buffer of a recording is written."""

    key: str
    noise: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingClose(Action):
    """The rest of a recording is written and, for WAV, the lengths in its header."""

    key: str
    noise: int
    rest: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CelRow(Action):
    """One channel event."""

    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CdrRow(Action):
    """One call record: the database first, then the CSV files."""

    values: tuple[str, ...]
    account: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AstPut(Action):
    """``database put``."""

    key: str
    value: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AstGet(Action):
    """``database get``: leaves a SHARED lock behind until the next write is committed."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AstDel(Action):
    """``database del``."""

    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VoicemailBegin(Action):
    """A caller begins to leave a message: files below ``tmp`` grow."""

    key: str
    box: str
    temporary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class VoicemailPiece(Action):
    """A full buffer of the message's ``.wav``."""

    key: str
    noise: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VoicemailEnd(Action):
    """The caller hangs up: the message is finished and delivered under the lock."""

    key: str
    noise: int
    rest: int
    seconds: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MailboxSession(Action):
    """The owner hangs up after a session: some messages heard, some deleted."""

    box: str
    heard: float  # share of the messages
    deleted: float
    dice: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting(Action):
    """The owner records a greeting."""

    box: str
    noise: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretChange(Action):
    """The owner changes the PIN."""

    box: str
    secret: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfigEdit(Action):
    """The administrator changes ``config.db`` in one transaction of several rows."""

    dice: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfRewrite(Action):
    """The manager's UpdateConfig: truncate, then open, append and close once per line."""

    name: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ConfReplace(Action):
    """An editor: written beside, renamed over."""

    name: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFileArrives(Action):
    """A call file is renamed into ``outgoing``, appended to, and touched into the future."""

    name: str
    text: str
    ahead_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFileDone(Action):
    """The call was made: the file moves out of ``outgoing``."""

    name: str


PART_OF: dict[type[Action], str] = {
    LogLines: "log",
    LogRotate: "log",
    RecordingOpen: "recordings",
    RecordingPiece: "recordings",
    RecordingClose: "recordings",
    CelRow: "cel",
    CdrRow: "cdr",
    AstPut: "astdb",
    AstGet: "astdb",
    AstDel: "astdb",
    VoicemailBegin: "voicemail",
    VoicemailPiece: "voicemail",
    VoicemailEnd: "voicemail",
    MailboxSession: "voicemail",
    Greeting: "voicemail",
    SecretChange: "voicemail",
    ConfigEdit: "config",
    ConfRewrite: "config-files",
    ConfReplace: "config-files",
    CallFileArrives: "spool",
    CallFileDone: "spool",
}
"""Which part of SampleSettings.parts switches the action on."""
