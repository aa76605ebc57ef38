"""Whatever an Active does to its tree, the Standby's tree becomes equal to it."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.tree_apply_feed import settings as tree_settings
from tests.support.tree_apply_feed import standby, tree_of
from tests.support.tree_apply_model import Producer

ROUNDS = int(os.environ.get("HA_SYNC_ROUNDS", "15"))


async def follow(base: str, seed: int, groups: int, together: int) -> None:
    producer = Producer(seed)
    node = await standby(tree_settings(os.path.join(base, "root")), os.path.join(base, "catalogue.db"))
    try:
        for number in range(1, groups + 1):
            await node.send(*producer.group())
            if number % together == 0 or number == groups:
                await node.until(lambda: bool(node.failures) or node.sink.applied.sequence == node.sequence)
                assert not node.failures, (seed, number, node.failures, node.needs)
                assert tree_of(os.path.join(base, "root")) == producer.told(), (seed, number)
        told = await node.inventory()
        assert {path for path in told if path} == set(producer.tree)
        assert not node.events, node.events
    finally:
        await node.sink.close()


@pytest.mark.req("R22")
@settings(max_examples=ROUNDS, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), together=st.sampled_from([1, 3, 8]))
def test_the_standbys_tree_follows_the_actives(seed: int, together: int) -> None:
    base = tempfile.mkdtemp(prefix="tree-apply-")
    try:
        asyncio.run(follow(base, seed, 24, together))
    finally:
        shutil.rmtree(base)
