"""Performs the plan: one thread that keeps the time, and one for each kind of writer that a PBX has.

The threads are those of the real thing (call records, channel events, the manager, ...), so a locked database delays
its own writer and no other; ``astdb`` has its commit thread besides. Each takes its actions in the plan's order from a
bounded queue; full, it holds up the plan, and nothing is left out until the stop. A
clean stop (``stop``) finishes every recording and message; a SIGKILL leaves what a crash leaves.
"""

from __future__ import annotations

import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from ha_sync.sample import actions as act
from ha_sync.sample.astdb import AstDb
from ha_sync.sample.audio import PIECE_BYTES, NoisePool
from ha_sync.sample.callrecords import CDR_COLUMNS, CEL_COLUMNS, CallCsv, CallRecords
from ha_sync.sample.configdb import ConfigDb
from ha_sync.sample.ledger import Ledger
from ha_sync.sample.plan import box_names, plan
from ha_sync.sample.recordings import Recordings
from ha_sync.sample.settings import CDR_DB, CEL_DB, SampleSettings
from ha_sync.sample.textfiles import CallFiles, ConfFiles, Log
from ha_sync.sample.voicemail import Voicemail

PENDING_MAX: Final = 500  # actions of a thread; full: the plan waits
CLOSE_ENOUGH_S: Final = 0.003  # actions this near are done at once: fewer wake-ups

WRITERS: Final[dict[str, tuple[type[act.Action], ...]]] = {
    "calls": (
        act.LogLines,
        act.RecordingOpen,
        act.RecordingPiece,
        act.RecordingClose,
        act.CallFileArrives,
        act.CallFileDone,
    ),
    "voicemail": (
        act.VoicemailBegin,
        act.VoicemailPiece,
        act.VoicemailEnd,
        act.MailboxSession,
        act.Greeting,
        act.SecretChange,
    ),
    "cdr": (act.CdrRow,),
    "cel": (act.CelRow,),
    "astdb": (act.AstPut, act.AstGet, act.AstDel),
    "manager": (act.ConfigEdit, act.ConfRewrite, act.ConfReplace),
}
"""Which thread does what. LogRotate goes to two: the log's and the call records'."""

Part = TypeVar("Part")
Queue = queue.Queue[act.Action | None]


class Pbx:
    """All writers over one root. Made, run once, closed."""

    def __init__(self, settings: SampleSettings, ledger: Ledger) -> None:
        root, pool, parts = settings.root, NoisePool(settings.seed), settings.parts
        os.makedirs(root, exist_ok=True)
        self._settings = settings
        self._ledger = ledger
        self.log = Log(root) if "log" in parts else None
        self.csv = CallCsv(root, ledger)
        self.cdr = CallRecords(root, CDR_DB, "cdr", CDR_COLUMNS, ledger) if "cdr" in parts else None
        self.cel = CallRecords(root, CEL_DB, "cel", CEL_COLUMNS, ledger) if "cel" in parts else None
        self.astdb = AstDb(root, ledger) if "astdb" in parts else None
        self.config = ConfigDb(root, ledger, wal=settings.config_wal) if "config" in parts else None
        self.recordings = Recordings(root, pool, ledger)
        boxes = box_names(settings) if "voicemail" in parts else ()
        self.voicemail = Voicemail(root, boxes, pool, ledger)
        self.conf = ConfFiles(root, ledger)
        self.call_files = CallFiles(root, ledger)

    def perform(self, action: act.Action) -> None:
        """Do it, in the thread that it belongs to."""
        match action:
            case act.CelRow(values=values):
                _there(self.cel).add(values)
            case act.CdrRow(values=values, account=account):
                _there(self.cdr).add(values)
                self.csv.add(values, account)
            case act.LogLines(lines=lines):
                _there(self.log).write(lines)
            case act.RecordingPiece(key=key, noise=noise):
                self.recordings.piece(key, noise, PIECE_BYTES)
            case act.RecordingOpen(key=key, path=path):
                self.recordings.begin(key, path)
            case act.RecordingClose(key=key, noise=noise, rest=rest):
                self.recordings.end(key, noise, rest)
            case act.AstPut(key=key, value=value):
                _there(self.astdb).put(key, value)
            case act.AstGet(key=key):
                _there(self.astdb).get(key)
            case act.AstDel(key=key):
                _there(self.astdb).delete(key)
            case act.ConfigEdit(dice=dice):
                _there(self.config).edit(random.Random(dice))
            case act.ConfRewrite(name=name, lines=lines):
                self.conf.rewrite(name, lines)
            case act.ConfReplace(name=name, lines=lines):
                self.conf.replace(name, lines)
            case act.CallFileArrives(name=name, text=text, ahead_s=ahead_s):
                self.call_files.arrive(name, text, ahead_s)
            case act.CallFileDone(name=name):
                self.call_files.done(name)
            case _:
                self._perform_for_a_mailbox(action)

    def rotate_log(self, suffix: str) -> None:
        """In the thread of the calls."""
        _there(self.log).rotate(suffix)

    def close(self) -> None:
        """The clean stop: everybody hangs up, everything is finished and closed."""
        self.recordings.end_all()
        self.voicemail.end_all()
        for part in (self.cdr, self.cel, self.astdb, self.config, self.log):
            if part is not None:
                part.close()
        self._ledger.write("stop")

    def _perform_for_a_mailbox(self, action: act.Action) -> None:
        match action:
            case act.VoicemailBegin(key=key, box=box, temporary=temporary):
                self.voicemail.begin(key, box, temporary)
            case act.VoicemailPiece(key=key, noise=noise):
                self.voicemail.piece(key, noise, PIECE_BYTES)
            case act.VoicemailEnd(key=key, noise=noise, rest=rest, text=text):
                self.voicemail.end(key, noise, rest, text)
            case act.MailboxSession(box=box, heard=heard, deleted=deleted, dice=dice):
                self.voicemail.session(box, heard, deleted, random.Random(dice))
            case act.Greeting(box=box, noise=noise, size=size):
                self.voicemail.greeting(box, noise, size)
            case act.SecretChange(box=box, secret=secret):
                self.voicemail.secret(box, secret)
            case _:
                raise AssertionError(action)


def _there(part: Part | None) -> Part:
    assert part is not None  # the plan leaves out what is switched off
    return part


class Program:
    """Keeps the plan's time and hands the actions to the writers."""

    def __init__(self, settings: SampleSettings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._stopping = threading.Event()
        self._over = threading.Event()  # what waits in the queues is not begun any more
        self._failure: BaseException | None = None
        self._queues: dict[str, Queue] = {name: queue.Queue(PENDING_MAX) for name in WRITERS}
        self._writer_of = {kind: name for name, kinds in WRITERS.items() for kind in kinds}

    def stop(self) -> None:
        """Ask for a clean stop. From any thread, but not in a signal handler: the event has a lock."""
        self._stopping.set()

    def run(self, ready: Callable[[], None]) -> None:
        """Until stopped or the seconds are over; ``ready`` is called when the databases exist."""
        self._ledger.write("start", seed=self._settings.seed, run=self._settings.run)
        pbx = Pbx(self._settings, self._ledger)
        with self._writers(pbx):
            ready()
            self._keep_time(time.monotonic())
        if self._failure is not None:
            raise self._failure
        pbx.close()

    def _keep_time(self, begun: float) -> None:
        scale, seconds = self._settings.rate_scale, self._settings.seconds
        for action in plan(self._settings):
            due_s = action.at_s / scale
            if seconds is not None and due_s >= seconds:
                self._stopping.wait(begun + seconds - time.monotonic())
                return
            wait_s = begun + due_s - time.monotonic()
            if wait_s > CLOSE_ENOUGH_S:
                self._stopping.wait(wait_s)
            if self._stopping.is_set():
                return
            self._hand_over(action)

    def _hand_over(self, action: act.Action) -> None:
        names = ("calls", "cdr") if isinstance(action, act.LogRotate) else (self._writer_of[type(action)],)
        for name in names:
            while not self._stopping.is_set():
                try:
                    self._queues[name].put(action, timeout=0.5)
                except queue.Full:  # its writer is slow: the calls wait, nothing is dropped
                    continue
                break

    @contextmanager
    def _writers(self, pbx: Pbx) -> Iterator[None]:
        threads = [threading.Thread(target=self._write, args=(pbx, name), name=name) for name in WRITERS]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for waiting in self._queues.values():
                waiting.put(None)
            for thread in threads:
                thread.join()

    def _write(self, pbx: Pbx, name: str) -> None:
        waiting = self._queues[name]
        while (action := waiting.get()) is not None:
            if self._over.is_set() or self._failure is not None:
                continue  # drain, so that nobody waits for room
            try:
                if isinstance(action, act.LogRotate):
                    (pbx.rotate_log if name == "calls" else pbx.csv.rotate)(action.suffix)
                else:
                    pbx.perform(action)
            except BaseException as error:  # noqa: BLE001 - carried to the main thread, which raises it
                self._failure = error
                self._stopping.set()
