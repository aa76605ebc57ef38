"""Metadata: canonical attributes, and what is read comes back where it is applied."""

import os

import pytest

from ha_sync.catalogue.tree import TYPE_DIRECTORY, TYPE_FILE, TYPE_SYMLINK
from ha_sync.errors import ProtocolFault
from ha_sync.files import metadata
from ha_sync.files.metadata import Metadata


def test_equal_sets_of_attributes_give_equal_bytes_in_whatever_order():
    pairs = [("user.b", b"\0\xff"), ("user.a", b""), ("system.posix_acl_access", b"x" * 300)]
    assert metadata.encode_xattrs(pairs) == metadata.encode_xattrs(reversed(pairs))
    assert dict(metadata.decode_xattrs(metadata.encode_xattrs(pairs))) == dict(pairs)
    assert metadata.encode_xattrs([]) == b""


def test_attributes_cut_short_are_a_fault_of_the_protocol():
    whole = metadata.encode_xattrs([("user.a", b"value")])
    for cut in range(1, len(whole)):
        with pytest.raises(ProtocolFault):
            metadata.decode_xattrs(whole[:cut])


def test_types_of_objects(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    os.symlink("f", tmp_path / "l")
    os.mkfifo(tmp_path / "p")
    kinds = [metadata.object_type(os.lstat(tmp_path / n).st_mode) for n in ("f", "l", "p", "")]
    assert kinds == [TYPE_FILE, TYPE_SYMLINK, metadata.TYPE_SPECIAL, TYPE_DIRECTORY]


def test_what_was_read_is_applied_to_another_file(tmp_path):
    for name in ("from", "to"):
        (tmp_path / name).write_bytes(b"x")
    a, b = os.open(tmp_path / "from", os.O_RDWR), os.open(tmp_path / "to", os.O_RDWR)
    try:
        os.setxattr(a, "user.keep", b"\x00\x01")
        os.setxattr(b, "user.stale", b"old")
        os.fchmod(a, 0o4751)
        os.utime(a, ns=(1, 123_456_789_012_345_678))
        wanted = metadata.metadata_of(os.fstat(a), metadata.read_xattrs(a)[0])
        assert metadata.apply_to_descriptor(b, wanted) == ()
        assert metadata.metadata_of(os.fstat(b), metadata.read_xattrs(b)[0]) == wanted
        assert wanted.mode == 0o4751
    finally:
        os.close(a)
        os.close(b)


def test_a_symlink_gets_its_own_times_and_its_target_keeps_its_own(tmp_path):
    (tmp_path / "target").write_bytes(b"")
    os.symlink("target", tmp_path / "link")
    before = os.stat(tmp_path / "target").st_mtime_ns
    dir_fd = os.open(tmp_path, os.O_RDONLY)
    try:
        wanted = Metadata(mode=0o777, uid=os.getuid(), gid=os.getgid(), mtime_ns=5_000_000_001)
        assert metadata.apply_to_symlink(dir_fd, b"link", wanted) == ()
        assert metadata.read_xattrs(metadata.named(dir_fd, b"link")) == (b"", False)
    finally:
        os.close(dir_fd)
    assert os.lstat(tmp_path / "link").st_mtime_ns == 5_000_000_001
    assert os.stat(tmp_path / "target").st_mtime_ns == before


def test_attributes_beyond_the_limit_are_left_out_and_said(tmp_path):
    (tmp_path / "f").write_bytes(b"")
    fd = os.open(tmp_path / "f", os.O_RDONLY)
    try:
        os.setxattr(fd, "user.large", b"x" * 2000)
        assert metadata.read_xattrs(fd, limit=1000) == (b"", True)
        assert metadata.read_xattrs(fd)[1] is False
    finally:
        os.close(fd)


def test_what_the_kernel_refuses_is_said_and_the_rest_is_applied(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"")
    fd = os.open(tmp_path / "f", os.O_RDWR)

    def refuse(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    try:
        wanted = Metadata(mode=0o640, uid=12345, gid=12345, mtime_ns=7)
        assert [r.what for r in metadata.apply_to_descriptor(fd, wanted)] == ["owner"]
        assert os.fstat(fd).st_mode & 0o7777 == 0o640
        assert os.fstat(fd).st_mtime_ns == 7
    finally:
        os.close(fd)
