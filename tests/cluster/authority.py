"""A certificate authority of the tests: it signs who a server is, and who a client is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_LIFE = timedelta(days=2)


@dataclass(frozen=True)
class Authority:
    """folder: holds what it issues. file: its own certificate, which clients verify against."""

    folder: Path
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def file(self) -> Path:
        return self.folder / "authority.crt"

    def issue(self, name: str, *hosts: str, organization: str = "") -> tuple[Path, Path]:
        """Return the files of a certificate for a name, and of its key. hosts: the names and addresses of a server.

        organization: for Kubernetes, the group of a client.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, name)]
        if organization:
            subject.append(x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
        begun = _begun(x509.Name(subject), self.certificate.subject, key)
        if hosts:
            names = x509.SubjectAlternativeName([_general(each) for each in hosts])
            begun = begun.add_extension(names, critical=False)
        certificate = begun.sign(self.key, hashes.SHA256())
        files = self.folder / f"{name}.crt", self.folder / f"{name}.key"
        files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        files[1].write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        files[1].chmod(0o600)
        return files


def make_authority(folder: Path) -> Authority:
    """Return a new authority, which keeps its files in a new folder."""
    folder.mkdir(mode=0o700, parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests of Synapse Ops")])
    constraints = x509.BasicConstraints(ca=True, path_length=0)
    certificate = _begun(name, name, key).add_extension(constraints, critical=True).sign(key, hashes.SHA256())
    made = Authority(folder, key, certificate)
    made.file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return made


def _begun(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    begun = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key.public_key())
    begun = begun.serial_number(x509.random_serial_number())
    return begun.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + _LIFE)


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)
