"""The PBX's own lock on a mailbox folder (PBX.md, "Voicemail"): taken for renames alone, and never left behind.

``.lock-<random>`` is linked to ``.lock``; who finds it there waits. A lock that stays loses every new message of the
folder, so what is about to be locked is noted durably first: ``release_left`` removes after a crash what is still ours,
and the files of a message that has no ``.txt`` yet.
Blocking; one lock at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import time
from collections.abc import Iterator

from ha_sync.database.durable import sync_folder, write_durably
from ha_sync.errors import HaSyncError, WrongState
from ha_sync.files.confine import Root

WAIT_S = 5.0
LOOK_S = 0.05
LOCK = ".lock"


@contextlib.contextmanager
def locked(root: Root, folder: bytes, *, note: str, text: int, sounds: tuple[int, ...]) -> Iterator[None]:
    """Holds the lock of a folder of the tree, for a message whose files have these inodes.

    Raises WrongState where the lock does not come free in time.
    """
    directory = os.dup(root.directory(folder))
    own = f"{LOCK}-{secrets.token_hex(4)}"
    try:
        os.close(os.open(own, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory))
        inode = os.stat(own, dir_fd=directory, follow_symlinks=False).st_ino
        where = os.path.join(root.path, os.fsdecode(folder))
        kept = {"folder": where, "own": own, "inode": inode, "text": text, "sounds": sounds}
        write_durably(note, json.dumps(kept).encode())
        try:
            _link(own, directory, where)
            try:
                yield
            finally:
                os.unlink(LOCK, dir_fd=directory)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(own, dir_fd=directory)
            os.unlink(note)
    finally:
        os.close(directory)


def _link(own: str, directory: int, where: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            os.link(own, LOCK, src_dir_fd=directory, dst_dir_fd=directory)
        except FileExistsError:
            if time.monotonic() >= deadline:
                raise WrongState(
                    "puts off merging into", subject=where, reason="the PBX has the mailbox locked"
                ) from None
            time.sleep(LOOK_S)
        else:
            os.unlink(own, dir_fd=directory)
            return


def release_left(note: str) -> str:
    """Removes the lock that a killed engine left, and the sounds without a text; the folder it was in, or nothing."""
    try:
        with open(note, "rb") as file:
            kept = json.loads(file.read())
        folder, own, inode = str(kept["folder"]), os.path.basename(str(kept["own"])), int(kept["inode"])
        text, sounds = int(kept["text"]), {int(each) for each in kept["sounds"]}
    except FileNotFoundError:
        return ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HaSyncError("cannot read", subject=note, reason=str(error)) from error
    with contextlib.suppress(FileNotFoundError):
        _remove_unfinished(folder, text, sounds)
        for name in (LOCK, own):
            with contextlib.suppress(FileNotFoundError):
                if _inode(folder, name) == inode:
                    os.unlink(os.path.join(folder, name))
        sync_folder(folder)
    os.unlink(note)
    sync_folder(os.path.dirname(note))
    return folder


def _remove_unfinished(folder: str, text: int, sounds: set[int]) -> None:
    """Before the lock goes: the PBX would see sound without a text where it wants to put its own."""
    names = {name: _inode(folder, name) for name in os.listdir(folder) if name.startswith("msg")}
    if text not in names.values():
        for name, inode in names.items():
            if inode in sounds:
                os.unlink(os.path.join(folder, name))


def _inode(folder: str, name: str) -> int:
    return os.lstat(os.path.join(folder, name)).st_ino
