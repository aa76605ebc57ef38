"""What the kernel tells of addresses: one that goes is looked for at once; one that comes, unless we renewed it."""

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
    [
        ([GONE], "always"),
        ([RENEWED], "unless renewed"),
        ([RENEWED, GONE], "always"),
        ([GONE, RENEWED], "always"),
        ([Overflow()], "always"),
        ([Overflow(), RENEWED], "always"),
        ([], ""),
    ],
)
def test_the_address_is_looked_for_when_one_went_came_or_a_notice_was_lost(changes: list[Change], looks: str) -> None:
    looked: list[str] = []

    def look(*, unless_seen_since: float = float("inf")) -> None:
        looked.append("always" if unless_seen_since == float("inf") else "unless renewed")

    agent = Agent(settings_of({"ha": HA}, source="ha.toml"), on_tick=lambda: None)
    agent._deeds = SimpleNamespace(look_whether_held=look)  # type: ignore[assignment]
    agent._see_link = lambda: None  # type: ignore[method-assign]
    agent.links_changed(changes)
    assert looked == [looks][: bool(looks)]
