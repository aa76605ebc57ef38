"""The sequence of actions of a run: pure, endless, and the same for the same settings.

Forty slots each make one call after another; beside them go mailbox sessions, an administrator, call files and
rotation. Everything is drawn from generators seeded by (seed, run, name), so neither the machine nor the wall clock has
a say in it. The constants are fitted to PBX.md's table (40 calls at once with CEL: 441 inotify events, 4.4 CDR rows,
38 CEL rows and 424 KB of recordings a second); the actions come in the order of ``at_s``.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from typing import Final

from ha_sync.sample import actions as act
from ha_sync.sample.audio import GSM_BYTES_PER_S, PIECE_BYTES, PIECE_S, POOL_BYTES, WAV_BYTES_PER_S
from ha_sync.sample.settings import MONITOR_DIR, SampleSettings

EPOCH_S: Final = 1_795_342_645  # the sample's calendar begins when the traced run began
RUN_S: Final = 1_000_000  # how far apart the calendars of two runs are
DAY: Final = "2026/11/22"

KINDS: Final = (("mix", 58), ("bridge", 9), ("voicemail", 24), ("queue", 3), ("record", 4), ("plain", 2))
GAP_S: Final = (0.4, 2.6)  # between two calls of a slot
TALK_S: Final = (8.0, 28.0)
MESSAGE_S: Final = (2.5, 16.0)
CEL_EVENTS: Final = (
    "CHAN_START",
    "ANSWER",
    "APP_START",
    "CHAN_START",
    "APP_END",
    "ANSWER",
    "BRIDGE_ENTER",
    "BRIDGE_ENTER",
    "LINKEDID_START",
    "UNHOLD",
    "BRIDGE_EXIT",
    "BRIDGE_EXIT",
    "HANGUP",
    "CHAN_END",
    "HANGUP",
    "CHAN_END",
    "USER_DEFINED",
    "LINKEDID_END",
)
SESSION_EVERY_S: Final = 9.0  # of 40 calls; fewer calls, fewer sessions
CONFIG_EDIT_EVERY_S: Final = 2.5
CONF_FILES: Final = ("extensions.conf", "pjsip.conf", "queues.conf", "voicemail.conf", "users.conf")
CONF_EVERY_S: Final = 12.0
CALL_FILE_EVERY_S: Final = 18.0
ROTATE_EVERY_S: Final = 45.0
GREETING_EVERY_S: Final = 30.0
SECRET_EVERY_S: Final = 40.0


def plan(settings: SampleSettings) -> Iterator[act.Action]:
    """Every action of the run, endless, ordered by time, of the parts that are switched on."""
    parts = frozenset(settings.parts)
    streams = [_slot(settings, number) for number in range(settings.calls)]
    streams += [_sessions(settings), _administrator(settings), _conf_files(settings)]
    streams += [_call_files(settings), _rotation(settings), _owners(settings)]
    for action in heapq.merge(*streams, key=_when):
        if act.PART_OF[type(action)] in parts:
            yield action


def box_names(settings: SampleSettings) -> tuple[str, ...]:
    """The mailboxes, as extension numbers."""
    return tuple(str(1001 + number) for number in range(settings.boxes))


def _when(action: act.Action) -> float:
    return action.at_s


def _dice(settings: SampleSettings, name: str) -> random.Random:
    return random.Random(f"{settings.seed}/{settings.run}/{name}")


def calendar_s(settings: SampleSettings, at_s: float) -> int:
    """Seconds since 1970 on the sample's calendar."""
    return EPOCH_S + settings.run * RUN_S + int(at_s)


class _Call:
    """One call in the making: collects its actions and hands them over in order."""

    def __init__(
        self, settings: SampleSettings, dice: random.Random, *, start_s: float, number: int, rest: float
    ) -> None:
        self.dice = dice
        self.start_s = start_s
        self.end_s = start_s
        self.rest = rest  # of the usual length
        self.begun = calendar_s(settings, start_s)
        self.uniqueid = f"{self.begun}.{number}"
        self.caller = str(1001 + dice.randrange(200))
        self.called = str(2001 + dice.randrange(200))
        self.box = str(1001 + dice.randrange(settings.boxes))
        self.key = f"{settings.run}-{number}"
        self.actions: list[act.Action] = []

    def add(self, action: act.Action) -> None:
        """One more action of this call."""
        self.actions.append(action)

    def ordered(self) -> list[act.Action]:
        """All of them in the order of time; those of one moment as they were added."""
        return sorted(self.actions, key=_when)

    def length_s(self, between: tuple[float, float]) -> float:
        """How long it lasts."""
        return max(1.0, self.dice.uniform(*between) * self.rest)

    def noise(self) -> int:
        """Where in the pool the next piece of sound begins."""
        return self.dice.randrange(POOL_BYTES)


def _slot(settings: SampleSettings, number: int) -> Iterator[act.Action]:
    dice = _dice(settings, f"slot/{number}")
    now = dice.uniform(0.0, 2.0)
    count = number
    kinds, weights = zip(*KINDS, strict=True)
    while True:
        # The first calls are the rest of calls: they do not end together, and the rates hold from the start.
        rest = dice.random() if count == number else 1.0
        call = _Call(settings, dice, start_s=now, number=count, rest=rest)
        kind = dice.choices(kinds, weights)[0]
        _MAKERS[kind](call)
        _records(call, kind)
        yield from call.ordered()
        now = call.end_s + dice.uniform(*GAP_S)
        count += settings.calls


def _recording(call: _Call, path: str, rate: int, delay_s: float) -> None:
    begin = call.start_s + delay_s
    length_s = call.length_s(TALK_S)
    total = int(length_s * rate) // 2 * 2
    pieces = total // PIECE_BYTES
    call.add(act.RecordingOpen(at_s=begin, key=call.key, path=path))
    for piece in range(1, pieces + 1):
        call.add(act.RecordingPiece(at_s=begin + piece * PIECE_BYTES / rate, key=call.key, noise=call.noise()))
    call.end_s = begin + length_s
    call.add(act.RecordingClose(at_s=call.end_s, key=call.key, noise=call.noise(), rest=total - pieces * PIECE_BYTES))


def _mix(call: _Call) -> None:
    _recording(call, f"{MONITOR_DIR}/{DAY}/mix-{call.uniqueid}.wav", WAV_BYTES_PER_S, 0.05)


def _bridge(call: _Call) -> None:
    _recording(call, f"{MONITOR_DIR}/br-{call.uniqueid}.wav", WAV_BYTES_PER_S, 1.0)


def _record(call: _Call) -> None:
    _recording(call, f"{MONITOR_DIR}/recording/rec-{call.uniqueid}.wav", WAV_BYTES_PER_S, 0.4)


def _queue(call: _Call) -> None:
    _recording(call, f"{MONITOR_DIR}/q-{call.uniqueid}.gsm", GSM_BYTES_PER_S, 2.0)


def _plain(call: _Call) -> None:
    call.end_s = call.start_s + call.length_s(TALK_S)


def _voicemail(call: _Call) -> None:
    begin = call.start_s + call.dice.uniform(4.0, 9.0)  # ringing, greeting
    length_s = call.length_s(MESSAGE_S)
    total = int(length_s * WAV_BYTES_PER_S) // 2 * 2
    pieces = total // PIECE_BYTES
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    temporary = "".join(call.dice.choices(letters, k=6))
    call.add(act.VoicemailBegin(at_s=begin, key=call.key, box=call.box, temporary=temporary))
    for piece in range(1, pieces + 1):
        call.add(act.VoicemailPiece(at_s=begin + piece * PIECE_S, key=call.key, noise=call.noise()))
    call.end_s = begin + length_s
    call.add(
        act.VoicemailEnd(
            at_s=call.end_s,
            key=call.key,
            noise=call.noise(),
            rest=total - pieces * PIECE_BYTES,
            seconds=int(length_s),
            text=_message_text(call, int(length_s)),
        )
    )


def _message_text(call: _Call, seconds: int) -> str:
    # msg_id survives a forward and is therefore not unique: every eighth is that of an earlier message.
    msg_id = f"{call.begun}-{'0000000c' if call.dice.random() < 0.125 else call.uniqueid.split('.')[1]}"
    return (
        ";\n; Message Information file\n;\n[message]\n"
        f"origmailbox={call.box}\ncontext=default\nmacrocontext=\nexten={call.box}\nrdnis=unknown\npriority=1\n"
        f'callerchan=Local/{call.caller}@phones-{call.key};1\ncallerid="Caller" <{call.caller}>\n'
        f"origdate=Sun Nov 22 11:00:00 AM UTC 2026\norigtime={call.begun}\ncategory=\nmsg_id={msg_id}\nflag=\n"
        f"duration={seconds}\n"
    )


_MAKERS: Final[dict[str, Callable[[_Call], None]]] = {
    "mix": _mix,
    "bridge": _bridge,
    "voicemail": _voicemail,
    "queue": _queue,
    "record": _record,
    "plain": _plain,
}


def _records(call: _Call, kind: str) -> None:
    """What every call leaves behind: channel events, log lines, ``astdb`` values, call records at its end."""
    dice = call.dice
    for number, event in enumerate(CEL_EVENTS):
        early = number < 10
        offset = number * 0.004 if early else -(len(CEL_EVENTS) - number) * 0.004
        at_s = max(call.start_s, (call.start_s if early else call.end_s) + offset)
        call.add(act.CelRow(at_s=at_s, values=_cel_values(call, event, number)))
        if number % 4 != 3:
            call.add(act.LogLines(at_s=at_s, lines=_log_lines(call, event, 2 + number % 2)))
    call.add(act.AstGet(at_s=call.start_s, key=f"/DND/{call.called}"))
    if dice.random() < 0.55:
        stamp = f"{call.called}:{call.uniqueid}"
        call.add(act.AstPut(at_s=call.start_s + 0.02, key=f"/LastCaller/{call.caller}", value=stamp))
    if dice.random() < 0.10:
        call.add(_dnd(call))
    rows = dice.choices((1, 2, 3, 4), (25, 45, 20, 10))[0]
    account = f"acct{dice.randrange(10)}" if dice.random() < 0.4 else ""
    for row in range(rows):
        call.add(
            act.CdrRow(at_s=call.end_s + row * 0.002, values=_cdr_values(call, kind, row, account), account=account)
        )


def _dnd(call: _Call) -> act.Action:
    if call.dice.random() < 0.3:
        return act.AstDel(at_s=call.end_s, key=f"/DND/{call.called}")
    return act.AstPut(at_s=call.end_s, key=f"/DND/{call.called}", value=call.uniqueid)


def _cel_values(call: _Call, event: str, number: int) -> tuple[str, ...]:
    side = call.caller if number % 3 else call.called
    return (
        f"{call.begun}.{number:06d}",
        event,
        f"Extension {call.caller}",
        call.caller,
        call.called,
        "from-internal",
        f"PJSIP/{side}-{call.key}",
        "MixMonitor" if number == 2 else "Dial",
        call.uniqueid,
        f"{call.uniqueid}.{number}",
    )


def _cdr_values(call: _Call, kind: str, row: int, account: str) -> tuple[str, ...]:
    length = int(call.end_s - call.start_s)
    return (
        str(call.begun),
        f'"Extension {call.caller}" <{call.caller}>',
        "from-internal",
        f"PJSIP/{call.caller}-{call.key}",
        f"PJSIP/{call.called}-{call.key}",
        "VoiceMail" if kind == "voicemail" else "Dial",
        f"PJSIP/{call.called},30,tT",
        str(length),
        str(max(0, length - 2)),
        "ANSWERED" if row == 0 else "NO ANSWER",
        "3",
        account,
        call.uniqueid,
        f"leg {row}",
    )


def _log_lines(call: _Call, event: str, count: int) -> tuple[str, ...]:
    return tuple(
        f"[2026-11-22 11:17:25] VERBOSE[{call.begun}][C-{call.key}] pbx.c: Executing [{call.called}@from-internal:"
        f"{line}] {event}\n"
        for line in range(count)
    )


def _ticks(dice: random.Random, every_s: float) -> Iterator[float]:
    now = dice.uniform(0.0, every_s)
    while True:
        yield now
        now += dice.uniform(0.5, 1.5) * every_s


def _sessions(settings: SampleSettings) -> Iterator[act.Action]:
    dice = _dice(settings, "sessions")
    every_s = SESSION_EVERY_S * 40 / settings.calls
    for now in _ticks(dice, every_s):
        yield act.MailboxSession(
            at_s=now,
            box=dice.choice(box_names(settings)),
            heard=dice.choice((0.0, 0.3, 0.6, 1.0)),
            deleted=dice.choice((0.0, 0.2, 0.5)),
            dice=dice.getrandbits(48),
        )


def _administrator(settings: SampleSettings) -> Iterator[act.Action]:
    dice = _dice(settings, "administrator")
    for now in _ticks(dice, CONFIG_EDIT_EVERY_S):
        yield act.ConfigEdit(at_s=now, dice=dice.getrandbits(48))


def _conf_files(settings: SampleSettings) -> Iterator[act.Action]:
    dice = _dice(settings, "conf")
    for now in _ticks(dice, CONF_EVERY_S):
        name = dice.choice(CONF_FILES)
        lines = tuple(f"line{n} = {dice.getrandbits(64):016x}\n" for n in range(dice.randint(8, 30)))
        lines = (f"; {name} of {calendar_s(settings, now)}\n", "[general]\n", *lines)
        maker = act.ConfRewrite if dice.random() < 0.6 else act.ConfReplace
        yield maker(at_s=now, name=name, lines=lines)


def _call_files(settings: SampleSettings) -> Iterator[act.Action]:
    dice = _dice(settings, "call-files")
    done: list[tuple[float, str]] = []
    for count, now in enumerate(_ticks(dice, CALL_FILE_EVERY_S)):
        while done and done[0][0] <= now:
            then, name = done.pop(0)
            yield act.CallFileDone(at_s=then, name=name)
        name = f"cf{settings.run}-{count}.call"
        text = f"Channel: Local/{dice.randint(2001, 2200)}@phones\nMaxRetries: 2\nApplication: Playback\nData: beep\n"
        yield act.CallFileArrives(at_s=now, name=name, text=text, ahead_s=dice.randint(60, 600))
        if dice.random() < 0.6:
            done.append((now + CALL_FILE_EVERY_S / 2, name))  # some wait for their hour


def _rotation(settings: SampleSettings) -> Iterator[act.Action]:
    for count in range(1, 1 << 30):
        yield act.LogRotate(at_s=count * ROTATE_EVERY_S, suffix=f"{settings.run}-{count}")


def _owners(settings: SampleSettings) -> Iterator[act.Action]:
    dice = _dice(settings, "owners")
    greetings = _ticks(dice, GREETING_EVERY_S)
    secrets = _ticks(dice, SECRET_EVERY_S)
    greeting_at, secret_at = next(greetings), next(secrets)
    while True:
        box = dice.choice(box_names(settings))
        if greeting_at <= secret_at:
            size = dice.randint(20_000, 90_000) // 2 * 2
            yield act.Greeting(at_s=greeting_at, box=box, noise=dice.randrange(POOL_BYTES), size=size)
            greeting_at = next(greetings)
        else:
            yield act.SecretChange(at_s=secret_at, box=box, secret=f"{dice.randrange(10_000):04d}")
            secret_at = next(secrets)
