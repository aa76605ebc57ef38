"""The process that delivers one message: the order on standard input, the answer as the last line of standard output.

Ends with 0 whatever came of the delivery. Says nothing of a secret.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from ha_agent.alarms.delivery import REASON_MAX, Delivered, Order, Outcome, from_plain
from ha_agent.settings.values import TargetKind


def main() -> None:
    """Reads, delivers, answers."""
    delivered = deliver(from_plain(json.loads(sys.stdin.buffer.read())))
    sys.stdout.write(json.dumps(asdict(delivered) | {"outcome": delivered.outcome.value}) + "\n")


def deliver(order: Order) -> Delivered:
    """Never raises for what goes wrong out there."""
    # Each loads only what it needs: a webhook needs no mail.
    if order.target.kind is TargetKind.MAIL:
        from ha_agent.alarms.mail import send
    else:
        from ha_agent.alarms.webhook import post as send
    try:
        return send(order)
    except Exception as failed:  # noqa: BLE001 - libraries raise what they like: the message is kept and tried again
        return Delivered(outcome=Outcome.LATER, reason=_words(failed)[:REASON_MAX])


def _words(failed: Exception) -> str:
    if isinstance(failed, TimeoutError):
        return "no answer in time"
    # smtplib's errors carry a code and the server's words; those of ssl and the kernel speak for themselves.
    code, said = getattr(failed, "smtp_code", None), getattr(failed, "smtp_error", b"")
    if code is not None:
        text = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        return f"{code} {' '.join(text.split())}"
    if isinstance(failed, OSError) and failed.filename is None and type(failed).__module__ == "builtins":
        return failed.strerror or str(failed)
    spoken = isinstance(failed, (OSError, ValueError)) and str(failed)  # sentences; others need their kind beside them
    return spoken or f"{type(failed).__name__}: {failed}"


if __name__ == "__main__":
    main()
