"""Secrets stand in files that only their owner may read. Blocking."""

from __future__ import annotations

import os
import stat

BYTES_MAX = 4096


def read_secret(path: str) -> bytes:
    """The content without the line's end. Raises OSError, or ValueError with what is wrong with the file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _require_private(path, os.fstat(descriptor))
        content = os.read(descriptor, BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(content) > BYTES_MAX:
        raise ValueError(f"{path} is longer than {BYTES_MAX} bytes: this is no secret")
    secret = content.rstrip(b"\r\n")
    if not secret:
        raise ValueError(f"{path} is empty")
    return secret


def _require_private(path: str, facts: os.stat_result) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise ValueError(f"{path} is no file")
    if facts.st_mode & 0o077:
        raise ValueError(f"{path} may be read by others (mode {stat.S_IMODE(facts.st_mode):04o}): chmod 600 {path}")
    if facts.st_uid not in {0, os.geteuid()}:
        raise ValueError(f"{path} belongs to another user: chown root {path}")


def problem_of(path: str) -> str:
    """What is wrong with the file; empty: nothing."""
    try:
        read_secret(path)
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except ValueError as wrong:
        return str(wrong)
    return ""
