"""Brings the files of an archive into the new Active's tree, by what they are (R13), without harm to the PBX (R25).

A file is there when a file of its content stands under its name; has another content its name, it gets one beside it
(``naming``). A voicemail message is there when its mailbox has it, in any folder and under any number (``mail``); else
it gets the folder's next number under the PBX's own lock, its ``.txt`` last. Nothing is replaced, renamed or deleted,
so what the former Active had deleted stays. Left to a person: held call files, a mailbox's other files where they
differ (greetings, PINs), messages without a ``.txt``.

``units`` says what is missing, one file or message at a time, and what contents that needs; ``place`` puts one there.
Repeating is harmless. Blocking; one merge a tree at a time.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ha_sync.catalogue.tree import TYPE_DIRECTORY, TYPE_FILE, TYPE_SYMLINK
from ha_sync.config import TreeSettings
from ha_sync.divergence.mail import (
    TEXT,
    TEXT_MAX,
    Identity,
    Origin,
    by_message,
    identity_of,
    lacking,
    name_of,
    next_number,
    order_of,
    origin_of,
)
from ha_sync.divergence.mailbox_lock import locked
from ha_sync.divergence.naming import names_for
from ha_sync.divergence.outcome import Outcome
from ha_sync.divergence.placing import Placing
from ha_sync.divergence.tree_index import Action, Object, TreeIndex
from ha_sync.errors import HaSyncError, WrongState
from ha_sync.files.confine import components, split
from ha_sync.files.places import Scope
from ha_sync.files.rules import Rules, mailbox_of_folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """What is placed at once: one file, or the files of one message by extension."""

    files: tuple[Object, ...]
    folder: bytes | None = None  # of a message

    @property
    def size(self) -> int:
        """Bytes of content."""
        return sum(item.size for item in self.files)


class TreeMerge:
    """Of one archive into one tree."""

    def __init__(self, settings: TreeSettings, index_path: str, *, note: str, look_only: bool = False) -> None:
        """``look_only``: ``units`` changes nothing, and ``place`` is not called."""
        if not os.path.isdir(settings.path):
            raise WrongState("cannot merge into", subject=settings.path, reason="there is no such directory here")
        self._scope = Scope.of(settings)
        self._rules = Rules((*settings.exclude, *settings.node_local), mailboxes=settings.mailboxes)
        self._index_path = index_path
        self._note = note
        self._look_only = look_only
        self._placing = Placing(settings.path)
        self.outcome = Outcome()

    def close(self) -> None:
        """Leaves nothing of ours in the tree."""
        self._placing.close()

    # ---- what is missing

    def units(self) -> Iterator[Unit]:
        """Decides one object after the other; what is there already, or is left, is counted."""
        mail: list[Object] = []
        with TreeIndex(self._index_path) as index:
            for item in index.objects():
                if item.action is not Action.PUT or not self._may_merge(item):
                    continue
                if self._rules.mailbox_of(item.path) is not None and item.type == TYPE_FILE:
                    mail.append(item)
                else:
                    yield from self._of_file(item)
        yield from self._of_mail(mail)

    def _may_merge(self, item: Object) -> bool:
        components(item.path)  # raises ProtocolFault for a path that leads elsewhere
        if not item.path or self._rules.skips_path(item.path):
            return False
        if self._scope.is_held(item.path):
            self._outcome_left(item, "held files are never handed over by a merge")
            return False
        return True

    def _of_file(self, item: Object) -> Iterator[Unit]:
        if item.type == TYPE_DIRECTORY:
            found = self._placing.hash_at(item.path)
            if found is None and not self._look_only:
                self._placing.make_folder(item.path)
            elif found:
                self._outcome_left(item, "a file has its name")
        elif item.type == TYPE_SYMLINK:
            if not self._look_only and not self._placing.link(item):
                self._outcome_left(item, "something else has its name")
        elif not item.kept:
            self._outcome_left(item, "its content is not in the archive")
        elif self._free_name(item) is None:
            self.outcome.present += 1
        elif self._rules.has_units and self._placing.hash_at(item.path) is not None:
            self._outcome_left(item, "the mailbox has another one")
        else:
            yield Unit(files=(item,))

    def _free_name(self, item: Object) -> bytes | None:
        """Where it goes; None where it is there already."""
        for name in names_for(item.path, item.hash):
            found = self._placing.hash_at(name)
            if found == item.hash:
                return None
            if found is None:
                return name
        raise HaSyncError("cannot name", subject=os.fsdecode(item.path), reason="all names beside it are taken")

    def _outcome_left(self, item: Object, why: str) -> None:
        self.outcome.leave(1, f"{os.fsdecode(item.path)}: {why}")

    # ---- mail

    def _of_mail(self, items: list[Object]) -> Iterator[Unit]:
        by_path = {item.path: item for item in items}
        mailboxes: dict[bytes, list[Unit]] = {}
        for (folder, _), paths in sorted(by_message(by_path).items()):
            files = tuple(by_path[paths[extension]] for extension in order_of(paths))
            if TEXT not in paths:
                self._outcome_left(files[0], "a message without its .txt was never finished")
            elif not all(item.kept for item in files):
                self._outcome_left(files[0], "its content is not in the archive")
            else:
                mailboxes.setdefault(mailbox_of_folder(folder), []).append(Unit(files=files, folder=folder))
        for mailbox, units in mailboxes.items():
            yield from self._lacking(mailbox, units)

    def _lacking(self, mailbox: bytes, units: list[Unit]) -> Iterator[Unit]:
        theirs = [_identity(unit) for unit in units]
        mine = self._present(mailbox, {identity.origin for identity in theirs})
        wanted = lacking(theirs, mine)
        self.outcome.present += len(units) - len(wanted)
        for place in wanted:
            yield units[place]

    def _present(self, mailbox: bytes, origins: set[Origin]) -> Counter[Identity]:
        """The messages of a mailbox, in all its folders, that come from one of ``origins``."""
        found: Counter[Identity] = Counter()
        for name in self._placing.names(mailbox):
            folder = mailbox + b"/" + name if mailbox else name
            if self._rules.skips_path(folder):
                continue
            paths = [folder + b"/" + each for each in self._placing.names(folder)]
            for files in by_message(paths).values():
                text = self._text(files.get(TEXT))
                if text is None or origin_of(text) not in origins:
                    continue
                sounds = {each: self._placing.hash_at(path) or b"" for each, path in files.items() if each != TEXT}
                found[identity_of(text, sounds)] += 1
        return found

    def _text(self, path: bytes | None) -> bytes | None:
        try:
            return None if path is None else self._placing.read(path, TEXT_MAX)
        except OSError:  # renamed away a moment ago
            return None

    def place(self, unit: Unit, contents: Mapping[int, str]) -> None:
        """Puts one there; ``contents`` are files by the numbers of the objects."""
        if unit.folder is None:
            (item,) = unit.files
            self._place_file(item, contents[item.number])
        else:
            self._place_message(unit, unit.folder, contents)

    def _place_file(self, item: Object, content: str) -> None:
        name = self._free_name(item)
        if name is None:
            self.outcome.present += 1
            return
        staged = self._placing.stage(content, item)
        if self._placing.publish(staged, name):
            self.outcome.added += 1
        else:  # somebody took the name meanwhile
            self._place_file(item, content)

    def _place_message(self, unit: Unit, folder: bytes, contents: Mapping[int, str]) -> None:
        staged = {}
        for item in unit.files:
            extension = split(item.path)[1].rpartition(b".")[2]
            staged[extension] = self._placing.stage(contents[item.number], item)
        inodes = {extension: self._placing.inode(place) for extension, place in staged.items()}
        self._placing.make_folder(folder)
        sounds = tuple(inode for extension, inode in inodes.items() if extension != TEXT)
        with locked(self._placing.root, folder, note=self._note, text=inodes[TEXT], sounds=sounds):
            number = next_number(self._placing.names(folder))
            if number is None:
                self._outcome_left(unit.files[0], "its folder is full, or has an unfinished message")
                return
            for extension in order_of(staged):
                if not self._placing.publish(staged[extension], folder + b"/" + name_of(number, extension)):
                    raise HaSyncError("cannot number a message", subject=os.fsdecode(folder), reason="taken meanwhile")
        self.outcome.added += 1


def _identity(unit: Unit) -> Identity:
    sounds = {split(item.path)[1].rpartition(b".")[2]: item.hash for item in unit.files}
    del sounds[TEXT]
    return identity_of(unit.files[-1].text, sounds)
