"""Small files that must survive a power cut: written beside the old one, synced, renamed, directory synced.

A reader sees the old content or the new, never a part. Blocking; call from an executor.
"""

from __future__ import annotations

import os


def sync_folder(folder: str) -> None:
    """Makes creations, renames and unlinks in ``folder`` durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: str, content: bytes, *, durable: bool = True) -> None:
    """Replaces ``path``. With ``durable=False`` it is only atomic: a power cut may bring the old content back."""
    folder = os.path.dirname(path)
    temporary = f"{path}.new"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        if durable:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    if durable:
        sync_folder(folder)
