"""Turns inotify's events into what ``Settle`` and the scanner understand. No I/O; runs in the event loop, O(1) each."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, field

from ha_sync.capture.settle import Settle
from ha_sync.files import watch
from ha_sync.files.rules import LOCK, OWN_PREFIX, Names, Rules, mailbox_of_folder
from ha_sync.files.watch import Events

DIRECTORIES_MAX = 2048
_GONE = watch.DELETE | watch.MOVED_FROM
_WHOLE = watch.CLOSE_WRITE | watch.MOVED_TO


@dataclass(slots=True, kw_only=True)
class Heard:
    """What needs more than Settle."""

    scan: dict[bytes, None] = field(default_factory=dict)  # directories that appeared
    forget: dict[bytes, None] = field(default_factory=dict)  # directories that went
    root_lost: bool = False


class Hearing:
    """See the module."""

    def __init__(self, rules: Rules, settle: Settle) -> None:
        self._rules = rules
        self._settle = settle
        self._names: OrderedDict[bytes, Names] = OrderedDict()

    def hear(self, events: Events, now: float) -> Heard:
        """In order."""
        heard = Heard()
        moved_to = {cookie for _, mask, cookie, _ in events if mask & watch.MOVED_TO}
        for directory, mask, cookie, name in events:
            if not name:
                if not directory and mask & (watch.DELETE_SELF | watch.MOVE_SELF | watch.UNMOUNT):
                    heard.root_lost = True
                continue
            path = directory + b"/" + name if directory else name
            if self._rules.has_units and name == LOCK:
                self._lock(directory, mask, now)
                continue
            if self._skips(directory, name):
                continue
            if mask & watch.IS_DIRECTORY:
                self._directory(path, mask, heard, now)
            else:
                self._file(path, mask, now, paired=cookie in moved_to)
        return heard

    def _skips(self, directory: bytes, name: bytes) -> bool:
        if directory in self._names:
            names = self._names[directory]
        else:
            names = self._names[directory] = self._rules.left_out_in(directory)
            if len(self._names) > DIRECTORIES_MAX:
                self._names.popitem(last=False)
        text = os.fsdecode(name)
        return text.startswith(OWN_PREFIX) or (names is not None and names.fullmatch(text) is not None)

    def _lock(self, folder: bytes, mask: int, now: float) -> None:
        if mask & _GONE:
            self._settle.unlocked(mailbox_of_folder(folder), folder, now)
        elif mask & (watch.CREATE | watch.MOVED_TO):
            self._settle.locked(mailbox_of_folder(folder), folder, now)

    def _directory(self, path: bytes, mask: int, heard: Heard, now: float) -> None:
        if mask & _GONE:
            heard.forget[path] = None
            self._settle.gone(path, now)
        elif mask & (watch.CREATE | watch.MOVED_TO):
            if mask & watch.MOVED_TO:
                heard.forget[path] = None
            heard.scan[path] = None
        elif mask & watch.ATTRIB:
            self._settle.closed(path, now)

    def _file(self, path: bytes, mask: int, now: float, *, paired: bool) -> None:
        mailbox = self._rules.mailbox_of(path)
        settle = self._settle
        if mailbox is not None:
            if not mask & (watch.MODIFY | watch.CREATE) or mask & (_GONE | _WHOLE):
                settle.unit_changed(mailbox, path, now)
        elif mask & _WHOLE:
            settle.closed(path, now)
        elif mask & _GONE:
            if mask & watch.MOVED_FROM and paired:
                settle.closed(path, now)
            else:
                settle.gone(path, now)
        elif mask & watch.CREATE:
            settle.opened(path, now)
        elif mask & watch.MODIFY:
            settle.modified(path, now)
        elif mask & watch.ATTRIB:
            settle.changed(path, now)
