"""Small judgements about frames, files and errors that the sink makes. Blocking where a file is named."""

from __future__ import annotations

import errno
import os

from ha_proto.sync.v1 import replication_pb2 as wire
from ha_sync.apply.pages.ledger import Published
from ha_sync.core.frame import Frame
from ha_sync.database.header import HEADER_BYTES, database_block_size, parse_header
from ha_sync.errors import HaSyncError, OperatorNeeded, ProtocolFault, Retryable
from ha_sync.files.blocks import Content, hash_file


def only_change(frame: Frame) -> wire.TreeChange:
    """The one change that a frame of a database holds."""
    try:
        changes = wire.TreeChanges.FromString(frame.body).changes
    except Exception as error:
        raise ProtocolFault("cannot read a frame", reason=str(error)) from error
    if len(changes) != 1:
        raise ProtocolFault("cannot take a frame", reason=f"{len(changes)} changes for one database")
    return changes[0]


def by_remedy(error: OSError, path: str) -> HaSyncError:
    """An error of the disk, by what mends it."""
    reason = error.strerror or str(error)
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return Retryable("cannot write a database", subject=path, reason=reason, hint="make room; it goes on by itself")
    if error.errno in {errno.ENOENT, errno.ENOTDIR}:
        return Retryable("cannot write a database", subject=path, reason=reason, hint="create its directory")
    return OperatorNeeded("cannot write a database", subject=path, reason=reason, hint="see permissions and mounts")


def block_size_of(fd: int, published: Published | None) -> int:
    """In which blocks the Standby describes its file."""
    if published is not None:
        return published.block_size
    header = parse_header(os.pread(fd, HEADER_BYTES, 0))
    return database_block_size(os.fstat(fd).st_size, 4096 if header is None else header.page_size)


def is_content(found: Content, published: Published) -> bool:
    """Whether what was read is this content."""
    return found.hash == published.whole and found.size == published.size


def file_is(path: str, content: Published) -> bool:
    """Whether a file holds this content."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return is_content(hash_file(fd, block_size=content.block_size), content)
    finally:
        os.close(fd)


def inode_of(path: str) -> int:
    """-1 where there is none."""
    try:
        return os.lstat(path).st_ino
    except OSError:
        return -1
