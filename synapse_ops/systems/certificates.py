"""How long certificates are still valid: of a PEM file, and of a server that is asked in its own protocol."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from datetime import UTC, datetime
from pathlib import Path

from synapse_ops.errors import ConfigError, IntegrityError, Unreachable

GOODBYE_TIMEOUT_S = 0.5
_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"  # PostgreSQL's SSLRequest: length 8, code 80877103


def refuse_unless_authorities(path: Path) -> None:
    """Raise ConfigError, naming the file, unless it holds certificates that a TLS client can trust.

    A client finds that out when it connects, and it then looks as if the server did not answer.
    """
    try:
        ssl.create_default_context(cafile=str(path))
    except (OSError, ValueError) as fault:
        reason = fault.strerror if isinstance(fault, OSError) and not isinstance(fault, ssl.SSLError) else None
        raise ConfigError(
            f"cannot use {path} as certificate authorities: {reason or 'it holds no PEM certificates'}",
            detail=str(fault),
            hint="It is a file of one or more blocks that begin with -----BEGIN CERTIFICATE-----.",
        ) from fault


def days_left_of_file(path: Path, now: datetime) -> float:
    """Return the days until the first certificate of a chain ends; less than 0 when it has.

    Raises ConfigError when it cannot be read, IntegrityError when it is not a PEM certificate.
    """
    from cryptography import x509

    try:
        data = path.read_bytes()
    except OSError as fault:
        raise ConfigError(f"cannot read the certificate {path}: {fault.strerror}") from fault
    try:
        chain = x509.load_pem_x509_certificates(data)
    except ValueError as fault:
        raise IntegrityError(f"{path} holds no PEM certificate", detail=str(fault)) from fault
    return (chain[0].not_valid_after_utc - now).total_seconds() / 86400


async def days_left_of_server(host: str, port: int, *, is_postgres: bool = False) -> float | None:
    """Return the days until the certificate that a server shows ends; None when it serves without TLS.

    The certificate is not verified here: whose it is, is for the probe that uses the connection.
    """
    from cryptography import x509

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        reader, writer = await asyncio.open_connection(host, port)
    except OSError as fault:
        raise Unreachable(f"nothing answers at {host}:{port}: {fault.strerror or fault}") from fault
    try:
        if is_postgres:
            writer.write(_SSL_REQUEST)
            if await reader.readexactly(1) != b"S":
                return None
        await writer.start_tls(context, server_hostname=host)
        shown = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        await _take_leave(writer)
    except (OSError, ssl.SSLError, asyncio.IncompleteReadError) as fault:
        raise Unreachable(f"no TLS with {host}:{port}: {fault}") from fault
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError, ssl.SSLError):
            await writer.wait_closed()
    certificate = x509.load_der_x509_certificate(shown)
    return (certificate.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86400


async def _take_leave(writer: asyncio.StreamWriter) -> None:
    """End a TLS connection in order. PostgreSQL logs one that just breaks off as "Connection reset by peer"."""
    writer.close()
    with contextlib.suppress(OSError):  # the certificate is known by now; TimeoutError and SSLError are OSErrors
        async with asyncio.timeout(GOODBYE_TIMEOUT_S):
            await writer.wait_closed()
