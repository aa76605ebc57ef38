"""A message as mail, by SMTP. Only for ``deliver``. Blocking.

What the settings say of encryption holds or nothing is sent: a server without STARTTLS is no reason to go on in plain
text. The Message-ID is the same in every repetition. A 5yz answer to this message, or to every recipient, means this
very message; whatever is wrong with the server or the login may be better later.
"""

from __future__ import annotations

import datetime as dt
import email.message
import email.policy
import email.utils
import smtplib

from ha_agent.alarms.delivery import Delivered, Order, Outcome
from ha_agent.alarms.secret import read_secret
from ha_agent.alarms.tls import context_of
from ha_agent.alarms.wording import subject_of, text_of
from ha_agent.settings.values import Security, Target

GREETED_AS = "localhost"  # a look-up of one's own name may hang


def send(order: Order) -> Delivered:
    """Raises what ``deliver`` turns into "later"."""
    target = order.target
    with _connected(target) as server:
        if target.security is Security.STARTTLS:
            server.starttls(context=context_of(target))
            server.ehlo(GREETED_AS)
        if target.username:
            server.login(target.username, read_secret(target.secret_file).decode())
        try:
            refused = server.send_message(_message(order), target.sender, list(target.recipients))
        except smtplib.SMTPRecipientsRefused as error:
            return _refused({code for code, _ in error.recipients.values()}, "no recipient was taken", error.recipients)
        except (smtplib.SMTPDataError, smtplib.SMTPSenderRefused) as error:
            return _refused({error.smtp_code}, _said(error.smtp_error), {})
    return Delivered(outcome=Outcome.SENT, reason=_listed(refused))


def _connected(target: Target) -> smtplib.SMTP:
    if target.security is Security.TLS:
        return smtplib.SMTP_SSL(
            target.host, target.port, GREETED_AS, timeout=target.deadline_s, context=context_of(target)
        )
    return smtplib.SMTP(target.host, target.port, GREETED_AS, timeout=target.deadline_s)


def _message(order: Order) -> email.message.EmailMessage:
    target = order.target
    message = email.message.EmailMessage(policy=email.policy.SMTP)
    message["From"] = target.sender
    message["To"] = ", ".join(target.recipients)
    message["Subject"] = subject_of(order.document)
    message["Date"] = email.utils.format_datetime(dt.datetime.fromisoformat(str(order.document["at"])))
    message["Message-ID"] = f"<{order.id}@{target.sender.rpartition('@')[2]}>"
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(text_of(order.document))
    return message


def _refused(codes: set[int], words: str, recipients: dict[str, tuple[int, bytes]]) -> Delivered:
    outcome = Outcome.REFUSED if all(500 <= code < 600 for code in codes) else Outcome.LATER
    listed = _listed(recipients)
    return Delivered(outcome=outcome, reason=f"{words}: {listed}" if listed else f"{max(codes)} {words}")


def _listed(recipients: dict[str, tuple[int, bytes]]) -> str:
    return "; ".join(f"{who}: {code} {_said(said)}" for who, (code, said) in list(recipients.items())[:4])


def _said(answer: bytes | str) -> str:
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else answer
    return " ".join(text.split())
