from __future__ import annotations

import ipaddress

from hypothesis import example, given
from hypothesis import strategies as st

from ha_agent.cluster_ip import frames
from ha_agent.cluster_ip.frames import Claim

MAC = "00:0b:82:aa:bb:01"
fours = st.integers(1, (1 << 32) - 1).map(ipaddress.IPv4Address)
sixes = st.integers(1, (1 << 128) - 1).map(ipaddress.IPv6Address)
macs = st.binary(min_size=6, max_size=6).map(lambda raw: raw.hex(":"))


@given(st.binary(max_size=300))
@example(bytes(12) + b"\x08\x06")
@example(bytes(12) + b"\x86\xdd" + bytes(40))
def test_any_frame_is_a_claim_or_none(frame: bytes) -> None:
    assert isinstance(frames.claim(frame), Claim | None)


@given(address=fours, mac=macs)
def test_an_announcement_claims_the_address_for_its_mac(address: ipaddress.IPv4Address, mac: str) -> None:
    for frame in frames.announce_ipv4(address, mac=mac):
        assert frames.claim(frame) == Claim(address=address, mac=mac, sender=mac)


@given(address=sixes, mac=macs, router=st.booleans())
def test_an_advertisement_claims_the_address_for_its_mac(address: ipaddress.IPv6Address, mac: str, router) -> None:
    frame = frames.announce_ipv6(address, mac=mac, router=router)
    assert frames.claim(frame) == Claim(address=address, mac=mac, sender=mac)


@given(address=sixes, data=st.data())
def test_an_advertisement_with_a_bit_changed_is_never_taken_for_another(address, data) -> None:
    """The checksum covers addresses and body; the Ethernet header (the sender) is not its matter."""
    frame = bytearray(frames.announce_ipv6(address, mac=MAC, router=False))
    at = data.draw(st.integers(14, len(frame) - 1))
    frame[at] ^= 1 << data.draw(st.integers(0, 7))
    told = frames.claim(bytes(frame))
    assert told is None or told == Claim(address=address, mac=MAC, sender=MAC)


@given(target=fours, own=fours)
def test_a_probe_claims_nothing_and_a_request_only_its_own_address(target, own) -> None:
    assert frames.claim(frames.ask_ipv4(target, mac=MAC, own=None)) is None
    assert frames.claim(frames.ask_ipv4(target, mac=MAC, own=own)) == Claim(address=own, mac=MAC, sender=MAC)


@given(target=sixes)
def test_a_solicitation_claims_nothing(target: ipaddress.IPv6Address) -> None:
    assert frames.claim(frames.ask_ipv6(target, mac=MAC, own=None)) is None
