"""How a webhook proves who sent it. Pure.

The signature is HMAC-SHA256 of ``<timestamp>.<body>`` with the secret that both ends know, in hexadecimal; timestamp is
in whole seconds since 1970 and stands in a header of its own. A receiver compares in constant time and refuses what is
older than it tolerates; the id, the same in every repetition, tells it what it has already.
"""

from __future__ import annotations

import hmac

ID = "X-HA-Sync-Id"
TIMESTAMP = "X-HA-Sync-Timestamp"
SIGNATURE = "X-HA-Sync-Signature"


def signature_of(secret: bytes, *, timestamp: int, body: bytes) -> str:
    """The value of the header ``SIGNATURE``."""
    return "sha256=" + hmac.new(secret, b"%d.%s" % (timestamp, body), "sha256").hexdigest()


def fits(secret: bytes, signature: str, *, timestamp: int, body: bytes) -> bool:
    """Whether a message is whole, and of somebody who knows the secret."""
    return hmac.compare_digest(signature_of(secret, timestamp=timestamp, body=body), signature)
