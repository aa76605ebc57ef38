"""The one-time token that the administrator carries from the first node to the second.

It holds who invites (cluster id, address), the public key of the pair's authority, so that the joiner knows the
inviter without having met it (as long as a fingerprint, and more useful: TLS can be anchored to it), and a secret of
128 bits. From the secret both sides derive the same P-256 key, the *bootstrap authority*: the joiner signs itself a
client certificate with it, the inviter trusts that authority for a while, and a bootstrap client may call nothing but
Join. The inviter stores the public half only, so that its files do not give the token away.

Text: ``HS1`` and base32 of: version (1), id (8), secret (16), cluster id (16), authority's key (33), length and
text of the address, checksum (4). Case, blanks, line ends and hyphens do not matter. Pure but for randomness.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import uuid
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from ha_sync.errors import Refused
from ha_sync.pairing import certificates
from ha_sync.pairing.certificates import Key, Member, PublicKey

PREFIX = "HS1"
VERSION = 1
SECRET_BYTES = 16
FIXED_BYTES = 1 + 8 + SECRET_BYTES + 16 + 33 + 1
CHECKSUM_BYTES = 4
ADDRESS_BYTES_MAX = 255
TEXT_MAX = 1024
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """What the text says."""

    token_id: str  # 16 hexadecimal digits
    secret: bytes
    cluster_id: str
    authority_key: PublicKey
    address: str  # host:port of the inviter's peer port

    def __repr__(self) -> str:
        return f"Token({self.token_id}, cluster {self.cluster_id}, at {self.address})"  # never the secret


def new_token(*, cluster_id: str, authority_key: PublicKey, address: str) -> Token:
    """A fresh token."""
    return Token(
        token_id=os.urandom(8).hex(),
        secret=os.urandom(SECRET_BYTES),
        cluster_id=cluster_id,
        authority_key=authority_key,
        address=address,
    )


def encode(token: Token) -> str:
    """The text to print."""
    address = token.address.encode()
    assert 0 < len(address) <= ADDRESS_BYTES_MAX, token.address
    body = bytes([VERSION]) + bytes.fromhex(token.token_id) + token.secret
    body += uuid.UUID(token.cluster_id).bytes + certificates.public_bytes(token.authority_key)
    body += bytes([len(address)]) + address
    return PREFIX + base64.b32encode(body + _checksum(body)).decode().rstrip("=")


def decode(text: str) -> Token:
    """Reads what a person pasted. Raises ``Refused`` that says what is wrong with it."""
    compact = "".join(text.split()).replace("-", "").upper()
    if not compact.startswith(PREFIX) or len(compact) > TEXT_MAX:
        raise _refused(f"this is no pairing token: one begins with {PREFIX}")
    coded = compact[len(PREFIX) :]
    try:
        content = base64.b32decode(coded + "=" * (-len(coded) % 8))
    except binascii.Error as broken:
        raise _refused("it was mistyped: a character or the length cannot be right") from broken
    body, checksum = content[:-CHECKSUM_BYTES], content[-CHECKSUM_BYTES:]
    if len(body) < FIXED_BYTES or checksum != _checksum(body):
        raise _refused("it was mistyped or cut off: the checksum does not fit")
    return _parse(body)


def bootstrap_key(token: Token) -> Key:
    """The bootstrap authority's key: the same on both sides."""
    derived = HKDF(hashes.SHA256(), 48, salt=bytes.fromhex(token.token_id), info=b"ha-sync bootstrap v1")
    number = int.from_bytes(derived.derive(token.secret), "big")  # 384 bits: no bias worth the name (FIPS 186-5 A.2.1)
    return ec.derive_private_key(number % (P256_ORDER - 1) + 1, ec.SECP256R1())


def bootstrap_authority(public_key: PublicKey, token_id: str) -> x509.Certificate:
    """The bootstrap authority as a trust anchor; ``public_key`` is all that the inviter keeps of the secret."""
    return certificates.sign_authority(public_key, bootstrap_name(token_id), signer=certificates.new_key())


def bootstrap_name(token_id: str) -> x509.Name:
    """Its subject; unlike that of any pair's authority."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"ha-sync join {token_id}")])


def bootstrap_certificate(token: Token, public_key: PublicKey, node_id: str) -> x509.Certificate:
    """The joiner's client certificate for the one call. It never ends: the inviter's trust in its authority does.

    So a joiner whose clock is wrong can join too.
    """
    return certificates.make_certificate(
        authority_key=bootstrap_key(token),
        authority_name=bootstrap_name(token.token_id),
        public_key=public_key,
        member=Member(cluster_id=token.cluster_id, node_id=node_id),
        ends_unix_s=certificates.NEVER.timestamp(),
    )


def prove(token: Token, parts: tuple[bytes, ...]) -> bytes:
    """A signature over the request's parts that only a holder of the secret can make."""
    return bootstrap_key(token).sign(_framed(parts), ec.ECDSA(hashes.SHA256()))


def is_proof(public_key: PublicKey, proof: bytes, parts: tuple[bytes, ...]) -> bool:
    """Whether ``proof`` was made by ``prove`` with the token of ``public_key``."""
    try:
        public_key.verify(proof, _framed(parts), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    return True


def _framed(parts: tuple[bytes, ...]) -> bytes:
    # Lengths in front: no two different requests give the same bytes.
    return b"ha-sync join v1" + b"".join(len(part).to_bytes(4, "big") + part for part in parts)


def _parse(body: bytes) -> Token:
    if body[0] != VERSION:
        raise _refused(f"it is of version {body[0]}, this program knows version {VERSION}")
    address = body[FIXED_BYTES:]
    if body[FIXED_BYTES - 1] != len(address) or not address:
        raise _refused("its parts do not fit together")
    try:
        return Token(
            token_id=body[1:9].hex(),
            secret=body[9:25],
            cluster_id=str(uuid.UUID(bytes=body[25:41])),
            authority_key=certificates.load_public(body[41:74]),
            address=address.decode(),
        )
    except ValueError as broken:
        raise _refused(f"its parts make no sense: {broken}") from broken


def _checksum(body: bytes) -> bytes:
    return hashlib.sha256(b"ha-sync token" + body).digest()[:CHECKSUM_BYTES]


def _refused(reason: str) -> Refused:
    return Refused("cannot use the token", reason=reason, hint="copy it again as `ha-sync pair token` printed it")
