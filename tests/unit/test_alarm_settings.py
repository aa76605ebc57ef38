"""``[alarms]``, ``[[alarm]]`` and ``[report]`` of ha.toml."""

from __future__ import annotations

from typing import Any

import pytest

from ha_agent.settings import AlarmSettings, Rates, Security, Severity, Target, TargetKind
from tests.unit.test_agent_settings import faults_of, parsed

pytestmark = pytest.mark.req("R32")

MAIL = {
    "name": "admins", "kind": "mail", "server": "mail.example.org", "from": "pbx@example.org",
    "to": ["admin@example.org"],
}  # fmt: skip
HOOK = {"name": "noc", "kind": "webhook", "url": "https://noc.example.org/hooks/pbx?site=7"}
REPORT = {"url": "https://manage.example.org/ha", "secret_file": "/etc/ha-sync/report.secret"}


def alarms(**sections: Any) -> AlarmSettings:
    return parsed(**sections).alarms


def test_without_a_word_nobody_is_told() -> None:
    found = alarms()
    assert (found.targets, found.report, found.rates, found.everyone) == ((), None, Rates(), ())


def test_a_mail_target() -> None:
    (target,) = alarms(alarm=[MAIL]).targets
    assert target == Target(
        name="admins",
        kind=TargetKind.MAIL,
        host="mail.example.org",
        port=587,
        sender="pbx@example.org",
        recipients=("admin@example.org",),
        deadline_s=30,
    )
    more = MAIL | {"security": "tls", "username": "pbx", "password_file": "/etc/pw", "severity": "error"}
    (target,) = alarms(alarm=[more]).targets
    assert (target.port, target.security, target.secret_file) == (465, Security.TLS, "/etc/pw")
    assert target.severity is Severity.ERROR
    (target,) = alarms(alarm=[MAIL | {"server": "[fd00::25]:2525", "security": "none"}]).targets
    assert (target.host, target.port) == ("fd00::25", 2525)


@pytest.mark.req("R17")
def test_a_webhook_and_the_management_service() -> None:
    found = alarms(alarm=[HOOK], report=REPORT | {"cloud_im": True, "custom_domain": "pbx.example.org"})
    assert [target.name for target in found.everyone] == ["noc", "report"]
    assert found.report is not None
    assert (found.report.cloud_im, found.report.custom_domain) == (True, "pbx.example.org")
    assert found.report.target.url == REPORT["url"]
    assert found.targets[0].verify


def test_all_faults_come_together_and_none_shows_what_a_secret_would_be() -> None:
    found = faults_of(
        alarms={"repeat_s": 5, "messages_per_hour_max": 1, "group_s": "x", "colour": 1},
        alarm=[
            {"kind": "mail", "name": "a", "username": "pbx", "password": "hush"},
            {"kind": "webhook", "name": "b", "url": "ftp://x", "server": "mail"},
            {"kind": "pigeon", "name": "c"},
            HOOK | {"name": "report"},
            HOOK | {"name": "d"},
            HOOK | {"name": "d"},
        ],
        report={"url": "https://m.example.org"},
    )
    for expected in (
        "alarms.repeat_s = 5: ",
        "alarms.messages_per_hour_max = 1: ",
        'alarms.group_s = "x": ',
        "alarms.colour = 1: unknown key",
        "alarm[a].server: is missing",
        "alarm[a].from: is missing",
        "alarm[a].to: is missing",
        "alarm[a].username",
        "alarm[a].password",
        'alarm[b].url = "ftp://x"',
        'alarm[b].server = "mail": does not fit kind = "webhook"',
        'alarm[c].kind = "pigeon"',
        'alarm[report].name = "report": is the name of [report]',
        'alarm[d].name = "d": stands there twice',
        "report.secret_file: is missing",
    ):
        assert expected in found


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"security": "none", "username": "u", "password_file": "/p"}, "a password would travel in plain text"),
        ({"security": "none", "ca_file": "/ca"}, "nothing is encrypted here"),
        ({"verify": False, "ca_file": "/ca"}, "remove one of the two"),
        ({"username": "u"}, "belong together"),
        ({"server": "mail example"}, "must be a mail server"),
        ({"server": "mail:99999"}, "port from 1 to 65535"),
        ({"to": ["nobody"]}, "must be a mail address"),
        ({"from": "a@b.org\r\nBcc: c@d.org"}, "control characters"),
        ({"deadline_s": 0}, "from 1 to 300"),
        ({"password_file": "relative", "username": "u"}, "absolute path"),
    ],
)
def test_what_a_mail_target_must_not_be(changes: dict[str, Any], says: str) -> None:
    assert says in faults_of(alarm=[MAIL | changes])


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://user:hush@noc.example.org/", "must not hold a name or a password"),
        ("noc.example.org", "must be a URL"),
        ("https://", "must be a URL"),
        ("https://noc.example.org:99999/", "a port from 1 to 65535"),
        ("https://noc.example.org/#x", "fragment"),
        ("https://noc.example.org/a b", "must be a URL"),
    ],
)
def test_what_a_url_must_not_be(url: str, says: str) -> None:
    assert says in faults_of(alarm=[HOOK | {"url": url}])


def test_what_is_odd_is_said_and_lived_with() -> None:
    found = parsed(alarm=[HOOK | {"verify": False}, HOOK | {"name": "lab", "url": "http://127.0.0.1:8080"}])
    assert [warning.split(":")[0] for warning in found.warnings] == ["alarm[noc].verify = false", "alarm[lab].url"]
