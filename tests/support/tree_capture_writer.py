"""Another program at work in a tree: random operations from a seed. Run as ``python -m`` with root, seed, count.

Never more than a third of the files are removed in a run, so that no guard against mass deletion is met.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time


class Writer:
    """Does one thing after the other."""

    def __init__(self, root: str, seed: int) -> None:
        self.root = root
        self.random = random.Random(seed)
        self.names = [f"n{i}" for i in range(8)] + ["ü", "a-b", "a.b"]

    def directories(self) -> list[str]:
        return [d for d, _, _ in os.walk(self.root) if d.count("/") - self.root.count("/") < 4]

    def place(self) -> str:
        return os.path.join(self.random.choice(self.directories()), self.random.choice(self.names))

    def files(self) -> list[str]:
        return [os.path.join(d, f) for d, _, names in os.walk(self.root) for f in names if not f.startswith(".ha-")]

    def content(self) -> bytes:
        size = self.random.choice([0, 1, 100, 5000, 5000, 131072, 140_000, 400_000])
        return self.random.randbytes(size)

    def write(self) -> None:
        path = self.place()
        if not os.path.isdir(path) and not os.path.islink(path):
            with open(path, "wb") as file:
                file.write(self.content())

    def patch(self) -> None:
        if files := self.files():
            path = self.random.choice(files)
            if os.path.isfile(path) and not os.path.islink(path):
                with open(path, "r+b") as file:
                    file.seek(self.random.randrange(os.path.getsize(path) + 1))
                    file.write(self.random.randbytes(50))

    def append(self) -> None:
        path = self.place()
        if not os.path.isdir(path) and not os.path.islink(path):
            with open(path, "ab") as file:
                file.write(self.random.randbytes(3000))

    def mkdir(self) -> None:
        path = self.place()
        if not os.path.lexists(path):
            os.mkdir(path)
            for name in self.random.sample(self.names, 3):
                with open(os.path.join(path, name), "wb") as file:
                    file.write(self.random.randbytes(500))

    def move(self) -> None:
        source = self.random.choice(self.files() + self.directories()[1:] or [""])
        target = self.place()
        if not source or (target + "/").startswith(source + "/"):
            return
        try:
            os.rename(source, target)
        except OSError:
            return

    def move_in(self) -> None:
        outside = self.root + f".outside{self.random.random()}"
        os.makedirs(os.path.join(outside, "deep"))
        for name in ("x", "deep/y", "deep/z"):
            with open(os.path.join(outside, name), "wb") as file:
                file.write(self.content())
        target = self.place()
        if os.path.lexists(target):
            shutil.rmtree(outside)
        else:
            os.rename(outside, target)

    def replace_directory(self) -> None:
        below = self.directories()[1:]
        if below:
            path = self.random.choice(below)
            shutil.rmtree(path)
            os.mkdir(path)
            with open(os.path.join(path, "again"), "wb") as file:
                file.write(self.content())

    def symlink(self) -> None:
        path = self.place()
        if not os.path.lexists(path):
            os.symlink(self.random.choice(["nowhere", "../n1", "/etc/passwd"]), path)

    def hardlink(self) -> None:
        path, files = self.place(), self.files()
        if files and not os.path.lexists(path):
            os.link(self.random.choice(files), path, follow_symlinks=False)

    def attributes(self) -> None:
        if files := [f for f in self.files() if not os.path.islink(f)]:
            path = self.random.choice(files)
            os.chmod(path, self.random.choice([0o600, 0o644, 0o755]))
            if self.random.random() < 0.3:
                os.setxattr(path, "user.note", self.random.randbytes(5))
            os.utime(path, ns=(1, self.random.randrange(2**60)))

    def remove(self) -> None:
        if files := self.files():
            os.unlink(self.random.choice(files))

    def atomic(self) -> None:
        path = self.place()
        if not os.path.isdir(path):
            with open(path + ".new", "wb") as file:
                file.write(self.content())
            os.rename(path + ".new", path)

    def step(self) -> None:
        often = [self.write, self.write, self.patch, self.append, self.atomic, self.mkdir]
        seldom = [self.move, self.move, self.move_in, self.replace_directory, self.symlink, self.hardlink]
        self.random.choice(often + seldom + [self.attributes, self.remove])()
        if self.random.random() < 0.1:
            time.sleep(self.random.random() * 0.02)


def main() -> None:
    writer = Writer(sys.argv[1], int(sys.argv[2]))
    for _ in range(int(sys.argv[3])):
        writer.step()


if __name__ == "__main__":
    main()
