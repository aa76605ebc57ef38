"""The checker's half for files: whole files, files that grow, mailbox folders. Blocking; reads only."""

from __future__ import annotations

import os
from collections import Counter
from typing import Final

from ha_sync.sample.audio import DATA_LENGTH_AT, RIFF_LENGTH_AT, header_lengths
from ha_sync.sample.history import ABSENT, Folder, Growing, History, Piece, kind_of
from ha_sync.sample.ledger import digest
from ha_sync.sample.verdict import Tally
from ha_sync.sample.voicemail import folder_messages

VOICEMAIL: Final = "voicemail"


def check_files(history: History, copy_root: str, tally: Tally) -> None:
    """Files that are written whole: configuration, greetings, PINs."""
    for path, versions in history.files.items():
        whole = os.path.join(copy_root, path)
        here = ABSENT
        if os.path.isfile(whole):
            with open(whole, "rb") as file:
                here = digest(file.read())
        tally.judge(kind_of(path), path, versions, here, in_doubt=path in history.in_doubt)


def check_growing(history: History, copy_root: str, tally: Tally) -> None:
    """Recordings and CSV files: every piece at its offset, under the present name or a later one."""
    for growing in history.growing:
        path, there = _best_place(growing, copy_root, tally.until_s, history.in_doubt)
        kind = kind_of(path)
        for piece in growing.pieces:
            if piece in there:
                tally.present(kind)
            elif piece.since_s <= tally.until_s:
                tally.missing(kind, f"{path}: {piece.size} bytes at {piece.offset}")
            else:
                tally.lost(kind)
        if growing.closed is not None:
            _check_closed(growing.closed, path, copy_root, kind, tally)


def _best_place(growing: Growing, copy_root: str, until_s: float, in_doubt: set[str]) -> tuple[str, frozenset[Piece]]:
    """Where most of the pieces are, among the names that the file may have."""
    settled = [number for number, (since_s, _) in enumerate(growing.places) if since_s <= until_s]
    names = [name for _, name in growing.places[settled[-1] if settled else 0 :]]
    if names[-1] in in_doubt:  # killed between a rename and its line in the ledger
        folder, base = os.path.split(names[-1])
        names += [path for path in in_doubt if path.startswith(f"{folder}/{base}.")]
    looked = [(name, _pieces_there(growing, os.path.join(copy_root, name))) for name in names]
    return max(looked, key=lambda place: len(place[1]))


def _pieces_there(growing: Growing, path: str) -> frozenset[Piece]:
    if not os.path.isfile(path):
        return frozenset()
    there = set()
    with open(path, "rb") as file:
        for piece in growing.pieces:
            file.seek(piece.offset)
            data = file.read(piece.size)
            if len(data) == piece.size and digest(data) == piece.digest:
                there.add(piece)
    return frozenset(there)


def _check_closed(closed: Piece, path: str, copy_root: str, kind: str, tally: Tally) -> None:
    if _is_finished(os.path.join(copy_root, path), closed.size):
        tally.present(kind)
    elif closed.since_s <= tally.until_s:
        tally.missing(kind, f"{path}: finished with {closed.size} bytes and a true header")
    else:
        tally.lost(kind)


def _is_finished(path: str, size: int) -> bool:
    if not os.path.isfile(path) or os.path.getsize(path) != size:
        return False
    if not path.endswith(".wav"):
        return True
    with open(path, "rb") as file:
        header = file.read(DATA_LENGTH_AT + 4)
    riff, data = header_lengths(size)
    found = (header[RIFF_LENGTH_AT : RIFF_LENGTH_AT + 4], header[DATA_LENGTH_AT : DATA_LENGTH_AT + 4])
    # A recording without any sound is closed without the patches.
    return found == (riff, data) or (size <= DATA_LENGTH_AT + 4 and found == (bytes(4), bytes(4)))


def check_folders(history: History, copy_root: str, tally: Tally) -> None:
    """Mailbox folders as multisets of messages, whatever their numbers."""
    known = {message for folder in history.folders.values() for _, state in folder.states for message in state}
    for path, folder in history.folders.items():
        directory = os.path.join(copy_root, path)
        found = Counter(folder_messages(directory) if os.path.isdir(directory) else [])
        _check_folder(path, folder, found, tally)
        if not folder.doubtful:
            for message in found:
                if message not in known:
                    tally.fault(f"{VOICEMAIL}: {path}: a message of mixed or unknown content")


def _check_folder(path: str, folder: Folder, found: Counter[str], tally: Tally) -> None:
    settled = [number for number, (since_s, _) in enumerate(folder.states) if since_s <= tally.until_s]
    states = [Counter(state) for _, state in folder.states]
    at_least = settled[-1] if settled else -1
    # A message that a later state no longer has may be gone already.
    required = Counter(states[at_least] if settled else ())  # a copy: it is narrowed down
    for later in states[at_least + 1 :]:
        required &= later
    absent = required - found
    if folder.doubtful:
        absent = Counter()  # the crash came in the middle of a session: numbers and files were moving
    for message in absent.elements():
        tally.missing(VOICEMAIL, f"{path}: message {message}")
    last = states[-1]
    arrived = last & found
    tally.present(VOICEMAIL, arrived.total())
    tally.lost(VOICEMAIL, (last - found - absent).total())
    if settled:
        _check_deleted(path, states[at_least:], found, folder, tally)


def _check_deleted(path: str, states: list[Counter[str]], found: Counter[str], folder: Folder, tally: Tally) -> None:
    """What was deleted and acknowledged must not have come back."""
    allowed = Counter[str]()
    for state in states:
        allowed |= state
    if folder.doubtful:
        return
    for message in (found - allowed).elements():
        tally.missing(VOICEMAIL, f"{path}: the deletion of message {message}")
