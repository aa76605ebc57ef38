"""The pair's certificates (X.509, ECDSA P-256): made, read and checked here, and nowhere else.

One certificate authority per pair; both nodes hold its key, so that either can renew when the other is dead. Every
certificate is valid from 1970 on: a clock that boots in 1970 or 2000 does not break the pair. A node's certificate
ends, and an ended one is refused. Who a certificate stands for is in its subject alternative names:
``urn:ha-sync:<cluster id>:<node id>``; the DNS name ``ha-sync-peer`` is the same on both nodes, so that the dialer
needs no name service. No I/O.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

PEER_NAME = "ha-sync-peer"
URN = "urn:ha-sync:"
LIFETIME_S = 397 * 86400.0
ALWAYS = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
NEVER = dt.datetime(9999, 12, 31, 23, 59, 59, tzinfo=dt.UTC)  # RFC 5280 4.1.2.5: no end

Key = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


class NotOurs(ValueError):
    """Bytes that are not a key, request or certificate as this program makes them; the text says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Whom a certificate stands for."""

    cluster_id: str
    node_id: str

    @property
    def urn(self) -> str:
        """The subject alternative name."""
        return f"{URN}{self.cluster_id}:{self.node_id}"


def new_key() -> Key:
    """A fresh P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def authority_name(cluster_id: str) -> x509.Name:
    """The subject of a pair's authority."""
    return _name(f"ha-sync pair {cluster_id}")


def make_authority(key: Key, cluster_id: str) -> x509.Certificate:
    """The pair's own authority; it never ends, since both nodes hold its key and no third party counts on it."""
    return sign_authority(key.public_key(), authority_name(cluster_id), signer=key)


def anchor_of(public_key: PublicKey, cluster_id: str) -> x509.Certificate:
    """A trust anchor for an authority of which only the public key is known (from a token).

    TLS uses name and key of an anchor and never checks its signature, so a throw-away key signs it.
    """
    return sign_authority(public_key, authority_name(cluster_id), signer=new_key())


def sign_authority(public_key: PublicKey, name: x509.Name, *, signer: Key) -> x509.Certificate:
    """A certificate of an authority that may sign leaves only."""
    return (
        _builder(name, name, public_key, NEVER)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(authority=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .sign(signer, hashes.SHA256())
    )


def make_certificate(
    *, authority_key: Key, authority_name: x509.Name, public_key: PublicKey, member: Member, ends_unix_s: float
) -> x509.Certificate:
    """A node's certificate, for both ends of a connection."""
    ends = min(dt.datetime.fromtimestamp(ends_unix_s, dt.UTC), NEVER)
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(member.urn), x509.DNSName(PEER_NAME)])
    usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH])
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder(_name(f"ha-sync node {member.node_id}"), authority_name, public_key, ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(authority=False), critical=True)
        .add_extension(usages, critical=False)
        .add_extension(names, critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA256())
    )


def make_request(key: Key) -> bytes:
    """A certificate request (PKCS#10, DER). It proves possession of the key; names are the signer's business."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(_name("ha-sync node"))
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def requested_key(request: bytes) -> PublicKey:
    """The public key of a certificate request. Raises ``NotOurs``."""
    try:
        parsed = x509.load_der_x509_csr(request)
        valid = parsed.is_signature_valid
    except Exception as broken:
        raise NotOurs(f"no certificate request: {broken}") from broken
    key = parsed.public_key()
    if not valid or not _is_p256(key):
        raise NotOurs("the certificate request is not signed by a P-256 key of its own")
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def member_of(certificate: x509.Certificate) -> Member:
    """Whom a certificate stands for. Says nothing of who signed it. Raises ``NotOurs``."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        found = [uri for uri in names.get_values_for_type(x509.UniformResourceIdentifier) if uri.startswith(URN)]
    except Exception as broken:
        raise NotOurs("the certificate names no node of a pair") from broken
    parts = found[0][len(URN) :].split(":") if len(found) == 1 else []
    if len(parts) != 2:
        raise NotOurs("the certificate names no node of a pair")
    return Member(cluster_id=parts[0], node_id=parts[1])


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether ``authority`` itself signed ``certificate``; not whether it is still valid."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def ends_unix_s(certificate: x509.Certificate) -> float:
    """When a certificate ends."""
    return certificate.not_valid_after_utc.timestamp()


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 over the certificate, hexadecimal."""
    return hashlib.sha256(certificate_der(certificate)).hexdigest()


def certificate_der(certificate: x509.Certificate) -> bytes:
    """DER."""
    return certificate.public_bytes(serialization.Encoding.DER)


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_der(key: Key) -> bytes:
    """PKCS#8, DER, not encrypted."""
    return _key_bytes(key, serialization.Encoding.DER)


def key_pem(key: Key) -> bytes:
    """PKCS#8, PEM, not encrypted: the file's permissions protect it."""
    return _key_bytes(key, serialization.Encoding.PEM)


def load_certificate(content: bytes) -> x509.Certificate:
    """From PEM or DER. Raises ``NotOurs``."""
    try:
        if content.startswith(b"-----"):
            return x509.load_pem_x509_certificate(content)
        return x509.load_der_x509_certificate(content)
    except ValueError as broken:
        raise NotOurs(f"no certificate: {broken}") from broken


def load_key(content: bytes) -> Key:
    """From PEM or DER. Raises ``NotOurs``."""
    try:
        if content.startswith(b"-----"):
            key = serialization.load_pem_private_key(content, None)
        else:
            key = serialization.load_der_private_key(content, None)
    except (ValueError, TypeError) as broken:
        raise NotOurs(f"no private key: {broken}") from broken
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not _is_p256(key.public_key()):
        raise NotOurs("not a P-256 key")
    return key


def same_key(one: object, other: object) -> bool:
    """Whether two public keys are the same."""
    return public_bytes(one) == public_bytes(other)


def public_bytes(key: object) -> bytes:
    """A P-256 public key in 33 bytes (compressed point). Raises ``NotOurs``."""
    if not isinstance(key, ec.EllipticCurvePublicKey) or not _is_p256(key):
        raise NotOurs("not a P-256 key")
    return key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.CompressedPoint)


def load_public(content: bytes) -> PublicKey:
    """The reverse of ``public_bytes``. Raises ``NotOurs``."""
    try:
        return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), content)
    except ValueError as broken:
        raise NotOurs("no point of the curve P-256") from broken


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: PublicKey, ends: dt.datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(ALWAYS)
        .not_valid_after(ends)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _is_p256(key: object) -> bool:
    return isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)


def _key_bytes(key: Key, encoding: serialization.Encoding) -> bytes:
    return key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
