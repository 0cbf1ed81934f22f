"""S3 for the prober: one small object put, read back and deleted, signed by botocore and sent without threads.

boto3's client blocks, retries for minutes and loads 30 MiB of service models; a probe wants one try with a deadline.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import quote, urlsplit

from synapse_ops.errors import ConfigError, IntegrityError, ObjectMissing, Throttled, Unreachable
from synapse_ops.systems.http_probe import HttpProbe
from synapse_ops.systems.probe_stage import Stage
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess


@dataclass(frozen=True, slots=True)
class StoreRoundTrip:
    """What putting, getting and deleting an object showed. clock_skew_s: the store's clock minus ours; None unknown."""

    clock_skew_s: float | None


async def round_trip(
    http: HttpProbe, url: str, access: StoreAccess, key: str, data: bytes, stage: Stage
) -> StoreRoundTrip:
    """Put, get and delete `key` below a repository's URL. Raises IntegrityError when what comes back differs.

    Raises ConfigError when the store refuses us, ObjectMissing for a bucket that is not there, Unreachable.
    """
    parts = urlsplit(url)
    endpoint = (access.endpoint or f"https://s3.{access.region}.amazonaws.com").rstrip("/")
    path = f"{parts.netloc}/{parts.path.strip('/')}".rstrip("/") + f"/{key}"
    address = f"{endpoint}/{quote(path, safe='/~')}"
    credentials = await _credentials(url, access)
    skew_s: float | None = None
    for method, content in (("PUT", data), ("GET", b""), ("DELETE", b"")):
        headers = _signed(method, address, content, credentials, access.region)
        stage.words = f"{method}: connecting"
        status, answer, body = await http.request(method, address, headers=headers, content=content, stage=stage)
        stage.words = f"{method}: {stage.words}"
        _refuse(method, url, status, body)
        if method == "GET" and body != data:
            raise IntegrityError(f"{url}{key} came back with {len(body)} bytes that are not the {len(data)} written")
        skew_s = _skew(answer) if skew_s is None else skew_s
    return StoreRoundTrip(skew_s)


async def _credentials(url: str, access: StoreAccess) -> Any:
    from botocore.credentials import Credentials

    if access.access_key is not None:
        return Credentials(access.access_key, access.secret_key, access.session_token)
    import asyncio

    found = await asyncio.to_thread(ObjectStore(url, access).credentials)  # may ask an instance's metadata service
    if found is None:
        raise ConfigError("no S3 credentials were found", hint="See object_store.credentials in the spec.")
    return found


def _signed(method: str, address: str, content: bytes, credentials: Any, region: str) -> dict[str, str]:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest

    request = AWSRequest(method, address, data=content or None)
    request.context["payload_signing_enabled"] = True
    S3SigV4Auth(credentials, "s3", region).add_auth(request)
    return {str(name): str(value) for name, value in request.headers.items()}


_UNKNOWN_KEY = "<Code>XAdminUserNotFound<"  # versitygw's answer to an access key that it does not know, with 404


def _refuse(method: str, url: str, status: int, body: bytes) -> None:
    if 200 <= status < 300:
        return
    words = " ".join(body[:300].decode("utf-8", errors="replace").split())
    if status in {401, 403} or _UNKNOWN_KEY in words:
        raise ConfigError(f"the store refuses {method} below {url}: {status}", detail=words)
    if status == 404:
        raise ObjectMissing(f"the store answers {method} below {url} with 404", detail=words)
    if status in {429, 503}:
        raise Throttled(f"the store answers {method} below {url} with {status}: later", detail=words)
    raise Unreachable(f"the store answers {method} below {url} with {status}", detail=words)


def _skew(headers: Mapping[str, str]) -> float | None:
    try:
        return (parsedate_to_datetime(headers["date"]) - datetime.now(UTC)).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None
