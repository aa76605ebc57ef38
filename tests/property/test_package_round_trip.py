"""``restore(export(x)) == x`` whatever x is; at every step of a restore the data is that of before or of after."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ha_sync.backup.package import swap as swapping
from ha_sync.backup.package.swap import INTENT_NAME, SWEEPING, recover, sweep
from tests.support.package_site import Looks, Site

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "12"))
SEEDS = st.integers(0, 2**32)


@contextmanager
def site() -> Iterator[Site]:
    base = tempfile.mkdtemp(prefix="package-")
    try:
        yield Site(os.path.join(base, "node"))
    finally:
        shutil.rmtree(base)


@pytest.mark.req("R24", "R5")
@settings(max_examples=ROUNDS)
@given(seed=SEEDS, change=SEEDS)
def test_a_restore_brings_back_what_was_exported(seed: int, change: int) -> None:
    with site() as node:
        node.furnish(seed)
        own(node, "before")
        exported = node.looks(own=False)
        packed = node.export()
        assert (packed.moving, packed.faults) == ((), ())
        assert node.looks(own=False) == exported, "an export changes nothing"
        node.verify()
        node.change(change)
        own(node, "now")
        present = only_own(node.looks(), node.looks(own=False))
        node.restore()
        assert node.looks(own=False) == exported
        assert only_own(node.looks(), exported) == present, "the node's own data stays"
        assert node.leftovers() == []


@pytest.mark.req("R24", "R5")
@settings(max_examples=ROUNDS)
@given(seed=SEEDS, change=SEEDS, step=st.integers(0, 60))
def test_a_restore_that_is_cut_off_at_any_step_leaves_the_data_before_or_after(
    seed: int, change: int, step: int
) -> None:
    with site() as node:
        node.furnish(seed)
        node.export()
        exported = node.looks(own=False)
        node.change(change)
        own(node, "now")
        before = node.looks()
        present = only_own(before, node.looks(own=False))
        with cut_off_at(node, step) as was_cut:
            node.restore()
        sweeping = was_cut == [SWEEPING]
        outcome = recover(node.state)
        found = node.looks()
        if outcome == "rolled back" or was_cut == ["before"]:
            assert found == before
        else:
            assert only_shared(found) == only_shared(exported)
            assert only_own(found, exported) == present
            assert outcome == ("completed" if was_cut and not sweeping else "")
        sweep(node.state)
        assert node.looks() == found
        assert node.leftovers() == []
        assert recover(node.state) == ""


class CutOff(BaseException):
    """As a power cut: nothing after it runs."""


@contextmanager
def cut_off_at(node: Site, step: int) -> Iterator[list[str]]:
    """Every change of a name, and every note of the intent, is a step: before that many have been made, all ends."""
    taken = 0
    was_cut: list[str] = []
    originals = {name: getattr(swapping, name) for name in ("_move", "write_durably", "_forget", "_clear", "_apply")}

    def counted(name: str) -> object:
        def call(*arguments: object) -> None:
            nonlocal taken
            if taken == step:
                was_cut.append(phase_of(node))
                raise CutOff
            taken += 1
            originals[name](*arguments)

        return call

    for name in originals:
        setattr(swapping, name, counted(name))
    try:
        yield was_cut
    except CutOff:
        pass
    finally:
        for name, original in originals.items():
            setattr(swapping, name, original)


def phase_of(node: Site) -> str:
    try:
        return str(json.loads(Path(node.state, INTENT_NAME).read_bytes())["phase"])
    except FileNotFoundError:
        return "before"


def own(node: Site, content: str) -> None:
    """What is the node's own in a tree: beside what is replicated, and in a folder of its own."""
    for folder in ("", "kept"):
        os.makedirs(os.path.join(node.path("files"), folder), exist_ok=True)
        Path(node.path("files"), folder, "own-file").write_text(content)
    os.makedirs(os.path.join(node.path("files"), "own-folder"), exist_ok=True)
    Path(node.path("files"), "own-folder", "deep").write_text(content)


def only_own(everything: Looks, shared: Looks) -> Looks:
    found = {path: facts for path, facts in everything.items() if path not in shared and "own-" in path}
    for path in ("config.db/settings", "config.db/network"):
        rows = everything.get(path, ())
        found[path] = tuple(sorted((row[1:] for row in rows if row not in shared.get(path, ())), key=repr))
    return found


def only_shared(looks: Looks) -> Looks:
    return {
        path: facts
        for path, facts in looks.items()
        if "own-" not in path and path not in {"config.db/settings", "config.db/network", "files/kept", "files/."}
    }


@pytest.mark.req("R24")
@settings(max_examples=ROUNDS)
@given(seed=SEEDS, change=SEEDS, step=st.integers(0, 40), again=st.integers(0, 40))
def test_an_undoing_that_is_cut_off_is_undone_once_more(seed: int, change: int, step: int, again: int) -> None:
    with site() as node:
        node.furnish(seed)
        node.export()
        node.change(change)
        own(node, "now")
        before = node.looks()
        with cut_off_at(node, step):
            swap, _ = node.stage()
            swap.exchange()
        with cut_off_at(node, again):
            recover(node.state)
        recover(node.state)
        assert node.looks() == before
        with cut_off_at(node, 0):
            sweep(node.state)
        sweep(node.state)
        assert node.looks() == before
        assert node.leftovers() == []
