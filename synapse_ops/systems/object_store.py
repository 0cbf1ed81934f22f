"""S3 through boto3: the only module that imports it, and the place where its errors become ours.

Made for stores of every quality (AWS, SeaweedFS, versitygw, rclone): it needs nothing beyond put, get, head, list,
delete and multipart upload. What a store may lack (conditional writes, kept checksums) is asked with a probe, and
callers say by name what they do without.
Keys given and returned are relative to the prefix of the URL; listings are sorted here, because stores differ.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import urlsplit

from synapse_ops.errors import (
    ConfigError,
    IntegrityError,
    ObjectMissing,
    Refused,
    SynapseOpsError,
    Throttled,
    Unreachable,
)

if TYPE_CHECKING:
    from types import TracebackType

PART_BYTES = 8 * 1024 * 1024  # the least S3 takes is 5 MiB; 8 MiB x 4 in flight keeps memory flat and the pipe full
PARTS_IN_FLIGHT = 4
MAX_PARTS = 10_000  # S3's own limit
DELETE_BATCH = 1000  # S3's own limit for DeleteObjects
READ_BYTES = (
    8 * 1024 * 1024
)  # ranged GETs: one streamed GET of a large object costs some stores its whole size in memory

_THROTTLED = {
    "SlowDown",
    "ServiceUnavailable",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "503",
    "429",
}
_MISSING = {"NoSuchKey", "404", "NotFound"}
_LOST_RACE = {"PreconditionFailed", "412", "ConditionalRequestConflict", "409"}
_DENIED = {
    "403",
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "XAdminUserNotFound",  # versitygw
}


class ConditionFailed(Refused):
    """A conditional write lost: somebody else wrote the key first."""


@dataclass(frozen=True)
class StoreAccess:
    """How to reach a bucket. `repr` never shows the secret.

    endpoint: None means AWS. ca_file: a bundle for a private certificate authority.
    """

    endpoint: str | None = None
    region: str = "us-east-1"
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    ca_file: Path | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, prefix: str = "AWS") -> StoreAccess:
        """Return what `<prefix>_ACCESS_KEY_ID`, `_SECRET_ACCESS_KEY`, `_ENDPOINT_URL`, `_REGION` ... say.

        Keys that are absent are left to boto3's own chain (profile, instance role).
        """
        ca_file = environ.get(f"{prefix}_CA_BUNDLE")
        return cls(
            endpoint=environ.get(f"{prefix}_ENDPOINT_URL"),
            region=environ.get(f"{prefix}_REGION") or environ.get(f"{prefix}_DEFAULT_REGION") or "us-east-1",
            access_key=environ.get(f"{prefix}_ACCESS_KEY_ID"),
            secret_key=environ.get(f"{prefix}_SECRET_ACCESS_KEY"),
            session_token=environ.get(f"{prefix}_SESSION_TOKEN"),
            ca_file=Path(ca_file) if ca_file else None,
        )


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One row of a listing. `etag` without quotes; `modified_at` is the store's clock, aware UTC."""

    key: str
    size_bytes: int
    etag: str
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class WrittenObject:
    """What was sent and accepted. `sha256` (hex) is of the bytes we sent."""

    key: str
    size_bytes: int
    etag: str
    sha256: str


@dataclass(frozen=True, slots=True)
class UploadInfo:
    """A multipart upload that was begun and not completed."""

    key: str
    upload_id: str
    initiated_at: datetime


@dataclass(frozen=True, slots=True)
class StoreFeatures:
    """What the store honours, found by trying. False also when the probe could not tell."""

    conditional_writes: bool
    keeps_checksums: bool

    def missing(self) -> list[str]:
        """Return, in words, what we do without on this store."""
        words = []
        if not self.conditional_writes:
            words.append("conditional writes: leases hold on this host only")
        if not self.keeps_checksums:
            words.append("stored checksums: every object is read back in full after its upload")
        return words


@contextmanager
def s3_errors(what: str) -> Iterator[None]:
    """Turn every botocore error inside into one of ours that names `what`."""
    from botocore import exceptions as boto

    try:
        yield
    except boto.ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = str(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", ""))
        raise _mapped_reply(what, code, status, str(error.response.get("Error", {}).get("Message", ""))) from error
    except (boto.NoCredentialsError, boto.PartialCredentialsError, boto.ProfileNotFound) as error:
        raise ConfigError(
            f"cannot sign a request for {what}: no S3 credentials",
            detail=str(error),
            hint="Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or object_store.credentials in the spec.",
        ) from error
    except (boto.ParamValidationError, boto.InvalidRegionError) as error:
        raise ConfigError(f"cannot address {what}", detail=str(error)) from error
    except (boto.FlexibleChecksumError, boto.ChecksumError) as error:
        raise IntegrityError(f"bytes of {what} differ from the store's own checksum", detail=str(error)) from error
    except (boto.BotoCoreError, OSError) as error:
        raise Unreachable(
            f"could not reach the object store for {what}",
            detail=str(error),
            hint="Is the store up, and is object_store.endpoint right?",
        ) from error


def _mapped_reply(what: str, code: str, status: str, message: str) -> SynapseOpsError:
    both = {code, status}
    if both & _LOST_RACE:
        return ConditionFailed(f"could not write {what}: somebody else wrote it first", detail=f"{code} {message}")
    if code == "NoSuchBucket":
        return ConfigError(f"cannot find the bucket of {what}", detail=message, hint="Create the bucket first.")
    if both & _MISSING:
        return ObjectMissing(f"object {what} is not in the store", detail=f"{code} {message}")
    if both & _DENIED:
        return ConfigError(
            f"the object store refused access to {what}",
            detail=f"{code} {message}",
            hint="Check the access key, its secret, and the rights of that identity on the bucket.",
        )
    if both & _THROTTLED:
        return Throttled(f"could not finish with {what}: the object store is busy", detail=f"{code} {message}")
    if status.startswith("5") or code in {"InternalError", "RequestTimeout"}:
        return Unreachable(
            f"could not finish with {what}: the object store failed", detail=f"{code or status} {message}"
        )
    return SynapseOpsError(f"the object store refused {what}", detail=f"{code or status} {message}")


class ObjectStore:
    """One bucket and prefix. Safe to share between threads. Every method raises the errors of `s3_errors`."""

    def __init__(self, url: str, access: StoreAccess) -> None:
        parts = urlsplit(url)
        if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError(f'repository "{url}" is not of the form s3://bucket/prefix/')
        self.url = f"s3://{parts.netloc}/{parts.path.strip('/')}".rstrip("/") + "/"
        self.bucket = parts.netloc
        self.prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
        self.access = access

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    @cached_property
    def _client(self) -> Any:
        import boto3
        from botocore.config import Config

        with s3_errors(self.url):
            return boto3.session.Session().client(
                "s3",
                endpoint_url=self.access.endpoint,
                region_name=self.access.region,
                aws_access_key_id=self.access.access_key,
                aws_secret_access_key=self.access.secret_key,
                aws_session_token=self.access.session_token,
                verify=str(self.access.ca_file) if self.access.ca_file else None,
                config=Config(
                    signature_version="s3v4",
                    connect_timeout=5,
                    read_timeout=60,
                    max_pool_connections=32,
                    retries={"mode": "standard", "max_attempts": 4},
                    s3={"addressing_style": "path" if self.access.endpoint else "auto"},
                    # rclone and older stores answer a ranged GET with the whole object's checksum
                    response_checksum_validation="when_required",
                ),
            )

    def _key(self, key: str) -> str:
        return self.prefix + key

    def full_url(self, key: str) -> str:
        """Return the s3:// URL of a key, for people."""
        return self.url + key

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below `prefix`, page by page (1000 keys), in the store's own order.

        Most stores sort by UTF-8; SeaweedFS sorts by directory. Never rely on the order: sort what must be sorted.
        """
        arguments: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self._key(prefix)}
        if start_after:
            arguments["StartAfter"] = self._key(start_after)
        cut = len(self.prefix)
        while True:
            with s3_errors(self.full_url(prefix)):
                page = self._client.list_objects_v2(**arguments)
            for row in page.get("Contents", ()):
                yield ObjectInfo(row["Key"][cut:], row["Size"], row["ETag"].strip('"'), row["LastModified"])
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def list_prefixes(self, prefix: str = "") -> list[str]:
        """Return the next path segments below `prefix`, sorted, without slashes."""
        arguments: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self._key(prefix), "Delimiter": "/"}
        found: set[str] = set()
        while True:
            with s3_errors(self.full_url(prefix)):
                page = self._client.list_objects_v2(**arguments)
            found.update(row["Prefix"][len(self._key(prefix)) :].rstrip("/") for row in page.get("CommonPrefixes", ()))
            if not page.get("IsTruncated"):
                return sorted(found)
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def head(self, key: str) -> ObjectInfo | None:
        """Return an object's size, ETag and time, or None when it does not exist."""
        try:
            with s3_errors(self.full_url(key)):
                reply = self._client.head_object(Bucket=self.bucket, Key=self._key(key))
        except ObjectMissing:
            return None
        return ObjectInfo(key, reply["ContentLength"], reply["ETag"].strip('"'), reply["LastModified"])

    def stored_sha256(self, key: str) -> str | None:
        """Return the sha256 (hex) that the store itself keeps for a whole object, or None where it keeps none."""
        import base64

        with s3_errors(self.full_url(key)):
            reply = self._client.head_object(Bucket=self.bucket, Key=self._key(key), ChecksumMode="ENABLED")
        kept = reply.get("ChecksumSHA256")
        if not kept or "-" in kept:  # `-N` is a checksum of checksums, not of the bytes
            return None
        return base64.b64decode(kept).hex()

    def read_bytes(self, key: str, *, max_bytes: int = 64 * 1024 * 1024) -> bytes:
        """Return a small object whole. Raises ObjectMissing, or IntegrityError above `max_bytes`."""
        with s3_errors(self.full_url(key)):
            reply = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
            if reply["ContentLength"] > max_bytes:
                reply["Body"].close()
                raise IntegrityError(
                    f"object {self.full_url(key)} has {reply['ContentLength']} bytes, limit {max_bytes}"
                )
            return bytes(reply["Body"].read())

    def read_with_etag(self, key: str) -> tuple[bytes, str] | None:
        """Return a small object and its ETag for a later `if_match`, or None when it does not exist."""
        try:
            with s3_errors(self.full_url(key)):
                reply = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
                return bytes(reply["Body"].read()), reply["ETag"].strip('"')
        except ObjectMissing:
            return None

    def open_reader(self, key: str) -> ObjectReader:
        """Return a binary file over an object, read by ranges with one part read ahead."""
        info = self.head(key)
        if info is None:
            raise ObjectMissing(f"object {self.full_url(key)} is not in the store")
        return ObjectReader(self, info)

    def read_range(self, key: str, start: int, size: int, etag: str) -> bytes:
        """Return `size` bytes from `start`, only from the version with this ETag."""
        with s3_errors(self.full_url(key)):
            reply = self._client.get_object(
                Bucket=self.bucket, Key=self._key(key), Range=f"bytes={start}-{start + size - 1}", IfMatch=f'"{etag}"'
            )
            data = bytes(reply["Body"].read())
        if len(data) != size:
            raise IntegrityError(f"range {start}+{size} of {self.full_url(key)} gave {len(data)} bytes")
        return data

    def put_bytes(
        self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> WrittenObject:
        """Write a small object in one request; safe to repeat.

        if_none_match: only when the key does not exist. if_match: only over the version with this ETag.
        Raises ConditionFailed when the condition does not hold, on stores that honour it (see `features`).
        """
        arguments: dict[str, Any] = {}
        if if_none_match:
            arguments["IfNoneMatch"] = "*"
        if if_match is not None:
            arguments["IfMatch"] = f'"{if_match}"'
        try:
            with s3_errors(self.full_url(key)):
                reply = self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **arguments)
        except ObjectMissing as missing:
            if if_match is None:
                raise
            raise ConditionFailed(f"could not write {self.full_url(key)}: it was removed meanwhile") from missing
        return WrittenObject(key, len(data), reply["ETag"].strip('"'), hashlib.sha256(data).hexdigest())

    def open_writer(self, key: str) -> ObjectWriter:
        """Return a writer that uploads while it is written to; nothing exists under `key` before `complete()`."""
        return ObjectWriter(self, key)

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        """Delete exactly these keys in batches of 1000; return the ones that failed with the store's reason.

        Deleting what is already gone succeeds. Order within a call is not kept: call once per step of an order.
        """
        failed: dict[str, str] = {}
        cut = len(self.prefix)
        for start in range(0, len(keys), DELETE_BATCH):
            batch = [{"Key": self._key(key)} for key in keys[start : start + DELETE_BATCH]]
            with s3_errors(f"{len(batch)} objects to delete under {self.url}"):
                reply = self._client.delete_objects(Bucket=self.bucket, Delete={"Objects": batch, "Quiet": True})
            failed.update(
                {row["Key"][cut:]: f"{row['Code']} {row.get('Message', '')}" for row in reply.get("Errors", ())}
            )
        return failed

    def list_uploads(self, prefix: str = "") -> Iterator[UploadInfo]:
        """Yield multipart uploads below `prefix` that are neither completed nor aborted."""
        arguments: dict[str, Any] = {"Bucket": self.bucket, "Prefix": self._key(prefix)}
        cut = len(self.prefix)
        while True:
            with s3_errors(self.full_url(prefix)):
                page = self._client.list_multipart_uploads(**arguments)
            for row in page.get("Uploads", ()):
                if row["Key"].startswith(self._key(prefix)):  # some stores ignore the prefix
                    yield UploadInfo(row["Key"][cut:], row["UploadId"], row["Initiated"])
            if not page.get("IsTruncated"):
                return
            arguments["KeyMarker"] = page["NextKeyMarker"]
            arguments["UploadIdMarker"] = page["NextUploadIdMarker"]

    def abort_upload(self, upload: UploadInfo) -> None:
        """Abort one multipart upload; one that is already gone is fine."""
        try:
            with s3_errors(self.full_url(upload.key)):
                self._client.abort_multipart_upload(
                    Bucket=self.bucket, Key=self._key(upload.key), UploadId=upload.upload_id
                )
        except (ObjectMissing, SynapseOpsError) as error:
            if isinstance(error, ObjectMissing) or "NoSuchUpload" in error.detail:
                return
            raise

    def server_time(self) -> datetime:
        """Return the store's own clock (aware UTC, whole seconds), from the Date header of a reply.

        Raises Unreachable when a reply carries none: an unknown clock is not a good clock.
        """
        with s3_errors(self.url):
            reply = self._client.list_objects_v2(Bucket=self.bucket, Prefix=self.prefix, MaxKeys=1)
        header = reply["ResponseMetadata"]["HTTPHeaders"].get("date")
        if not header:
            raise Unreachable(f"could not read the clock of {self.url}: its reply carries no Date")
        return parsedate_to_datetime(header).astimezone(UTC)

    def create_bucket(self) -> None:
        """Create the bucket; one that is already ours is fine."""
        try:
            with s3_errors(self.url):
                self._client.create_bucket(Bucket=self.bucket)
        except SynapseOpsError as error:
            if not any(word in error.detail for word in ("BucketAlreadyOwnedByYou", "BucketAlreadyExists")):
                raise

    @cached_property
    def features(self) -> StoreFeatures:
        """Ask the store, with probe objects that are removed again, what it honours. Asked once per instance."""
        probe = f"leases/probe-{os.urandom(8).hex()}.json"
        try:
            self.put_bytes(probe, b"{}")
            try:
                self.put_bytes(probe, b"{} ", if_none_match=True)
                conditional = False
            except ConditionFailed:
                conditional = True
            try:
                self.put_bytes(probe, b"{}  ", if_match="0" * 32)
                conditional = False
            except ConditionFailed:
                pass
            with s3_errors(self.full_url(probe)):
                self._client.put_object(
                    Bucket=self.bucket, Key=self._key(probe), Body=b"{}", ChecksumAlgorithm="SHA256"
                )
            keeps = self.stored_sha256(probe) == hashlib.sha256(b"{}").hexdigest()
        finally:
            self.delete([probe])
        return StoreFeatures(conditional_writes=conditional, keeps_checksums=keeps)


class ObjectWriter(io.RawIOBase):
    """Streams an object into S3: bytes in, parts out, memory flat at PARTS_IN_FLIGHT + 1 parts.

    Use as a context manager and call `complete()` as the last thing; leaving without it aborts the upload, and then
    nothing was ever visible under the key. Part sizes grow so that no object meets the 10,000-part limit.
    """

    def __init__(self, store: ObjectStore, key: str) -> None:
        super().__init__()
        self._store = store
        self._key = key
        self._buffer = bytearray()
        self._sha256 = hashlib.sha256()
        self.size_bytes = 0
        self._upload_id: str | None = None
        self._pool = ThreadPoolExecutor(PARTS_IN_FLIGHT, thread_name_prefix="s3-part")
        self._pending: list[Future[dict[str, Any]]] = []
        self._parts: list[dict[str, Any]] = []
        self._part_number = 0
        self._completed: WrittenObject | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        """Take bytes; blocks while PARTS_IN_FLIGHT parts are under way."""
        view = memoryview(data).cast("B")
        self._sha256.update(view)
        self.size_bytes += len(view)
        self._buffer += view
        while len(self._buffer) >= self._part_bytes():
            self._send(self._part_bytes())
        return len(view)

    def _part_bytes(self) -> int:
        # 1,000 parts of each size before it doubles: 8 GiB in 8 MiB parts, 24 GiB with 16 MiB, ... 8 TiB within 10,000
        return PART_BYTES << (self._part_number // 1000)

    def _send(self, size: int) -> None:
        chunk = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        if self._upload_id is None:
            with s3_errors(self._store.full_url(self._key)):
                reply = self._store._client.create_multipart_upload(  # noqa: SLF001 - one module, one client
                    Bucket=self._store.bucket,
                    Key=self._store._key(self._key),  # noqa: SLF001
                )
            self._upload_id = reply["UploadId"]
        self._part_number += 1
        if len(self._pending) >= PARTS_IN_FLIGHT:
            self._parts.append(self._pending.pop(0).result())
        self._pending.append(self._pool.submit(self._upload_part, self._part_number, chunk))

    def _upload_part(self, number: int, chunk: bytes) -> dict[str, Any]:
        with s3_errors(self._store.full_url(self._key)):
            reply = self._store._client.upload_part(  # noqa: SLF001
                Bucket=self._store.bucket,
                Key=self._store._key(self._key),  # noqa: SLF001
                UploadId=self._upload_id,
                PartNumber=number,
                Body=chunk,
            )
        return {"PartNumber": number, "ETag": reply["ETag"]}

    def complete(self) -> WrittenObject:
        """Finish the upload; from here the object exists. Raises what any of its parts raised."""
        if self._upload_id is None:
            written = self._store.put_bytes(self._key, bytes(self._buffer))
            self._completed = written
            return written
        if self._buffer:
            self._send(len(self._buffer))
        self._parts += [future.result() for future in self._pending]
        self._pending.clear()
        with s3_errors(self._store.full_url(self._key)):
            reply = self._store._client.complete_multipart_upload(  # noqa: SLF001
                Bucket=self._store.bucket,
                Key=self._store._key(self._key),  # noqa: SLF001
                UploadId=self._upload_id,
                MultipartUpload={"Parts": self._parts},
            )
        self._completed = WrittenObject(self._key, self.size_bytes, reply["ETag"].strip('"'), self._sha256.hexdigest())
        return self._completed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release everything; aborts the upload unless it was completed."""
        if self.closed:
            return
        super().close()
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._completed is None and self._upload_id is not None:
            self._store.abort_upload(UploadInfo(self._key, self._upload_id, datetime.now(UTC)))


class ObjectReader(io.RawIOBase):
    """A forward-only binary file over one version of an object, one range read ahead, hashing what passes.

    `sha256` and `read_bytes_total` are of the bytes handed out so far. A version that changes meanwhile raises.
    """

    def __init__(self, store: ObjectStore, info: ObjectInfo) -> None:
        super().__init__()
        self._store = store
        self.info = info
        self._sha256 = hashlib.sha256()
        self.read_bytes_total = 0
        self._asked = 0
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="s3-range")
        self._ahead: list[Future[bytes]] = []
        self._chunk = memoryview(b"")

    def readable(self) -> bool:
        return True

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def readinto(self, buffer: Any) -> int:
        if not self._chunk:
            self._fill()
        if not self._chunk:
            return 0
        view = memoryview(buffer).cast("B")
        size = min(len(view), len(self._chunk))
        view[:size] = self._chunk[:size]
        self._sha256.update(self._chunk[:size])
        self._chunk = self._chunk[size:]
        self.read_bytes_total += size
        return size

    def _fill(self) -> None:
        while len(self._ahead) < 2 and self._asked < self.info.size_bytes:
            size = min(READ_BYTES, self.info.size_bytes - self._asked)
            arguments = (self.info.key, self._asked, size, self.info.etag)
            self._ahead.append(self._pool.submit(self._store.read_range, *arguments))
            self._asked += size
        if self._ahead:
            self._chunk = memoryview(self._ahead.pop(0).result())

    def close(self) -> None:
        if not self.closed:
            self._pool.shutdown(wait=True, cancel_futures=True)
        super().close()
