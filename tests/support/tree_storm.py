"""What a hostile program does to a tree, from a seed; and how two trees differ.

``python -m tests.support.tree_storm ROOT SEED COUNT`` does ``COUNT`` things, one after the other, as fast as it can:
nothing that the kernel allows is left out, short of special files in the end state. What it refuses is passed over.
``Storm`` is one pair with three trees, whose engines are killed and frozen meanwhile.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import shutil
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Callable

from ha_sync.sample.pair import LocalNode, LocalPair, Place

TREES = ("plain", "conf", "grown")

TOML = """
[node]
name = "{name}"
state_dir = "{state_dir}"
run_dir = "{run_dir}"
listen = "{listen}"
peer = "{peer}"

[[dataset]]
name = "plain"
kind = "tree"
path = "{root}/plain"
priority = "cdr"
mass_delete_percent = 100
trash_mib = 8

[[dataset]]
name = "conf"
kind = "tree"
path = "{root}/conf"
priority = "config"
mass_delete_percent = 100

[[dataset]]
name = "grown"
kind = "tree"
path = "{root}/grown"
priority = "recordings"
growing = true
mass_delete_percent = 100
trash_mib = 0
"""

NAMES = [
    b"a", b"b", b"c", b"dir", b"dir2", b"x.conf", b"-rf", b"--help", b"new\nline", b"\xff\xfe\x80", b"caf\xc3\xa9",
    b" lead", b"trail ", b"...", b".hidden", b"back\\slash", b"*", b"[a-z]", b"\x01\x7f", b"$(reboot)", b"%s%n", b"a.b",
    b"a-b", b"tmp", b"lock", b".lock", b"msg0000.txt", b"call.wav", b"N" * 255, b"~", b"'\"", b"\xe2\x80\xae",
]  # fmt: skip
DEPTH = 6
OWNERS = (0, 1, 12345, 4_000_000_000)
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_LIBC = ctypes.CDLL(None, use_errno=True)


class Writer:
    """Does one hostile thing after the other below ``root``."""

    def __init__(self, root: str, seed: int) -> None:
        self.root = os.fsencode(root)
        self.outside = self.root + b".outside"
        self.random = random.Random(seed)
        os.makedirs(self.outside, exist_ok=True)
        self.serial = 0

    # ---- places

    def directories(self) -> list[bytes]:
        found = []
        for directory, below, _ in os.walk(self.root):
            below[:] = [name for name in below if not name.startswith(b".ha-")]
            found.append(directory)
        return found

    def paths(self, kind: Callable[[int], bool] = lambda _: True) -> list[bytes]:
        found = []
        for directory, below, files in os.walk(self.root):
            below[:] = [name for name in below if not name.startswith(b".ha-")]
            for name in below + files:
                path = os.path.join(directory, name)
                with contextlib.suppress(OSError):
                    if not name.startswith(b".ha-") and kind(os.lstat(path).st_mode):
                        found.append(path)
        return found

    def place(self) -> bytes:
        """A name in some directory, mostly not too deep; it may exist."""
        directories = self.directories()
        shallow = [d for d in directories if d.count(b"/") - self.root.count(b"/") < DEPTH]
        return os.path.join(self.random.choice(shallow), self.random.choice(NAMES))

    def file(self) -> bytes:
        files = self.paths(stat.S_ISREG)
        return self.random.choice(files) if files else self.place()

    def any(self) -> bytes:
        found = self.paths()
        return self.random.choice(found) if found else self.place()

    def elsewhere(self) -> bytes:
        self.serial += 1
        return self.outside + b"/%d" % self.serial

    def content(self) -> bytes:
        size = self.random.choice([0, 1, 7, 100, 4096, 5000, 5000, 131_072, 131_073, 300_000])
        return self.random.randbytes(size)

    def put(self, path: bytes, content: bytes, mode: str = "wb") -> None:
        with open(path, mode) as file:
            file.write(content)

    # ---- files

    def write(self) -> None:
        self.put(self.place(), self.content())

    def append(self) -> None:
        self.put(self.file(), self.random.randbytes(self.random.choice([1, 100, 33_000])), "ab")

    def patch(self) -> None:
        with open(self.file(), "r+b") as file:
            file.seek(self.random.randrange(1 + os.fstat(file.fileno()).st_size))
            file.write(self.random.randbytes(40))

    def patch_in_secret(self) -> None:
        """The same size and the same time as before, as ``touch -r`` or a restore would leave them."""
        path = self.file()
        before = os.stat(path)
        with open(path, "r+b") as file:
            file.write(self.random.randbytes(min(40, before.st_size)))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def truncate(self) -> None:
        path = self.file()
        os.truncate(path, self.random.choice([0, 1, os.path.getsize(path) // 2, os.path.getsize(path) + 200_000]))

    def sparse(self) -> None:
        with open(self.place(), "wb") as file:
            file.truncate(self.random.choice([1 << 20, 5_000_001]))
            file.seek(self.random.randrange(1 << 20))
            file.write(b"island")

    def mapped(self) -> None:
        with open(self.file(), "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if size:
                view = mmap.mmap(file.fileno(), size)
                file.close()
                at = self.random.randrange(size)
                view[at : at + 1] = self.random.randbytes(1)
                view.close()

    def nameless(self) -> None:
        """O_TMPFILE, given a name when it is whole: no event but the creation. With a directory it is linkat()."""
        path = self.place()
        fd = os.open(os.path.dirname(path), os.O_TMPFILE | os.O_RDWR, 0o640)
        try:
            os.write(fd, self.content())
            os.link(b"/proc/self/fd/%d" % fd, path, src_dir_fd=fd, follow_symlinks=True)
        finally:
            os.close(fd)

    def atomic(self) -> None:
        path = self.place()
        self.put(path[:-1] + b".new~", self.content())
        os.rename(path[:-1] + b".new~", path)

    def line_by_line(self) -> None:
        """As the manager's UpdateConfig."""
        path = self.place()
        self.put(path, b"")
        for number in range(self.random.randrange(30)):
            self.put(path, b"line %d\n" % number, "ab")

    def copytruncate(self) -> None:
        path = self.file()
        shutil.copy2(path, path[:-2] + b".1")
        os.truncate(path, 0)
        self.put(path, b"next\n", "ab")

    def flicker(self) -> None:
        """Appears and vanishes."""
        for _ in range(20):
            path = self.place()
            if not os.path.lexists(path):
                self.put(path, b"gone at once")
                os.unlink(path)

    # ---- names

    def rename(self) -> None:
        os.rename(self.any(), self.any() if self.random.random() < 0.5 else self.place())

    def exchange(self) -> None:
        """Two names change places in one step."""
        _LIBC.renameat2(_AT_FDCWD, self.any(), _AT_FDCWD, self.any(), _RENAME_EXCHANGE)

    def rename_chain(self) -> None:
        """A voicemail folder closing its gap; a log being rotated."""
        base = self.place()
        for number in range(5):
            self.put(base + b".%d" % number, self.content())
        for number in range(4):
            os.rename(base + b".%d" % (number + 1), base + b".%d" % number)

    def hardlink(self) -> None:
        os.link(self.file(), self.place(), follow_symlinks=False)

    def symlink(self) -> None:
        target = self.random.choice(
            [b"nowhere", b"../a", b"/etc/passwd", b".", b"..", b"\xff", b"t" * 3000, self.any()]
        )
        os.symlink(target, self.place())

    def remove(self) -> None:
        os.unlink(self.file())

    # ---- directories

    def mkdir(self) -> None:
        path = self.place()
        os.makedirs(path)
        for name in self.random.sample(NAMES, 3):
            self.put(os.path.join(path, name), self.content())

    def deep(self) -> None:
        path = self.place()
        os.mkdir(path)
        for _ in range(self.random.choice([3, 40])):
            path += b"/" + self.random.choice([b"d", b"e"])
            os.mkdir(path)
        self.put(path + b"/bottom", self.content())

    def move_in(self) -> None:
        source = self.elsewhere()
        os.makedirs(source + b"/deep/deeper")
        for name in (b"x", b"deep/y", b"deep/deeper/z"):
            self.put(source + b"/" + name, self.content())
        os.rename(source, self.place())

    def move_out_and_back(self) -> None:
        path, aside = self.any(), self.elsewhere()
        os.rename(path, aside)
        if self.random.random() < 0.7:
            os.rename(aside, path if self.random.random() < 0.5 else self.place())

    def recreate(self) -> None:
        """rm -rf, and at once the same name again."""
        path = self.random.choice(self.directories()[1:])
        shutil.rmtree(path)
        if self.random.random() < 0.8:
            os.mkdir(path)
            for name in self.random.sample(NAMES, 2):
                self.put(os.path.join(path, name), self.content())

    def change_kind(self) -> None:
        path = self.any()
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
        kind = self.random.randrange(4)
        if kind == 0:
            os.mkdir(path)
            self.put(path + b"/in", self.content())
        elif kind == 1:
            os.symlink(b"../somewhere", path)
        elif kind == 2:
            self.put(path, self.content())
        else:
            os.mkfifo(path)
            os.unlink(path)

    def checkout(self) -> None:
        """git checkout: many files unlinked and made again, some with the same content."""
        for path in self.random.sample(files := self.paths(stat.S_ISREG), len(files) // 3):
            with open(path, "rb") as file:
                content = file.read()
            os.unlink(path)
            self.put(path, content if self.random.random() < 0.5 else self.content())

    def many(self) -> None:
        path = self.place()
        os.mkdir(path)
        for number in range(self.random.choice([50, 700])):
            self.put(path + b"/%d" % number, b"%d" % number)

    # ---- metadata

    def mode(self) -> None:
        path = self.any()
        if not os.path.islink(path):
            os.chmod(path, self.random.choice([0o600, 0o644, 0o755, 0o4755, 0o2775, 0o1777, 0o000, 0o400]))

    def owner(self) -> None:
        os.chown(self.any(), self.random.choice(OWNERS), self.random.choice(OWNERS), follow_symlinks=False)

    def times(self) -> None:
        when = self.random.choice([0, 1, -1_000_000_000, 2**62, self.random.randrange(2**61)])
        os.utime(self.any(), ns=(when, when), follow_symlinks=False)

    def attribute(self) -> None:
        path, name = self.any(), self.random.choice([b"user.a", b"user.\xc3\xa4", b"user.long" + b"n" * 200])
        if self.random.random() < 0.3:
            os.removexattr(path, name, follow_symlinks=False)
        else:
            os.setxattr(path, name, self.random.randbytes(self.random.choice([0, 5, 900])), follow_symlinks=False)

    def acl(self) -> None:
        path = self.any()
        if os.path.islink(path):
            return
        entries = [(1, 6, -1), (2, 4, 12345), (4, 4, -1), (16, 6, -1), (32, self.random.choice([0, 4]), -1)]
        value = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)
        kind = b"default" if os.path.isdir(path) and self.random.random() < 0.5 else b"access"
        os.setxattr(path, b"system.posix_acl_" + kind, value)

    def step(self) -> None:
        """One of them; files come more often than the rest, the expensive ones seldom."""
        often = [self.write, self.append, self.patch, self.atomic, self.rename, self.mkdir]
        rare = [self.many, self.checkout, self.deep]
        if self.random.random() < 0.02:
            chosen = self.random.choice(rare)
        else:
            chosen = self.random.choice(often + _ordinary(self))
        with contextlib.suppress(OSError, ValueError, IndexError):
            chosen()


def _ordinary(writer: Writer) -> list[Callable[[], None]]:
    return [
        writer.patch_in_secret, writer.truncate, writer.sparse, writer.mapped, writer.nameless, writer.line_by_line,
        writer.copytruncate, writer.flicker, writer.exchange, writer.rename_chain, writer.hardlink, writer.symlink,
        writer.remove, writer.move_in, writer.move_out_and_back, writer.recreate, writer.recreate, writer.change_kind,
        writer.mode, writer.owner, writer.times, writer.attribute, writer.acl,
    ]  # fmt: skip


# ---- comparing

Facts = tuple[object, ...]


def facts_below(root: str) -> dict[bytes, Facts]:
    """Everything that must be equal on both nodes, by path, without what is ours."""
    base = os.fsencode(root)
    found: dict[bytes, Facts] = {}
    for directory, below, files in os.walk(base):
        below[:] = [name for name in below if not name.startswith(b".ha-")]
        for name in below + files:
            if not name.startswith(b".ha-"):
                path = os.path.join(directory, name)
                found[path[len(base) + 1 :]] = facts_of(path)
    return found


def facts_of(path: bytes) -> Facts:
    """Kind and mode, owner, times, attributes, and the content or the link's target."""
    status = os.lstat(path)
    names = sorted(os.listxattr(path, follow_symlinks=False))
    attributes = [
        (name, os.getxattr(path, name, follow_symlinks=False))
        for name in names
        if name.startswith(("user.", "system."))
    ]
    content: object = None
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = (status.st_size, file.read())
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    mtime = 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns  # a directory's follows what is put into it
    return (status.st_mode, status.st_uid, status.st_gid, mtime, attributes, content)


def tree_differences(one: str, other: str) -> list[str]:
    """What is not equal, for a person to read."""
    a, b = facts_below(one), facts_below(other)
    faults = []
    for path in sorted(a.keys() | b.keys()):
        if path not in a or path not in b:
            faults.append(f"{path!r} only in {one if path in a else other}")
        elif a[path] != b[path]:
            faults.append(f"{path!r}: {_short(a[path])} against {_short(b[path])}")
    return faults


def _short(facts: Facts) -> str:
    content = facts[5]
    if isinstance(content, tuple):
        content = f"{content[0]} bytes, hash {hash(content[1]) & 0xFFFFFF:x}"
    return f"{facts[0]:o} {facts[1:5]} {content}"


# ---- the campaign


def storm_toml(place: Place) -> str:
    """Of a node with the three trees."""
    return TOML.format(
        name=place.name, state_dir=place.state_dir, run_dir=place.run_dir, listen=place.listen, peer=place.peer,
        root=place.root,
    )  # fmt: skip


class Storm:
    """One pair under hostile programs; engines are killed or frozen in between."""

    def __init__(self, directory: str, *, seed: int, operations: int) -> None:
        self.seed = seed
        self.operations = operations
        self.random = random.Random(seed)
        self.pair = LocalPair(directory, storm_toml)
        for tree in TREES:
            os.makedirs(os.path.join(self.pair.a.place.root, tree))

    def run(self, rounds: int) -> None:
        """Raises AssertionError with the seed when the trees are not equal after a round."""
        print(f"tree storm: seed {self.seed}, {rounds} rounds", flush=True)
        with self.pair:
            self.pair.start()
            for number in range(1, rounds + 1):
                self.round(number)

    def round(self, number: int) -> None:
        """Storms over all trees, faults meanwhile, then the barrier and the comparison."""
        writers = [self._writer(tree, number) for tree in TREES]
        try:
            while any(writer.poll() is None for writer in writers):
                time.sleep(self.random.uniform(0.0, 0.6))
                self.fault()
        finally:
            for writer in writers:
                writer.kill()
                writer.wait()
        assert [writer.returncode for writer in writers] == [0, 0, 0], self.seed
        self.pair.until_streaming()
        missing = self.pair.a.wait_replicated(timeout_s=60)
        assert missing == (), f"seed {self.seed}, round {number}: {missing}\n{self.pair.b.log_tail()}"
        self.judge(number)

    def judge(self, number: int) -> None:
        """Both trees are equal; nothing temporary of ours remains."""
        a, b = self.pair.a.place.root, self.pair.b.place.root
        for tree in TREES:
            faults = tree_differences(os.path.join(a, tree), os.path.join(b, tree))
            assert not faults, f"seed {self.seed}, round {number}, {tree}: {len(faults)}\n" + "\n".join(faults[:15])

    def fault(self) -> None:
        """Something that happens to an engine; often nothing."""
        node, role = self.random.choice([(self.pair.a, "active"), (self.pair.b, "standby")])
        kind = self.random.randrange(4)
        if kind == 0:
            self._restart(node, role)
        elif kind == 1:
            node.kill(signal.SIGSTOP)
            time.sleep(self.random.uniform(0.0, 0.7))
            node.kill(signal.SIGCONT)

    def _restart(self, node: LocalNode, role: str) -> None:
        node.kill()
        time.sleep(self.random.choice([0.0, self.random.uniform(0.0, 0.8)]))
        node.serve(role, 1)

    def _writer(self, tree: str, number: int) -> subprocess.Popen[bytes]:
        root = os.path.join(self.pair.a.place.root, tree)
        seed = self.seed * 1000 + number * 10 + TREES.index(tree)
        line = [sys.executable, "-m", "tests.support.tree_storm", root, str(seed), str(self.operations)]
        return subprocess.Popen(line)


def main() -> None:
    """The hostile program."""
    writer = Writer(sys.argv[1], int(sys.argv[2]))
    for _ in range(int(sys.argv[3])):
        writer.step()
    shutil.rmtree(writer.outside)


if __name__ == "__main__":
    main()
