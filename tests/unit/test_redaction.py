"""What is taken out of a supporter's archive, and what stays."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_sync.cli.redaction import GONE, KNOWN_MIN, Redactor

WORD = "Hunter2-Zebra"


def marker(what: str) -> str:
    """As it stands in a key's file; made here, so that nothing in this file looks like a key."""
    dashes = 5 * "-"
    return f"{dashes}{what} PRIVATE KEY{dashes}"


@pytest.mark.parametrize(
    "text",
    [
        f"password={WORD}",
        f'{{"smtp_password": "{WORD}", "x": 1}}',
        f"--db-password {WORD} --host x",
        f'["/bin/x", "--token", "{WORD}"]',
        f"mysql://root:{WORD}@db/x",
        f"Authorization: Bearer {WORD}",
        f"secret : {WORD}",
        f"{marker('BEGIN EC')}\n{WORD}\n{marker('END EC')}",
        f"{marker('BEGIN')}\n{WORD} and the rest was cut",
        f"$argon2id$v=19$m=1,t=2${WORD}",
        f"https://x/?api_key={WORD}&y=1",
    ],
)
def test_what_looks_like_a_secret_goes(text: str) -> None:
    assert WORD not in Redactor().text(text)
    assert GONE in Redactor().text(text)


def test_a_pairing_token_goes_however_it_is_written() -> None:
    token = "HS1" + base64.b32encode(bytes(range(90))).decode().rstrip("=")
    spaced = "-".join(token[at : at + 8] for at in range(0, len(token), 8))
    for form in (token, token.lower(), spaced):
        assert Redactor().text(f"join {form} now") == f"join {GONE} now"


@pytest.mark.parametrize(
    "text",
    [
        "engine attached",
        'password_file = "/etc/ha-sync/mail.secret"',
        "the cluster IP is not held: reason=carrier lost",
        "https://receiver.example.org/hook",
        '{"what": "full backup ended", "token_id": 7, "monkey": "banana"}',
        "tokens.json 0600 812",
        "spinning=3 happiness: 4",
    ],
)
def test_what_is_no_secret_stays_as_it_is(text: str) -> None:
    assert Redactor([b"another-secret"]).text(text) == text


@given(st.binary(min_size=KNOWN_MIN + 2, max_size=40), st.text(max_size=20), st.text(max_size=20))
def test_a_known_secret_goes_in_every_form(secret: bytes, before: str, after: str) -> None:
    redact = Redactor([secret])
    forms = [secret.hex(), base64.b64encode(secret).decode()]
    if secret.decode(errors="replace").isprintable() and secret.strip() == secret:
        forms.append(secret.decode(errors="replace"))
    for form in forms:
        shown = redact.text(f"{before}{form}{after}")
        assert form.rstrip("=") not in shown.replace(GONE, "\0")


def test_settings_are_redacted_by_their_keys_and_commands_by_their_options() -> None:
    settings = {
        "alarm": [{"name": "ops", "password": WORD, "password_file": "/x/y", "port": 25}],
        "service": [{"start": ["/bin/x", "--secret", WORD, "--keep", "this"], "stop": ["/bin/x", f"--token={WORD}"]}],
        "node": {"pin": 1234, "enabled": True, "secret": ""},
    }
    shown = Redactor().value(settings)
    assert WORD not in json.dumps(shown)
    assert shown == {
        "alarm": [{"name": "ops", "password": GONE, "password_file": "/x/y", "port": 25}],
        "service": [{"start": ["/bin/x", "--secret", GONE, "--keep", "this"], "stop": ["/bin/x", f"--token={GONE}"]}],
        "node": {"pin": GONE, "enabled": True, "secret": ""},
    }


@pytest.mark.parametrize("piece", ["x", "a.", "-", "--a", " : ", "token ", "=", "a-"])
def test_a_long_line_is_no_trap(piece: str) -> None:
    line = piece * (1024 * 1024 // len(piece))
    assert len(Redactor([b"another-secret"]).text(line)) > 0
