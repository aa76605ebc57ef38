"""What the kernel tells of addresses: one that goes is looked for at once, one that comes takes none away."""

from __future__ import annotations

import ipaddress
from types import SimpleNamespace

import pytest

from ha_agent.agent import Agent
from ha_agent.cluster_ip.links import Change, Overflow
from ha_agent.cluster_ip.netlink import AddressFacts, Index, Notice
from ha_agent.settings import settings_of
from tests.unit.test_agent_settings import HA

ADDRESS = AddressFacts(
    index=Index(2), address=ipaddress.ip_address("192.0.2.9"), prefix=32, label="eth0:ha", valid_s=1, created=7
)
GONE, RENEWED = Notice(gone=True, what=ADDRESS), Notice(gone=False, what=ADDRESS)


@pytest.mark.req("R13")
@pytest.mark.parametrize(
    ("changes", "looks"),
    [([GONE], 1), ([RENEWED], 0), ([RENEWED, GONE], 1), ([GONE, RENEWED], 1), ([Overflow()], 1), ([], 0)],
)
def test_the_address_is_looked_for_when_one_went_or_a_notice_was_lost(changes: list[Change], looks: int) -> None:
    looked: list[None] = []
    agent = Agent(settings_of({"ha": HA}, source="ha.toml"), on_tick=lambda: None)
    agent._deeds = SimpleNamespace(look_whether_held=lambda: looked.append(None))  # type: ignore[assignment]
    agent._see_link = lambda: None  # type: ignore[method-assign]
    agent.links_changed(changes)
    assert len(looked) == looks
