"""Who is told, on loopback: a mail server and a receiver of webhooks, which misbehave as they are told to.

``Receiver`` is also the reference for a management service (R17): it checks signature and age, takes each id once, and
keeps of each reporter the order of its sequence; of the pair what the highest epoch says.
"""

from __future__ import annotations

import base64
import contextlib
import datetime as dt
import email
import email.policy
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ha_agent.alarms.signature import ID, SIGNATURE, TIMESTAMP, fits

WITHIN_S = 60.0
TOLERATED_S = 300


class Arrivals:
    """What has come, from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self.taken: list[Any] = []

    def add(self, item: Any) -> None:
        with self._changed:
            self.taken.append(item)
            self._changed.notify_all()

    def until(self, wanted: Callable[[list[Any]], bool]) -> list[Any]:
        """Waits until what has come is as wanted; what has come."""
        with self._changed:
            assert self._changed.wait_for(lambda: wanted(self.taken), WITHIN_S), f"came: {self.taken}"
            return list(self.taken)


# ---- webhooks


@dataclass
class Receiver:
    """Takes webhooks. ``answers``: statuses for the next requests, before it goes on with 204.

    ``drop``: take the request, and then say nothing; ``hang``: the same, and keep the connection open.
    """

    secret: bytes = b""
    answers: list[int | str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    requests: Arrivals = field(default_factory=Arrivals)  # every one, as it came
    documents: Arrivals = field(default_factory=Arrivals)  # those that were taken, each once
    refused: list[str] = field(default_factory=list)
    let_go: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    _ids: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, headers: Any, body: bytes) -> int | str:
        """What to say to one request."""
        with self._lock:
            self.requests.add((dict(headers), body))
            said = self.answers.pop(0) if self.answers else 204
            if said in {"drop", "hang", 204}:
                problem = self._problem(headers, body)
                if problem:
                    self.refused.append(problem)
                    return 401
                self._take(headers[ID], json.loads(body))
            return said

    def _problem(self, headers: Any, body: bytes) -> str:
        if not self.secret:
            return ""
        try:
            timestamp = int(headers[TIMESTAMP])
        except (TypeError, ValueError):
            return "no timestamp"
        if abs(dt.datetime.now(dt.UTC).timestamp() - timestamp) > TOLERATED_S:
            return "too old"
        return "" if fits(self.secret, headers[SIGNATURE] or "", timestamp=timestamp, body=body) else "bad signature"

    def _take(self, id_: str, document: dict[str, Any]) -> None:
        assert document["id"] == id_
        if id_ not in self._ids:
            self._ids.add(id_)
            self.documents.add(document)

    # ---- as a management service

    @property
    def reports(self) -> list[dict[str, Any]]:
        return [document for document in self.documents.taken if document["kind"] == "role"]

    @property
    def pair(self) -> dict[str, Any]:
        """What is so now: of the highest epoch the last word."""
        return max(self.reports, key=lambda report: report["epoch"])


class _Handler(BaseHTTPRequestHandler):
    receiver: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        said = self.receiver.answer(self.headers, body)
        if said == "hang":
            self.receiver.let_go.wait(WITHIN_S)
        if isinstance(said, str):
            self.close_connection = True
            return
        self.send_response(said)
        for name, value in self.receiver.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_values: Any) -> None:
        pass


@contextlib.contextmanager
def receiving(receiver: Receiver, *, port: int = 0, certificate: tuple[Path, Path] | None = None) -> Iterator[Receiver]:
    """Listens on 127.0.0.1, with TLS where there is a certificate."""

    class Handler(_Handler):
        pass

    Handler.receiver = receiver
    with _served(ThreadingHTTPServer(("127.0.0.1", port), Handler), certificate) as receiver.port:
        try:
            yield receiver
        finally:
            receiver.let_go.set()


# ---- mail


@dataclass
class Mailbox:
    """A mail server. ``answers``: for a command (``DATA.`` is the end of a message) what to say the next times."""

    username: str = ""
    password: str = ""
    offers_starttls: bool = True
    context: ssl.SSLContext | None = None
    answers: dict[str, list[str]] = field(default_factory=dict)
    mails: Arrivals = field(default_factory=Arrivals)
    encrypted: list[bool] = field(default_factory=list)  # of each mail
    commands: list[str] = field(default_factory=list)
    let_go: threading.Event = field(default_factory=threading.Event)
    port: int = 0

    def scripted(self, verb: str) -> str:
        waiting = self.answers.get(verb, [])
        return waiting.pop(0) if waiting else ""


class _Session(socketserver.StreamRequestHandler):
    mailbox: Mailbox
    encrypted = False

    def handle(self) -> None:
        plain = self.request
        try:
            with contextlib.suppress(OSError, ssl.SSLError):
                self._converse()
        finally:
            if self.request is not plain:  # the server closes only what it has accepted
                self.request.close()

    def _converse(self) -> None:
        self.encrypted = isinstance(self.request, ssl.SSLSocket)
        if not self._say(self.mailbox.scripted("GREETING") or "220 ready"):
            return
        self.recipients: list[str] = []
        while line := self.rfile.readline():
            command = line.decode(errors="replace").rstrip("\r\n")
            self.mailbox.commands.append(command)
            if not self._answer(command):
                return

    def _say(self, text: str) -> bool:
        """False: it hangs up instead."""
        if text == "drop":
            return False
        if text == "hang":
            self.mailbox.let_go.wait(WITHIN_S)
            return False
        self.wfile.write(text.encode() + b"\r\n")
        return True

    def _answer(self, command: str) -> bool:
        verb = command.partition(" ")[0].partition(":")[0].upper()
        if said := self.mailbox.scripted(verb):
            return self._say(said)
        match verb:
            case "EHLO":
                offers = ["localhost"]
                offers += ["STARTTLS"] if self.mailbox.offers_starttls and not self.encrypted else []
                offers += ["AUTH PLAIN LOGIN"] if self.mailbox.username else []
                return self._say("\r\n".join(f"250-{one}" for one in offers) + "\r\n250 8BITMIME")
            case "STARTTLS":
                assert self.mailbox.context is not None
                self._say("220 go on")
                self.request = self.mailbox.context.wrap_socket(self.request, server_side=True)
                self.setup()
                self.encrypted = True
                return True
            case "AUTH":
                return self._authenticate(command)
            case "RCPT":
                self.recipients.append(command.partition("<")[2].partition(">")[0])
                return self._say("250 ok")
            case "DATA":
                return self._take()
            case "QUIT":
                self._say("221 bye")
                return False
            case _:
                return self._say("250 ok")

    def _authenticate(self, command: str) -> bool:
        given = base64.b64decode(command.split()[2]).split(b"\0")
        wanted = [b"", self.mailbox.username.encode(), self.mailbox.password.encode()]
        return self._say("235 ok" if given == wanted else "535 5.7.8 wrong name or password")

    def _take(self) -> bool:
        self._say("354 go on")
        lines = []
        while (line := self.rfile.readline()) and line != b".\r\n":
            lines.append(line.removeprefix(b".") if line.startswith(b"..") else line)
        said = self.mailbox.scripted("DATA.")
        if said in {"", "drop"}:
            mail = email.message_from_bytes(b"".join(lines), policy=email.policy.default)
            assert isinstance(mail, EmailMessage)
            self.mailbox.encrypted.append(self.encrypted)
            self.mailbox.mails.add((tuple(self.recipients), mail))
        return self._say(said or "250 taken")


@contextlib.contextmanager
def taking_mail(
    mailbox: Mailbox, *, port: int = 0, certificate: tuple[Path, Path] | None = None, implicit: bool = False
) -> Iterator[Mailbox]:
    """Listens on 127.0.0.1; with a certificate STARTTLS or, ``implicit``, TLS from the beginning."""

    class Session(_Session):
        pass

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

        def handle_error(self, *_about: Any) -> None:
            pass  # a client that does not like our certificate

    Session.mailbox = mailbox
    if certificate is not None and not implicit:
        mailbox.context = _context(certificate)
    with _served(Server(("127.0.0.1", port), Session), certificate if implicit else None) as mailbox.port:
        try:
            yield mailbox
        finally:
            mailbox.let_go.set()


# ---- both


@contextlib.contextmanager
def _served(server: socketserver.TCPServer, certificate: tuple[Path, Path] | None) -> Iterator[int]:
    if certificate is not None:
        # Not at accept: a client that says nothing would hold up the others.
        server.socket = _context(certificate).wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _context(certificate: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    return context


def free_port() -> int:
    """One on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Authority:
    """A certificate authority of one test."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls, folder: Path) -> Authority:
        folder.mkdir()
        key = ec.generate_private_key(ec.SECP256R1())
        made = _certificate("authority", key.public_key(), issuer="authority", signed_by=key, names=None)
        (folder / "ca.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        return cls(folder, key, made)

    @property
    def file(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, name: str) -> tuple[Path, Path]:
        """Certificate and key of a server of this name."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _certificate(name, key.public_key(), issuer="authority", signed_by=self.key, names=[name])
        paths = (self.folder / f"{name}.pem", self.folder / f"{name}.key")
        paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
        paths[1].write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return paths


def _certificate(
    name: str,
    key: ec.EllipticCurvePublicKey,
    *,
    issuer: str,
    signed_by: ec.EllipticCurvePrivateKey,
    names: list[str] | None,
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=names is None, path_length=None), critical=True)
    )
    if names is not None:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([x509.DNSName(one) for one in names]), critical=False
        )
    return builder.sign(signed_by, hashes.SHA256())
