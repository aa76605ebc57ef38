"""Takes secrets out of what is shown to a supporter. Pure.

Two ways, one after the other: what the settings and files of this node say is secret is taken out wherever it stands,
in the forms that a program may have given it; then whatever looks like a secret, by the word before it or by its shape.
Too much is taken rather than too little. What stays is never changed.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping
from typing import Final
from urllib.parse import quote

GONE: Final = "[removed]"
KNOWN_MIN: Final = 4
"""Shorter than this, a known secret would be taken out of half of all words; whoever has such a one has none."""

_NAMES = r"pass(?:word|wd|phrase)?|pwd|secret|token|credentials?|api[_-]?key|private[_-]?key|auth(?:orization)?|psk|pin"
_SECRET_NAME = re.compile(rf"(?:^|[_.\-\s])(?:{_NAMES})$", re.IGNORECASE)
_BLOCKS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"\bHS1(?:-?[A-Z2-7]){60,}", re.IGNORECASE),  # a pairing token
    re.compile(r"\$(?:argon2\w*|scrypt|2[aby]|[156y]|pbkdf2[\w-]*)\$[^\s\"']+"),  # a hashed password
)
_BEFORE = (
    re.compile(r"(\b[a-z][a-z0-9+.-]{0,20}://)[^/@\s\"']+(?=@)", re.IGNORECASE),  # user and password of a URL
    re.compile(r"(\bauthorization\s*[:=]\s*)[^\r\n\"']+", re.IGNORECASE),
    # name=value, name: value, "name": "value"
    re.compile(rf"((?<![a-z0-9])(?:{_NAMES})[\"']?\s*[:=]\s*[\"']?)(?!\[removed\])[^\s\"',;&}}\])]+", re.IGNORECASE),
    # --name value, "--name", "value"
    re.compile(
        rf"(--?(?:[a-z0-9._]{{0,20}}-){{0,3}}(?:{_NAMES})[\"']?[\s,]+[\"']?)(?!--|\[removed\])[^\s\"',\])]+",
        re.IGNORECASE,
    ),
)
"""Every repetition before the name is bounded: a long line costs no more than its length."""


class Redactor:
    """Knows the secrets of this node."""

    def __init__(self, secrets: Iterable[bytes] = ()) -> None:
        forms = {form for secret in secrets for form in _forms(secret) if len(form) >= KNOWN_MIN}
        # The longest first: one that is a part of another must not leave the rest of it.
        longest = sorted(forms, key=lambda form: (-len(form), form))
        self._known = re.compile("|".join(map(re.escape, longest))) if longest else None

    def text(self, text: str) -> str:
        """Without what is secret."""
        if self._known is not None:
            text = self._known.sub(GONE, text)
        for pattern in _BLOCKS:
            text = pattern.sub(GONE, text)
        for pattern in _BEFORE:
            text = pattern.sub(rf"\1{GONE}", text)
        return text

    def value(self, value: object, *, key: str = "") -> object:
        """The same of what a settings file, or JSON, says: by the keys, then by each text."""
        if isinstance(value, Mapping):
            return {str(name): self.value(item, key=str(name)) for name, item in value.items()}
        if isinstance(value, list | tuple):
            return self._list(value, key)
        if value not in (None, "") and not isinstance(value, bool) and _SECRET_NAME.search(key):
            return GONE
        return self.text(value) if isinstance(value, str) else value

    def _list(self, values: list[object] | tuple[object, ...], key: str) -> list[object]:
        """A command line too: what follows an option that names a secret is one."""
        found: list[object] = []
        option = ""
        for value in values:
            secret = bool(option) and isinstance(value, str) and not value.startswith("-")
            found.append(GONE if secret else self.value(value, key=key))
            option = value if isinstance(value, str) and _is_option(value) else ""
        return found


def _is_option(word: str) -> bool:
    return word.startswith("-") and "=" not in word and bool(_SECRET_NAME.search(word.lstrip("-")))


def _forms(secret: bytes) -> set[str]:
    plain = secret.strip()
    forms = {secret.hex(), secret.hex().upper(), base64.b64encode(secret).decode().rstrip("=")}
    forms |= {base64.urlsafe_b64encode(secret).decode().rstrip("="), plain.hex()}
    forms |= {base64.b64encode(plain).decode().rstrip("=")}
    if plain:
        text = plain.decode(errors="replace")
        if text.isprintable():
            forms |= {text, quote(text, safe="")}
    return forms
