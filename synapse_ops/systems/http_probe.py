"""One GET, watched from the first packet to the last byte: the prober's client for HTTP endpoints.

No answer can hold more than its own time or a little memory: redirects are followed here, one by one and without
reading their bodies; a body is read up to a limit and never unpacked; there is no pool that one endpoint could fill,
no cookie that one endpoint could set for another, and no proxy of the environment in between.
Timeouts are the caller's: it cancels, and reads from `Stage` how far the request had come.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import httpx

from synapse_ops import __version__
from synapse_ops.domain.health.http import HttpReply
from synapse_ops.errors import ConfigError, IntegrityError, Unreachable
from synapse_ops.systems.probe_stage import Stage

MAX_BODY_BYTES = 64 * 1024
MAX_REDIRECTS = 5  # curl follows 50, browsers 20; a health endpoint that needs more than one is odd already

_STAGES = {
    "connection.connect_tcp.started": "connecting",
    "connection.start_tls.started": "waiting for the TLS handshake",
    "http11.send_request_headers.started": "sending the request",
    "http11.receive_response_headers.started": "waiting for an answer",
    "http11.receive_response_body.started": "waiting for the end of the body",
}


class HttpProbe:
    """The client of all endpoints of one process. Not safe across event loops."""

    def __init__(self, ca_file: str | None = None) -> None:
        """ca_file: authorities that endpoints are checked against; None: those of the system.

        Raises ConfigError when the file cannot be used.
        """
        try:
            self._context = ssl.create_default_context(cafile=ca_file)
        except OSError as fault:
            raise ConfigError(f"cannot use the certificate authorities of {ca_file}", detail=str(fault)) from fault
        self._client = httpx.AsyncClient(
            verify=self._context,
            timeout=None,  # noqa: S113 - the caller's deadline is over everything, the body included
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            trust_env=False,
            headers={
                "User-Agent": f"synapse-ops/{__version__}",
                "Accept": "application/json, text/plain;q=0.9, */*;q=0.5",
                "Accept-Encoding": "identity",
            },
        )
        self._client.cookies.jar.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, url: str, stage: Stage, headers: Mapping[str, str] | None = None) -> HttpReply:
        """Return the answer at the end of the redirects. Raises Unreachable, or IntegrityError for a malformed one."""

        async def note(event: str, info: Any) -> None:
            del info
            stage.words = _STAGES.get(event, stage.words)

        began = time.monotonic()
        target = httpx.URL(url)
        for _ in range(MAX_REDIRECTS + 1):
            request = self._client.build_request("GET", target, headers=headers, extensions={"trace": note})
            with http_errors(target):
                response = await self._client.send(request, stream=True)
                try:
                    if not response.has_redirect_location:
                        return await _read(response, began)
                    target = _next_target(target, response)
                finally:
                    await response.aclose()
        raise IntegrityError(f"redirects too often: after {MAX_REDIRECTS} it points to {_shown(target)}")

    async def request(
        self, method: str, url: str, *, headers: Mapping[str, str], content: bytes = b"", stage: Stage
    ) -> tuple[int, Mapping[str, str], bytes]:
        """Return status, headers and body (cut) of one request without redirects: for stores' own protocols."""

        async def note(event: str, info: Any) -> None:
            del info
            stage.words = _STAGES.get(event, stage.words)

        request = self._client.build_request(
            method, url, headers=dict(headers), content=content, extensions={"trace": note}
        )
        with http_errors(request.url):
            response = await self._client.send(request, stream=True)
            try:
                reply = await _read(response, time.monotonic())
                return response.status_code, response.headers, reply.body
            finally:
                await response.aclose()


def _next_target(here: httpx.URL, response: httpx.Response) -> httpx.URL:
    location = response.headers.get("location", "")
    try:
        target = here.join(location)
    except (httpx.InvalidURL, ValueError) as fault:
        raise IntegrityError(f"redirects to an invalid address: {location[:80]!r}") from fault
    if target.scheme not in {"http", "https"} or not target.host:
        raise IntegrityError(f"redirects to {location[:80]!r}, which is neither http nor https")
    if target.host != here.host:  # a login page elsewhere answers 200 whatever is the matter here
        raise IntegrityError(f"redirects to another host, {target.host[:80]}, which this check does not cover")
    if here.scheme == "https" and target.scheme == "http":
        raise IntegrityError(f"redirects from https to {_shown(target)}")
    return target


async def _read(response: httpx.Response, began: float) -> HttpReply:
    body = bytearray()
    is_cut = False
    async for chunk in response.aiter_raw():
        body += chunk[: MAX_BODY_BYTES - len(body)]
        if len(body) >= MAX_BODY_BYTES:
            is_cut = True
            break
    encoding = response.headers.get("content-encoding", "").strip().lower() or "identity"
    return HttpReply(
        status=response.status_code,
        latency_s=time.monotonic() - began,
        content_type=response.headers.get("content-type", ""),
        body=bytes(body) if encoding == "identity" else b"",  # asked for none; what is packed is not judged
        is_cut=is_cut,
        encoding=encoding,
        certificate_days=_certificate_days(response),
    )


def _certificate_days(response: httpx.Response) -> float | None:
    stream = response.extensions.get("network_stream")
    tls = stream.get_extra_info("ssl_object") if stream is not None else None
    certificate = tls.getpeercert() if tls is not None else None
    if not certificate or "notAfter" not in certificate:
        return None
    ends_s = ssl.cert_time_to_seconds(str(certificate["notAfter"]))
    return (ends_s - datetime.now(UTC).timestamp()) / 86400


class http_errors:  # noqa: N801 - used as a function, as s3_errors and postgres_errors are
    """Turn every httpx error inside into one of ours that names where the request went."""

    def __init__(self, url: httpx.URL) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            raise IntegrityError(f"{_shown(self._url)} is not an address that can be requested") from error
        if not isinstance(error, httpx.HTTPError):
            return
        certificate = _cause(error, ssl.SSLCertVerificationError)
        if certificate is not None:
            raise IntegrityError(f"its certificate is wrong: {certificate.verify_message}") from error
        tls = _cause(error, ssl.SSLError)
        if tls is not None:
            raise Unreachable(f"TLS with {_place(self._url)} failed: {tls.reason or tls}") from error
        if _cause(error, socket.gaierror) is not None:
            raise Unreachable(f"the name {self._url.host} is not known") from error
        refused = _cause(error, OSError)
        if isinstance(error, httpx.ConnectError):
            what = (refused.strerror or str(refused)) if refused is not None else _shortly(error)
            raise Unreachable(f"nothing answers at {_place(self._url)}: {what}") from error
        raise Unreachable(f"the connection ended before a whole answer: {_shortly(error)}") from error


def _cause(error: BaseException, kind: type[Any]) -> Any:
    """Return the first error of a kind in the chain; a ConnectError of httpx wraps two others."""
    seen: BaseException | None = error
    for _ in range(8):
        if seen is None:
            return None
        if isinstance(seen, kind):
            return seen
        seen = seen.__cause__ or seen.__context__
    return None


def _shortly(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


def _place(url: httpx.URL) -> str:
    return f"{url.host}:{url.port or (443 if url.scheme == 'https' else 80)}"


def _shown(url: httpx.URL) -> str:
    """Return a URL without its query, which may carry a token."""
    return str(url.copy_with(query=None, fragment=None))[:120]
