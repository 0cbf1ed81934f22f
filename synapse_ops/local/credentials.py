"""Passwords and certificates of the embedded stack: made once, kept in files of mode 0600, never logged or in argv."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from synapse_ops.systems.host.processes import ServerIdentity, give_to, make_private_dir

CERTIFICATE_LIFE = timedelta(days=3650)
RENEW_BEFORE = timedelta(days=30)
PASSWORD_BYTES = 24


def read_or_make_password(secrets_dir: Path, name: str) -> str:
    """Return the password of that name, making it on first use."""
    path = secrets_dir / name
    with contextlib.suppress(FileNotFoundError):
        kept = path.read_text(encoding="utf-8").strip()
        if kept:
            return kept
    made = secrets.token_urlsafe(PASSWORD_BYTES)
    write_secret(path, made + "\n")
    return made


def write_secret(path: Path, text: str, identity: ServerIdentity | None = None) -> None:
    """Replace a file of mode 0600 in one step; owned by `identity` where a server must read it."""
    making = path.with_name(path.name + ".making")
    making.unlink(missing_ok=True)
    with os.fdopen(os.open(making, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    give_to(identity, making)
    making.replace(path)


def make_certificates(
    tls_dir: Path, authority_file: Path, identity: ServerIdentity | None, now: datetime, *, names: Sequence[str] = ()
) -> None:
    """Make a certificate authority and one server certificate for loopback, unless good ones are there.

    tls_dir: server.crt and server.key, owned by the identity. authority_file: what clients verify against. The
    authority's own key is not kept, so no second server can be signed with it. names: other names and addresses.
    """
    from cryptography import x509

    make_private_dir(tls_dir, identity)
    certificate_file, key_file = tls_dir / "server.crt", tls_dir / "server.key"
    if authority_file.exists() and certificate_file.exists() and key_file.exists():
        kept = x509.load_pem_x509_certificate(certificate_file.read_bytes())
        if kept.not_valid_after_utc - now > RENEW_BEFORE:
            return
    authority, certificate, key = _issue(now, names)
    authority_file.unlink(missing_ok=True)  # written last, it says that the three belong together
    write_secret(key_file, key, identity)
    write_secret(certificate_file, certificate, identity)
    write_secret(authority_file, authority)
    authority_file.chmod(0o644)


def _issue(now: datetime, more_names: Sequence[str]) -> tuple[str, str, str]:
    """Return PEM texts: the authority's certificate, the server's certificate, the server's key."""
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def name(common: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])

    def builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        begun = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
        begun = begun.serial_number(x509.random_serial_number())
        return begun.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + CERTIFICATE_LIFE)

    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority_name = name("synapse-ops embedded stack")
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    begun = builder(authority_name, authority_name, authority_key.public_key()).add_extension(
        constraints, critical=True
    )
    authority = begun.sign(authority_key, hashes.SHA256())

    key = ec.generate_private_key(ec.SECP256R1())

    def alternative(given: str) -> x509.GeneralName:
        with contextlib.suppress(ValueError):
            return x509.IPAddress(ip_address(given))
        return x509.DNSName(given)

    names = x509.SubjectAlternativeName([alternative(each) for each in ("localhost", "127.0.0.1", "::1", *more_names)])
    begun = builder(name("localhost"), authority_name, key.public_key()).add_extension(names, critical=False)
    certificate = begun.sign(authority_key, hashes.SHA256())
    pem = serialization.Encoding.PEM
    key_text = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return (
        authority.public_bytes(pem).decode(),
        certificate.public_bytes(pem).decode(),
        key_text.decode(),
    )


def now_utc() -> datetime:
    return datetime.now(UTC)
