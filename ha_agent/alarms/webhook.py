"""A message as JSON, posted to a URL, signed. Only for ``deliver``. Blocking.

A redirect is not followed: what is signed for one place is not handed to another. What the other end says decides:
2xx is taken; 400, 413, 415 and 422 mean this very message; everything else may be better later.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import json
from urllib.parse import urlsplit

from ha_agent.alarms.delivery import Delivered, Order, Outcome
from ha_agent.alarms.secret import read_secret
from ha_agent.alarms.signature import ID, SIGNATURE, TIMESTAMP, signature_of
from ha_agent.alarms.tls import context_of

OF_THIS_MESSAGE = {400, 413, 415, 422}
ANSWER_MAX = 2000
SHOWN_MAX = 120


def post(order: Order) -> Delivered:
    """Raises what ``deliver`` turns into "later"."""
    target, parts = order.target, urlsplit(order.target.url)
    body = json.dumps({"id": order.id, **order.document}, separators=(",", ":")).encode()
    headers = {"Content-Type": "application/json", "User-Agent": "ha-sync", "Connection": "close", ID: order.id}
    if target.secret_file:
        timestamp = int(dt.datetime.now(dt.UTC).timestamp())
        headers[TIMESTAMP] = str(timestamp)
        headers[SIGNATURE] = signature_of(read_secret(target.secret_file), timestamp=timestamp, body=body)
    assert parts.hostname is not None, "the settings saw to it"
    connection = (
        http.client.HTTPSConnection(parts.hostname, parts.port, timeout=target.deadline_s, context=context_of(target))
        if parts.scheme == "https"
        else http.client.HTTPConnection(parts.hostname, parts.port, timeout=target.deadline_s)
    )
    with contextlib.closing(connection):
        query = f"?{parts.query}" if parts.query else ""
        connection.request("POST", (parts.path or "/") + query, body=body, headers=headers)
        answer = connection.getresponse()
        said = answer.read(ANSWER_MAX).decode(errors="replace")
    return _judged(answer, said)


def _judged(answer: http.client.HTTPResponse, said: str) -> Delivered:
    status = answer.status
    if 200 <= status < 300:
        return Delivered(outcome=Outcome.SENT)
    reason = f"HTTP {status} {answer.reason}".strip()
    if 300 <= status < 400:
        return Delivered(outcome=Outcome.LATER, reason=f"{reason}: a redirect is not followed, name the right URL")
    shown = " ".join(said.split())[:SHOWN_MAX]
    asked = answer.getheader("Retry-After", "")
    return Delivered(
        outcome=Outcome.REFUSED if status in OF_THIS_MESSAGE else Outcome.LATER,
        reason=f"{reason}: {shown}" if shown else reason,
        asked_s=float(asked) if asked.isascii() and asked.isdigit() else 0.0,
    )
