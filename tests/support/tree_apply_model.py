"""A producer of random groups of tree changes, and the tree that each of them must lead to."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests.support.tree_apply_feed import Part, copy, delete, directory, grow, link, meta, put, put_blocks

BLOCK = 128 * 1024
NAMES = [b"a", b"b", b"c.txt", b"d", b"e\xff", b"msg0000.txt", b"msg0000.wav"]


class Producer:
    """Keeps the Active's tree: ``tree[path]`` as ``tree_of`` tells it."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.tree: dict[bytes, tuple[object, ...]] = {}
        self._growing: dict[bytes, bytes] = {}
        self._unit = 0

    def told(self) -> dict[str, object]:
        return {path.decode("utf-8", "surrogateescape"): value for path, value in self.tree.items()}

    def group(self) -> list[Part]:
        parts: list[Part] = []
        for _ in range(self._random.randint(1, 6)):
            parts += self._random.choice(self._choices())()
        return parts

    def _choices(self) -> list[Callable[[], list[Part]]]:
        return [
            self._write, self._write, self._write, self._patch, self._copy, self._mkdir, self._mkdir, self._link,
            self._delete, self._chmod, self._grow, self._grow, self._finish,
        ]  # fmt: skip

    def _below(self, path: bytes) -> list[bytes]:
        return [each for each in self.tree if each.startswith(path + b"/")]

    def _place(self) -> bytes:
        parents = [b""] + [
            path for path, value in self.tree.items() if value[0] == "directory" and path.count(b"/") < 3
        ]
        parent = self._random.choice(parents)
        name = self._random.choice(NAMES)
        return parent + b"/" + name if parent else name

    def _files(self) -> list[bytes]:
        return [path for path, value in self.tree.items() if value[0] == "file"]

    def _content(self) -> bytes:
        size = self._random.choice([0, 1, 100, 3000, 3000, 2 * BLOCK + 5])
        return self._random.randbytes(size)

    def _replace(self, path: bytes, value: tuple[object, ...]) -> None:
        for each in self._below(path):
            del self.tree[each]
        self._forget_growth_below(path)
        self.tree[path] = value

    def _forget_growth_below(self, path: bytes) -> None:
        for each in [each for each in self._growing if each.startswith(path + b"/")]:
            del self._growing[each]

    def _write(self) -> list[Part]:
        path, content = self._place(), self._content()
        mode = self._random.choice([0o600, 0o644, 0o4755, 0o000])
        self._replace(path, ("file", mode, content))
        self._growing.pop(path, None)
        self._unit += 1
        return [put(path, content, mode=mode, unit=self._random.choice([0, self._unit]))]

    def _patch(self) -> list[Part]:
        large = [path for path in self._files() if len(self.tree[path][2]) > BLOCK and path not in self._growing]  # type: ignore[arg-type]
        if not large:
            return []
        path = self._random.choice(large)
        before: bytes = self.tree[path][2]  # type: ignore[assignment]
        number = self._random.randrange(-(-len(before) // BLOCK))
        at = number * BLOCK
        after = before[:at] + self._random.randbytes(len(before[at : at + BLOCK])) + before[at + BLOCK :]
        self._replace(path, ("file", self.tree[path][1], after))
        return [put_blocks(path, after, [number], mode=self.tree[path][1])]

    def _copy(self) -> list[Part]:
        if not self._files():
            return []
        source, path = self._random.choice(self._files()), self._place()
        if source == path or source.startswith(path + b"/") or path.startswith(source + b"/"):
            return []
        content: bytes = self.tree[source][2]  # type: ignore[assignment]
        self._replace(path, ("file", 0o640, content))
        self._growing.pop(path, None)
        return [copy(path, source, content, mode=0o640)]

    def _mkdir(self) -> list[Part]:
        path = self._place()
        mode = self._random.choice([0o755, 0o500])
        kept = self.tree.get(path, ("",))[0] == "directory"
        before = [] if kept or path not in self.tree else [delete(path)]
        self.tree[path] = ("directory", mode)
        if before:
            self._forget_growth_below(path)
        self._growing.pop(path, None)
        return [*before, directory(path, mode=mode)]

    def _link(self) -> list[Part]:
        path = self._place()
        self._replace(path, ("link", "over/there"))
        self._growing.pop(path, None)
        return [link(path, b"over/there")]

    def _delete(self) -> list[Part]:
        if not self.tree:
            return []
        path = self._random.choice(list(self.tree))
        for each in [path, *self._below(path)]:
            del self.tree[each]
        for each in [each for each in self._growing if each == path or each.startswith(path + b"/")]:
            del self._growing[each]
        return [delete(path)]

    def _chmod(self) -> list[Part]:
        if not self._files():
            return []
        path = self._random.choice(self._files())
        self.tree[path] = ("file", 0o666, self.tree[path][2])
        return [meta(path, mode=0o666)]

    def _grow(self) -> list[Part]:
        known = [path for path in self._growing if self._parent_stands(path)]
        path = self._random.choice(known) if known and self._random.random() < 0.7 else self._place()
        if path in self.tree:
            return []
        before = self._growing.get(path, b"")
        more = self._random.randbytes(self._random.choice([1, 32768]))
        self._growing[path] = before + more
        return [grow(path, len(before), more)]

    def _finish(self) -> list[Part]:
        known = [path for path in self._growing if self._parent_stands(path) and path not in self.tree]
        if not known:
            return []
        path = self._random.choice(known)
        grown = self._growing.pop(path)
        content = b"\xff" + grown[1:]
        sent = [0] if len(grown) else []
        self.tree[path] = ("file", 0o644, content)
        return [put_blocks(path, content, sent)]

    def _parent_stands(self, path: bytes) -> bool:
        parent = path.rpartition(b"/")[0]
        return not parent or self.tree.get(parent, ("",))[0] == "directory"
