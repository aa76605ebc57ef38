"""A password as what is stored of it: ``scrypt$LOG2N$R$P$SALT$HASH`` (RFC 7914), base64 without padding.

The parameters stand in the text, so that they can grow and old ones still match. A check costs 32 MiB and about a tenth
of a second. Blocking.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import re

LOG2N, R, P = 15, 8, 3
SALT_BYTES, HASH_BYTES = 16, 32
LOG2N_MAX, R_MAX, P_MAX = 17, 16, 16  # more would let a stored text stop the machine
PASSWORD_MIN, PASSWORD_MAX = 8, 1024

_SECRET = re.compile(r"scrypt\$(\d{1,2})\$(\d{1,2})\$(\d{1,2})\$([A-Za-z0-9+/]{16,86})\$([A-Za-z0-9+/]{43,86})\Z")


def make_secret(password: str) -> str:
    """Of a password of 8 to 1024 characters. Raises ``ValueError`` with the remedy."""
    if not PASSWORD_MIN <= len(password) <= PASSWORD_MAX:
        raise ValueError(f"a password has {PASSWORD_MIN} to {PASSWORD_MAX} characters")
    salt = os.urandom(SALT_BYTES)
    return f"scrypt${LOG2N}${R}${P}${_text(salt)}${_text(_derived(password, salt, LOG2N, (R, P), HASH_BYTES))}"


def matches(secret: str, password: str) -> bool:
    """Whether it is this password. A text that is no secret matches nothing."""
    found = _SECRET.match(secret)
    if found is None or problem_of(secret) or len(password) > PASSWORD_MAX:
        return False
    log2n, r, p = (int(found[number]) for number in (1, 2, 3))
    wanted = _bytes(found[5])
    return hmac.compare_digest(_derived(password, _bytes(found[4]), log2n, (r, p), len(wanted)), wanted)


def problem_of(secret: str) -> str:
    """Why a text is no secret, or an empty string."""
    found = _SECRET.match(secret)
    if found is None:
        return "is not scrypt$LOG2N$R$P$SALT$HASH"
    if not (10 <= int(found[1]) <= LOG2N_MAX and 1 <= int(found[2]) <= R_MAX and 1 <= int(found[3]) <= P_MAX):
        return "has parameters out of range"
    try:
        return "" if _bytes(found[4]) and _bytes(found[5]) else "is empty"
    except binascii.Error:
        return "is not base64"


def _derived(password: str, salt: bytes, log2n: int, rp: tuple[int, int], length: int) -> bytes:
    r, p = rp
    memory = 128 * r * (1 << log2n) + 128 * r * p + (1 << 20)
    return hashlib.scrypt(password.encode(), salt=salt, n=1 << log2n, r=r, p=p, maxmem=memory, dklen=length)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode().rstrip("=")


def _bytes(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
