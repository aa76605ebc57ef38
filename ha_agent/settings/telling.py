"""``[alarms]``, ``[[alarm]]`` and ``[report]``: whom the agent tells, how, and how often at most.

Secrets stand in files of their own, never here; whether such a file may be read is looked at when it is read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ha_agent.settings import form
from ha_agent.settings.entries import entry, name_of
from ha_agent.settings.reading import Faults, Table
from ha_agent.settings.values import (
    REPORT,
    AlarmSettings,
    Rates,
    ReportSettings,
    Security,
    Severity,
    Target,
    TargetKind,
)

PORTS = {Security.STARTTLS: 587, Security.TLS: 465, Security.NONE: 25}

OWN_KEYS: Mapping[TargetKind, tuple[str, ...]] = {
    TargetKind.MAIL: ("server", "security", "username", "password_file", "from", "to"),
    TargetKind.WEBHOOK: ("url", "secret_file"),
}

_MAILBOX = re.compile(r"[^\s@<>,;:\"()\[\]\\]{1,64}@[^\s@<>,;:\"()\[\]\\]{1,253}\Z", re.ASCII)
_URL = re.compile(r"https?://(?P<authority>[^\s/?#]+)([/?#][!-~]*)?\Z", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?\Z", re.ASCII)


def parse_alarms(top: Table, faults: Faults) -> AlarmSettings:
    """Everything that says whom to tell."""
    return AlarmSettings(rates=_rates(top), targets=_targets(top, faults), report=_report(top))


def _rates(top: Table) -> Rates:
    table = top.table("alarms")
    repeat_s = table.number("repeat_s")
    if 0 < repeat_s < 60:
        table.fault("repeat_s", "must be 0 (never) or at least 60 seconds")
    rates = Rates(
        repeat_s=repeat_s,
        group_s=table.number("group_s"),
        clear_after_s=table.number("clear_after_s"),
        messages_per_hour_max=table.integer("messages_per_hour_max"),
    )
    table.finish()
    return rates


def _targets(top: Table, faults: Faults) -> tuple[Target, ...]:
    found: list[Target] = []
    for number, values in enumerate(top.tables("alarm"), start=1):
        table = entry("alarm", number, values, faults, [target.name for target in found])
        kind = table.choice("kind", TargetKind)
        table.need("kind")
        if kind is None:
            continue  # which keys fit is not known then
        if name_of(table) == REPORT:
            table.fault("name", "is the name of [report]: take another")
        found.append(_mail(table) if kind is TargetKind.MAIL else _webhook(table))
        others = {key for other, keys in OWN_KEYS.items() if other is not kind for key in keys}
        table.finish(dict.fromkeys(others, f'does not fit kind = "{kind.value}"'))
    return tuple(found)


def _mail(table: Table) -> Target:
    security = table.choice("security", Security) or Security.STARTTLS
    host, port = table.parsed("server", server_of) or ("", 0)
    table.need("server")
    table.need("from")
    table.need("to")
    username = table.text("username", form.free_text)
    password_file = table.text("password_file", form.absolute_path)
    if bool(username) != bool(password_file):
        table.fault("username", "username and password_file belong together: state both, or none")
    if username and security is Security.NONE:
        table.fault("security", 'a password would travel in plain text: "starttls" or "tls"')
    return Target(
        name=name_of(table),
        kind=TargetKind.MAIL,
        severity=_severity(table),
        host=host,
        port=port or PORTS[security],
        security=security,
        username=username,
        secret_file=password_file,
        sender=table.text("from", mailbox),
        recipients=table.texts("to", mailbox),
        **_connection(table, encrypted=security is not Security.NONE, deadline_s=30.0),
    )


def _webhook(table: Table) -> Target:
    url = table.text("url", http_url)
    table.need("url")
    return Target(
        name=name_of(table),
        kind=TargetKind.WEBHOOK,
        severity=_severity(table),
        url=url,
        secret_file=table.text("secret_file", form.absolute_path),
        **_connection(table, encrypted=not url.startswith("http:"), deadline_s=15.0),
    )


def _report(top: Table) -> ReportSettings | None:
    table = top.table("report")
    if not top.has("report"):
        table.finish()
        return None
    url = table.text("url", http_url)
    table.need("url")
    secret_file = table.text("secret_file", form.absolute_path)
    table.need("secret_file")
    report = ReportSettings(
        target=Target(
            name=REPORT,
            kind=TargetKind.WEBHOOK,
            url=url,
            secret_file=secret_file,
            **_connection(table, encrypted=not url.startswith("http:"), deadline_s=15.0),
        ),
        cloud_im=table.flag("cloud_im"),
        custom_domain=table.text("custom_domain", host_name),
    )
    table.finish()
    return report


def _severity(table: Table) -> Severity:
    return table.choice("severity", Severity) or Severity.WARNING


def _connection(table: Table, *, encrypted: bool, deadline_s: float) -> dict[str, Any]:
    ca_file = table.text("ca_file", form.absolute_path)
    verify = table.flag("verify")
    if not encrypted and ca_file:
        table.fault("ca_file", "nothing is encrypted here, so no certificate is checked: remove it, or encrypt")
    if ca_file and not verify:
        table.fault("verify", "is false although ca_file says which authority to trust: remove one of the two")
    return {
        "ca_file": ca_file,
        "verify": verify,
        "deadline_s": table.number("deadline_s", deadline_s),
    }


def target_warnings(alarms: AlarmSettings) -> tuple[str, ...]:
    """What is odd and lived with."""
    said = []
    for target in alarms.everyone:
        where = target.name if target.name == REPORT else f"alarm[{target.name}]"
        if not target.verify:
            said.append(f"{where}.verify = false: the other end may be anybody")
        if target.kind is TargetKind.WEBHOOK and target.url.startswith("http:"):
            said.append(f"{where}.url: is not encrypted: who listens can read it")
    return tuple(said)


def server_of(text: str) -> tuple[str, int]:
    """``host`` or ``host:port``; port 0: the usual one."""
    host, colon, port = text.rpartition(":") if not text.endswith("]") and text.count(":") != 0 else (text, "", "")
    bracketed = host.startswith("[") and host.endswith("]")
    plain = host[1:-1] if bracketed else host
    if bracketed:
        form.address_of(plain)
    elif not _HOST.match(plain):
        raise ValueError('must be a mail server, e.g. "mail.example.org:587" or "[fd00::25]:25"')
    if colon and not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise ValueError("must end with a port from 1 to 65535")
    return plain, int(port or 0)


def mailbox(text: str) -> str:
    """An address of a mail, without a display name."""
    return "" if _MAILBOX.match(text) else 'must be a mail address, e.g. "admin@example.org"'


def host_name(text: str) -> str:
    """A domain."""
    return "" if _HOST.match(text) else 'must be a domain, e.g. "pbx.example.org"'


def http_url(text: str) -> str:
    """A URL without a name or a secret in it: it is shown in status and logs."""
    found = _URL.match(text)
    if found is None:
        return 'must be a URL that begins with https:// or http://, e.g. "https://noc.example.org/hooks/pbx"'
    if "@" in found["authority"]:
        return "must not hold a name or a password: it is shown in logs; secret_file signs what is sent"
    try:
        server_of(found["authority"])
    except ValueError:
        return 'must name a host, and a port from 1 to 65535 where it has one, e.g. "https://noc.example.org:8443/pbx"'
    return "must not have a fragment (#)" if "#" in text else ""
