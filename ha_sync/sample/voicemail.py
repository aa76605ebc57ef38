"""Mailboxes as app_voicemail keeps them (PBX.md, "Voicemail"; lockmode=lockfile).

Leaving a message: ``tmp/XXXXXX`` and its sound files grow; then ``.lock-random`` is linked to ``.lock``, the sound is
renamed to ``INBOX/msgNNNN.*`` and **the .txt last**, made 0666, and the lock goes. A session changes nothing until it
hangs up: then, under the locks, heard messages are copied to ``Old``, later ones renamed over the gaps file by file,
and the tail unlinked with the ``.txt`` first. A lock that stays (stale, or copied) loses the message.
Nothing is synced. Belongs to one thread.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from ha_sync.sample.audio import GSM_BYTES_PER_S, NoisePool
from ha_sync.sample.ledger import Ledger, digest, message_digest
from ha_sync.sample.recordings import SoundFile
from ha_sync.sample.settings import VOICEMAIL_DIR

CONTEXT: Final = f"{VOICEMAIL_DIR}/default"
SOUNDS: Final = ("gsm", "wav", "WAV")  # in the order of the renames
MESSAGES_MAX: Final = 20  # of a folder: the PBX refuses more
LOCK_WAIT_S: Final = 5.0
LOCK_LOOK_S: Final = 0.05
COPY_BYTES: Final = 65_536


class FolderLocked(Exception):
    """The folder's lock did not come free in time."""


@dataclass(slots=True, kw_only=True)
class _Leaving:
    box: str
    stem: str  # below tmp
    text: int  # descriptor of the file without an extension
    sounds: dict[str, SoundFile]


class Voicemail:
    """All mailboxes of the context ``default``."""

    def __init__(self, root: str, boxes: tuple[str, ...], pool: NoisePool, ledger: Ledger) -> None:
        self._root = root
        self._pool = pool
        self._ledger = ledger
        self._leaving: dict[str, _Leaving] = {}
        for box in boxes:
            for folder in ("INBOX", "Old", "tmp"):
                os.makedirs(os.path.join(root, CONTEXT, box, folder), exist_ok=True)
            for folder in ("INBOX", "Old"):
                self._state(f"{CONTEXT}/{box}/{folder}")

    # Leaving a message

    def begin(self, key: str, box: str, temporary: str) -> None:
        """Count under the lock, then open the files below ``tmp``."""
        with contextlib.suppress(FolderLocked), self._locked(f"{CONTEXT}/{box}/INBOX", random.Random(key)):
            pass  # a real one counts the messages here
        stem = os.path.join(self._root, CONTEXT, box, "tmp", temporary)
        text = os.open(stem, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.fchmod(text, 0o666)
        sounds = {extension: SoundFile(f"{stem}.{extension}") for extension in SOUNDS}
        self._leaving[key] = _Leaving(box=box, stem=stem, text=text, sounds=sounds)

    def piece(self, key: str, noise: int, size: int) -> None:
        """A buffer of the ``.wav``; the compressed files stay in their buffers for 20 s."""
        self._leaving[key].sounds["wav"].append(self._pool.piece(noise, size))

    def end(self, key: str, noise: int, rest: int, text: str) -> None:
        """The caller hangs up: finish the files and deliver them."""
        leaving = self._leaving.pop(key)
        wav = leaving.sounds["wav"]
        if rest:
            wav.append(self._pool.piece(noise, rest))
        compressed = wav.size * GSM_BYTES_PER_S // 16_000
        for extension in ("gsm", "WAV"):
            leaving.sounds[extension].append(self._pool.piece(noise + 7, compressed))
        for sound in leaving.sounds.values():
            sound.close()
        os.write(leaving.text, text.encode())
        os.close(leaving.text)
        self._deliver(leaving, random.Random(key))

    def end_all(self) -> None:
        """A clean stop: every caller hangs up."""
        for key in list(self._leaving):
            self.end(key, 0, 0, f"[message]\norigmailbox={self._leaving[key].box}\nflag=\nduration=0\n")

    def _deliver(self, leaving: _Leaving, dice: random.Random) -> None:
        folder = f"{CONTEXT}/{leaving.box}/INBOX"
        try:
            with self._changing(folder), self._locked(folder, dice):
                number = self._count(folder)
                if number >= MESSAGES_MAX:
                    self._discard(leaving, "the mailbox is full")
                    return
                target = self._message(folder, number)
                for extension in SOUNDS:
                    os.rename(f"{leaving.stem}.{extension}", f"{target}.{extension}")
                os.rename(leaving.stem, f"{target}.txt")  # the commit mark comes last
                os.chmod(f"{target}.txt", 0o666)  # noqa: S103 - as the PBX does
        except FolderLocked:
            self._discard(leaving, "couldn't lock directory: voicemail will be lost")

    def _discard(self, leaving: _Leaving, why: str) -> None:
        for suffix in ("", *(f".{extension}" for extension in SOUNDS)):
            os.unlink(leaving.stem + suffix)
        self._ledger.write("lost", what=f"{leaving.box}/{os.path.basename(leaving.stem)}", why=why)

    # A session

    def session(self, box: str, heard: float, deleted: float, dice: random.Random) -> None:
        """The owner hangs up: heard messages to ``Old``, deleted ones closed up."""
        inbox, old = f"{CONTEXT}/{box}/INBOX", f"{CONTEXT}/{box}/Old"
        try:
            with self._changing(inbox), self._locked(inbox, dice):
                gone = self._keep_heard(inbox, old, heard, dice)
                gone |= {n for n in range(self._count(inbox)) if dice.random() < deleted}
                self._close_up(inbox, gone)
            with self._changing(old), self._locked(old, dice):
                crowded = self._count(old) > MESSAGES_MAX // 2
                self._close_up(old, {n for n in range(self._count(old)) if crowded and dice.random() < 0.6})
        except FolderLocked as error:
            self._ledger.write("lost", what=f"{box}/session", why=str(error))

    def _keep_heard(self, inbox: str, old: str, heard: float, dice: random.Random) -> set[int]:
        chosen = {n for n in range(self._count(inbox)) if dice.random() < heard}
        if not chosen:
            return set()
        with self._changing(old), self._locked(old, dice):
            kept = sorted(chosen)[: max(0, MESSAGES_MAX - self._count(old))]
            for number in kept:
                self._copy(self._message(inbox, number), self._message(old, self._count(old)))
        return set(kept)

    def _copy(self, source: str, target: str) -> None:
        for extension in (*SOUNDS, "txt"):  # a copy has new inodes
            with (
                contextlib.suppress(FileNotFoundError),  # half a message, left by a crash
                open(f"{source}.{extension}", "rb") as reader,
                open(f"{target}.{extension}", "wb") as writer,
            ):
                shutil.copyfileobj(reader, writer, COPY_BYTES)

    def _close_up(self, folder: str, gone: set[int]) -> None:
        total, slot = self._count(folder), 0
        for number in range(total):
            if number in gone:
                continue
            if slot != number:
                for extension in (*SOUNDS, "txt"):  # over the deleted one, file by file: no DELETE event
                    source, target = self._message(folder, number), self._message(folder, slot)
                    with contextlib.suppress(FileNotFoundError):  # half a message, left by a crash
                        os.rename(f"{source}.{extension}", f"{target}.{extension}")
            slot += 1
        for number in range(slot, total):
            for extension in ("txt", *SOUNDS):
                with contextlib.suppress(FileNotFoundError):  # renamed away a moment ago
                    os.unlink(f"{self._message(folder, number)}.{extension}")

    # The owner's own files

    def greeting(self, box: str, noise: int, size: int) -> None:
        """``unavail`` is recorded under a temporary name and renamed, one format after the other."""
        for extension in ("wav", "gsm"):
            path = f"{CONTEXT}/{box}/unavail.{extension}"
            whole, beside = os.path.join(self._root, path), f"{CONTEXT}/{box}/unavail.tmp.{extension}"
            sound = SoundFile(os.path.join(self._root, beside))
            sound.append(self._pool.piece(noise, size if extension == "wav" else size // 10))
            sound.close()
            mark = self._ledger.announce("try", paths=[path])
            os.rename(os.path.join(self._root, beside), whole)
            self._state_of_file(path, mark)

    def secret(self, box: str, secret: str) -> None:
        """``secret.conf``: truncated, then three lines, each with its own open and close."""
        path = f"{CONTEXT}/{box}/secret.conf"
        whole = os.path.join(self._root, path)
        mark = self._ledger.announce("try", paths=[path])
        with open(whole, "wb"):
            pass
        for line in (";\n; secret.conf\n;\n", "[general]\n", f"password={secret}\n"):
            with open(whole, "ab") as file:
                file.write(line.encode())
        self._state_of_file(path, mark)

    # Below the surface

    def _message(self, folder: str, number: int) -> str:
        return os.path.join(self._root, folder, f"msg{number:04d}")

    def _count(self, folder: str) -> int:
        number = 0
        while os.path.exists(self._message(folder, number) + ".txt"):
            number += 1
        return number

    @contextlib.contextmanager
    def _locked(self, folder: str, dice: random.Random) -> Iterator[None]:
        directory = os.path.join(self._root, folder)
        lock, own = f"{directory}/.lock", f"{directory}/.lock-{dice.getrandbits(32):08x}"
        os.close(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            self._link(own, lock)
        finally:
            os.unlink(own)
        try:
            yield
        finally:
            os.unlink(lock)

    @staticmethod
    def _link(own: str, lock: str) -> None:
        deadline = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                os.link(own, lock)
            except FileExistsError:
                if time.monotonic() >= deadline:
                    raise FolderLocked(f"failed to lock path: {lock} exists") from None
                time.sleep(LOCK_LOOK_S)
            else:
                return

    @contextlib.contextmanager
    def _changing(self, folder: str) -> Iterator[None]:
        # Announced before the lock and stated after it is gone: killed in between, the folder is in doubt.
        mark = self._ledger.announce("try", paths=[folder])
        try:
            yield
        finally:
            self._state(folder, mark)

    def _state(self, folder: str, mark: int = 0) -> None:
        self._ledger.write("folder", p=folder, messages=folder_messages(os.path.join(self._root, folder)), id=mark)

    def _state_of_file(self, path: str, mark: int) -> None:
        with open(os.path.join(self._root, path), "rb") as file:
            data = file.read()
        self._ledger.write("file", p=path, n=len(data), d=digest(data), id=mark)


def folder_messages(directory: str) -> list[str]:
    """The digests of the messages in a folder, whatever their numbers, sorted. Files without a ``.txt`` are none."""
    numbers: dict[str, list[str]] = {}
    for name in os.listdir(directory):
        stem, _, extension = name.partition(".")
        if stem.startswith("msg") and extension in {*SOUNDS, "txt"}:
            numbers.setdefault(stem, []).append(extension)
    found = []
    for stem, extensions in numbers.items():
        if "txt" in extensions:
            found.append(message_digest({ext: _content(f"{directory}/{stem}.{ext}") for ext in extensions}))
    return sorted(found)


def _content(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()
