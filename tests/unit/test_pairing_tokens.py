"""The token's text: every mistake in copying it is noticed, and what it says comes back."""

from __future__ import annotations

import contextlib
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_sync.errors import Refused
from ha_sync.pairing import certificates
from ha_sync.pairing.onetime import (
    PREFIX,
    bootstrap_authority,
    bootstrap_certificate,
    bootstrap_key,
    decode,
    encode,
    is_proof,
    new_token,
    prove,
)

pytestmark = pytest.mark.req("R3")

AUTHORITY = certificates.new_key().public_key()
TOKEN = new_token(
    cluster_id="0a0b0c0d-1111-4222-8333-444455556666", authority_key=AUTHORITY, address="pbx-a.example:9527"
)
TEXT = encode(TOKEN)
ALPHABET = string.ascii_uppercase + "234567"


@given(address=st.text(min_size=1, max_size=60).filter(lambda text: len(text.encode("utf-8", "replace")) < 200))
def test_a_token_says_what_was_put_into_it(address: str) -> None:
    if any(0xD800 <= ord(character) <= 0xDFFF for character in address):
        return  # no text of a program's user
    token = new_token(cluster_id=TOKEN.cluster_id, authority_key=AUTHORITY, address=address)
    read = decode(encode(token))
    assert read.address == address
    assert (read.token_id, read.secret, read.cluster_id) == (token.token_id, token.secret, token.cluster_id)
    assert certificates.same_key(read.authority_key, AUTHORITY)


@given(at=st.integers(len(PREFIX), len(TEXT) - 1), wrong=st.sampled_from(ALPHABET))
def test_one_mistyped_character_is_noticed(at: int, wrong: str) -> None:
    mistyped = TEXT[:at] + wrong + TEXT[at + 1 :]
    if mistyped == TEXT:
        return
    if at == len(TEXT) - 1:
        # The last character has bits that carry nothing: it may give the same token, never another.
        with contextlib.suppress(Refused):
            assert encode(decode(mistyped)) == TEXT
        return
    with pytest.raises(Refused, match="mistyped"):
        decode(mistyped)


@given(first=st.integers(len(PREFIX), len(TEXT) - 2))
def test_two_swapped_characters_are_noticed(first: int) -> None:
    swapped = TEXT[:first] + TEXT[first + 1] + TEXT[first] + TEXT[first + 2 :]
    if swapped == TEXT:
        return
    with pytest.raises(Refused, match="mistyped"):
        decode(swapped)


@given(length=st.integers(0, len(TEXT) - 1))
def test_a_token_that_was_cut_off_is_noticed(length: int) -> None:
    with pytest.raises(Refused, match=r"mistyped|begins with"):
        decode(TEXT[:length])


@given(st.text(max_size=300))
def test_any_text_is_refused_or_read_never_a_crash(text: str) -> None:
    with pytest.raises(Refused):
        decode(text)


def test_case_blanks_and_line_ends_do_not_matter() -> None:
    wrapped = "\n ".join(TEXT.lower()[at : at + 40] for at in range(0, len(TEXT), 40))
    assert encode(decode(f"  {wrapped}\n")) == TEXT


def test_the_secret_is_not_shown_by_accident() -> None:
    assert TOKEN.secret.hex() not in repr(TOKEN)
    assert repr(TOKEN.secret) not in repr(TOKEN)


def test_both_sides_derive_the_same_bootstrap_authority() -> None:
    given_back = decode(TEXT)
    authority = bootstrap_authority(bootstrap_key(TOKEN).public_key(), TOKEN.token_id)
    certificate = bootstrap_certificate(given_back, certificates.new_key().public_key(), "node")
    assert certificates.is_issued_by(certificate, authority)


def test_another_secret_gives_another_authority() -> None:
    other = new_token(cluster_id=TOKEN.cluster_id, authority_key=AUTHORITY, address=TOKEN.address)
    authority = bootstrap_authority(bootstrap_key(TOKEN).public_key(), TOKEN.token_id)
    certificate = bootstrap_certificate(other, certificates.new_key().public_key(), "node")
    assert not certificates.is_issued_by(certificate, authority)


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_a_proof_is_for_one_request_only(parts: list[bytes], others: list[bytes]) -> None:
    public = bootstrap_key(TOKEN).public_key()
    proof = prove(TOKEN, tuple(parts))
    assert is_proof(public, proof, tuple(parts))
    assert is_proof(public, proof, tuple(others)) == (parts == others)


@given(st.binary(max_size=100))
def test_bytes_that_are_no_proof_prove_nothing(noise: bytes) -> None:
    assert not is_proof(bootstrap_key(TOKEN).public_key(), noise, (b"request",))
