"""One delivery by its own process, to a real mail server and a real HTTP receiver: down, slow, refusing, forged."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from ha_agent.alarms.delivery import Delivered, Order, Outcome, deliver
from ha_agent.alarms.secret import problem_of
from ha_agent.alarms.signature import ID, SIGNATURE, TIMESTAMP, fits
from ha_agent.alarms.values import Bulletin, Change, Entry, Key
from ha_agent.alarms.wording import document_of
from ha_agent.commands import Commands
from ha_agent.settings import Security, Severity, Target, TargetKind
from tests.support.alarm_receivers import Authority, Mailbox, Receiver, free_port, receiving, taking_mail

pytestmark = pytest.mark.req("R32")

SECRET = "correct horse battery staple"
ENTRY = Entry(
    change=Change.RAISED,
    key=Key("fault", "process:asterisk"),
    severity=Severity.ERROR,
    since_unix_s=1_700_000_000.0,
    count=1,
    fields={"reason": "gone\r\nBcc: everybody@example.org"},
)
_FOUND = document_of(
    Bulletin(unix_s=1_700_000_001.0, entries=(ENTRY,), standing=1),
    node="pbx-a\r\nX-Forged: yes",
    station="primary",
    least=Severity.WARNING,
)
assert _FOUND is not None
DOCUMENT: dict[str, Any] = _FOUND


@pytest.fixture
async def commands() -> AsyncIterator[Commands]:
    made = Commands()
    yield made
    made.close()


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving(Receiver(secret=SECRET.encode())) as running:
        yield running


@pytest.fixture
def mailbox() -> Iterator[Mailbox]:
    with taking_mail(Mailbox()) as running:
        yield running


def hook(url: str, **facts: Any) -> Target:
    return Target(name="noc", kind=TargetKind.WEBHOOK, url=url, **({"deadline_s": 60.0} | facts))


def mail(port: int, **facts: Any) -> Target:
    plain = {
        "host": "localhost", "port": port, "security": Security.NONE, "sender": "pbx@example.org",
        "recipients": ("admin@example.org", "night@example.org"), "deadline_s": 60.0,
    }  # fmt: skip
    return Target(name="admins", kind=TargetKind.MAIL, **(plain | facts))  # type: ignore[arg-type]


async def sent(commands: Commands, target: Target, document: dict[str, Any] = DOCUMENT) -> Delivered:
    return await deliver(commands, Order(target=target, id="0123", document=document))


# ---- webhooks


async def test_a_webhook_is_posted_as_json_and_signed(commands: Commands, receiver: Receiver, secret: Path) -> None:
    target = hook(f"http://127.0.0.1:{receiver.port}/hooks/pbx?site=7", secret_file=str(secret))
    assert await sent(commands, target) == Delivered(outcome=Outcome.SENT)
    ((headers, body),) = receiver.requests.taken
    assert json.loads(body) == {"id": "0123", **DOCUMENT}
    assert headers[ID] == "0123"
    assert headers["Content-Type"] == "application/json"
    timestamp = int(headers[TIMESTAMP])
    assert fits(SECRET.encode(), headers[SIGNATURE], timestamp=timestamp, body=body)
    assert not fits(b"another", headers[SIGNATURE], timestamp=timestamp, body=body)
    assert not fits(SECRET.encode(), headers[SIGNATURE], timestamp=timestamp + 1, body=body)
    assert not fits(SECRET.encode(), headers[SIGNATURE], timestamp=timestamp, body=body + b" ")


async def test_a_webhook_with_the_wrong_secret_is_refused_by_the_receiver(
    commands: Commands, receiver: Receiver, secret: Path
) -> None:
    write(secret, "wrong")
    found = await sent(commands, hook(f"http://127.0.0.1:{receiver.port}", secret_file=str(secret)))
    assert found == Delivered(outcome=Outcome.LATER, reason="HTTP 401 Unauthorized")
    assert receiver.refused == ["bad signature"]


@pytest.mark.parametrize(
    ("status", "outcome"),
    [
        (200, Outcome.SENT),
        (202, Outcome.SENT),
        (400, Outcome.REFUSED),
        (413, Outcome.REFUSED),
        (422, Outcome.REFUSED),
        (401, Outcome.LATER),
        (404, Outcome.LATER),
        (408, Outcome.LATER),
        (429, Outcome.LATER),
        (500, Outcome.LATER),
        (503, Outcome.LATER),
    ],
)
async def test_the_status_says_whether_it_is_this_message_or_the_moment(
    commands: Commands, receiver: Receiver, status: int, outcome: Outcome
) -> None:
    receiver.answers, receiver.headers = [status], {"Retry-After": "17"}
    found = await sent(commands, hook(f"http://127.0.0.1:{receiver.port}"))
    assert found.outcome is outcome
    assert outcome is Outcome.SENT or (found.asked_s == 17 and f"HTTP {status}" in found.reason)


async def test_a_redirect_is_not_followed(commands: Commands, receiver: Receiver, secret: Path) -> None:
    with receiving(Receiver()) as elsewhere:
        receiver.answers = [307]
        receiver.headers = {"Location": f"http://127.0.0.1:{elsewhere.port}/"}
        found = await sent(commands, hook(f"http://127.0.0.1:{receiver.port}", secret_file=str(secret)))
    assert found.outcome is Outcome.LATER
    assert "redirect" in found.reason
    assert not elsewhere.requests.taken


@pytest.mark.parametrize("answer", ["drop", "hang"])
async def test_who_does_not_answer_is_not_waited_for_longer_than_the_deadline(
    commands: Commands, receiver: Receiver, answer: str
) -> None:
    receiver.secret, receiver.answers = b"", [answer]
    found = await sent(commands, hook(f"http://127.0.0.1:{receiver.port}", deadline_s=1.0))
    assert found.outcome is Outcome.LATER
    assert found.reason


async def test_nobody_listens(commands: Commands) -> None:
    for target in (hook(f"http://127.0.0.1:{free_port()}"), mail(free_port())):
        found = await sent(commands, target)
        assert found.outcome is Outcome.LATER
        assert found.reason == "Connection refused", "in words, without the name of a class"


@pytest.mark.parametrize(
    ("trusts", "named", "arrives"), [("own", "localhost", True), ("none", "localhost", False), ("own", "other", False)]
)
async def test_the_certificate_of_a_webhook_is_checked(
    commands: Commands, tmp_path: Path, trusts: str, named: str, arrives: bool
) -> None:
    authority = Authority.new(tmp_path / "ca")
    with receiving(Receiver(), certificate=authority.issue(named)) as receiver:
        ca_file = str(authority.file) if trusts == "own" else ""
        found = await sent(commands, hook(f"https://localhost:{receiver.port}", ca_file=ca_file))
        assert (found.outcome is Outcome.SENT) is arrives
        assert arrives or "certificate verify failed" in found.reason
        assert bool(receiver.requests.taken) is arrives
        if not arrives:
            assert (await sent(commands, hook(f"https://localhost:{receiver.port}", verify=False))).reason == ""


# ---- mail


async def test_a_mail_says_what_happened_and_nobody_forges_a_line(commands: Commands, mailbox: Mailbox) -> None:
    assert await sent(commands, mail(mailbox.port)) == Delivered(outcome=Outcome.SENT)
    ((recipients, message),) = mailbox.mails.taken
    assert recipients == ("admin@example.org", "night@example.org")
    assert message["Subject"].strip() == r"[ha-sync 'pbx-a\r\nX-Forged: yes'] error: fault: process:asterisk raised"
    assert message["Message-ID"] == "<0123@example.org>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert (message["Bcc"], message["X-Forged"]) == (None, None)
    text = message.get_content()
    assert "raised: fault: process:asterisk (error), since 2023-11-14T22:13:20+00:00" in text
    assert r"  reason: 'gone\r\nBcc: everybody@example.org'" in text
    assert "Standing now: 1" in text


@pytest.mark.parametrize("security", [Security.STARTTLS, Security.TLS])
async def test_a_mail_is_encrypted_and_the_login_comes_after_that(
    commands: Commands, tmp_path: Path, secret: Path, security: Security
) -> None:
    authority = Authority.new(tmp_path / "ca")
    served = Mailbox(username="pbx", password=SECRET)
    implicit = security is Security.TLS
    with taking_mail(served, certificate=authority.issue("localhost"), implicit=implicit) as mailbox:
        target = mail(
            mailbox.port, security=security, ca_file=str(authority.file), username="pbx", secret_file=str(secret)
        )
        assert await sent(commands, target) == Delivered(outcome=Outcome.SENT)
        assert mailbox.encrypted == [True]
        write(secret, "wrong")
        found = await sent(commands, target)
        assert found == Delivered(outcome=Outcome.LATER, reason="535 5.7.8 wrong name or password")


async def test_no_mail_goes_out_in_plain_text_where_it_must_be_encrypted(
    commands: Commands, mailbox: Mailbox, secret: Path
) -> None:
    mailbox.offers_starttls = False
    found = await sent(
        commands, mail(mailbox.port, security=Security.STARTTLS, username="pbx", secret_file=str(secret))
    )  # fmt: skip
    assert found.outcome is Outcome.LATER
    assert "STARTTLS" in found.reason
    assert not [command for command in mailbox.commands if command.startswith(("AUTH", "MAIL"))]


@pytest.mark.parametrize("named", ["other", "localhost"])
async def test_the_certificate_of_a_mail_server_is_checked(commands: Commands, tmp_path: Path, named: str) -> None:
    authority = Authority.new(tmp_path / "ca")
    with taking_mail(Mailbox(), certificate=authority.issue(named)) as mailbox:
        ca_file = str(authority.file) if named == "other" else ""
        found = await sent(commands, mail(mailbox.port, security=Security.STARTTLS, ca_file=ca_file))
        assert found.outcome is Outcome.LATER
        assert "certificate verify failed" in found.reason
        assert not mailbox.mails.taken


@pytest.mark.parametrize(
    ("answers", "outcome", "says"),
    [
        ({"GREETING": ["421 4.3.2 too busy"]}, Outcome.LATER, "421"),
        ({"MAIL": ["451 4.3.0 later"]}, Outcome.LATER, "451"),
        ({"MAIL": ["550 5.1.8 not you"]}, Outcome.REFUSED, "550"),
        ({"RCPT": ["450 4.2.0 grey", "450 4.2.0 grey"]}, Outcome.LATER, "450"),
        ({"RCPT": ["550 5.1.1 nobody", "450 4.2.0 grey"]}, Outcome.LATER, "550"),
        ({"RCPT": ["550 5.1.1 nobody", "550 5.1.1 nobody"]}, Outcome.REFUSED, "550"),
        ({"RCPT": ["550 5.1.1 nobody"]}, Outcome.SENT, "admin@example.org: 550"),
        ({"DATA.": ["452 4.3.1 full"]}, Outcome.LATER, "452"),
        ({"DATA.": ["554 5.7.1 spam"]}, Outcome.REFUSED, "554"),
        ({"DATA.": ["drop"]}, Outcome.LATER, ""),
    ],
)
async def test_what_a_mail_server_says_decides_whether_it_is_tried_again(
    commands: Commands, mailbox: Mailbox, answers: dict[str, list[str]], outcome: Outcome, says: str
) -> None:
    mailbox.answers = answers
    found = await sent(commands, mail(mailbox.port))
    assert found.outcome is outcome
    assert says in found.reason


async def test_a_mail_server_that_hangs_is_left_at_the_deadline(commands: Commands, mailbox: Mailbox) -> None:
    mailbox.answers = {"DATA.": ["hang"]}
    found = await sent(commands, mail(mailbox.port, deadline_s=1.0))
    assert found.outcome is Outcome.LATER


# ---- secrets


@pytest.mark.parametrize(
    "flaw",
    [
        ("x", 0o644, "may be read by others"),
        ("x", 0o640, "chmod 600"),
        ("\n", 0o600, "is empty"),
        ("x" * 5000, 0o600, "longer"),
    ],
)
async def test_a_secret_that_others_can_read_is_not_used(
    commands: Commands, receiver: Receiver, secret: Path, flaw: tuple[str, int, str]
) -> None:
    content, mode, says = flaw
    write(secret, content, mode)
    found = await sent(commands, hook(f"http://127.0.0.1:{receiver.port}", secret_file=str(secret)))
    assert found.outcome is Outcome.LATER
    assert found.reason == problem_of(str(secret))
    assert says in problem_of(str(secret))
    assert not receiver.requests.taken


def test_a_secret_that_is_no_file_is_told(tmp_path: Path, secret: Path) -> None:
    assert problem_of(str(secret)) == ""
    assert "cannot be read" in problem_of(str(tmp_path / "absent"))
    assert "is no file" in problem_of(str(tmp_path))
    os.mkfifo(tmp_path / "pipe", 0o600)
    assert "is no file" in problem_of(str(tmp_path / "pipe"))


async def test_no_secret_stands_in_the_arguments_or_the_environment_of_the_process(
    commands: Commands, receiver: Receiver, secret: Path
) -> None:
    """Seen from outside while it waits for its answer."""
    receiver.answers = ["hang"]
    target = hook(f"http://127.0.0.1:{receiver.port}/not-for-ps", secret_file=str(secret))
    working = asyncio.create_task(sent(commands, target))
    await asyncio.to_thread(receiver.requests.until, bool)
    children = deliverers()
    shown = b"".join(_content(folder / name) for folder in children for name in ("cmdline", "environ"))
    receiver.let_go.set()
    await working
    assert children
    assert SECRET.encode() not in shown
    assert b"not-for-ps" not in shown


def deliverers() -> list[Path]:
    """Processes that deliver for this one, in /proc."""
    own = f"PPid:\t{os.getpid()}\n".encode()
    return [
        folder
        for folder in Path("/proc").iterdir()
        if b"ha_agent.alarms.deliver" in _content(folder / "cmdline") and own in _content(folder / "status")
    ]


def write(secret: Path, content: str, mode: int = 0o600) -> None:
    secret.write_text(content)
    secret.chmod(mode)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
