"""S3 through botocore: the only module that imports it, and the place where its errors become ours.

Made for stores of every quality (AWS, SeaweedFS, versitygw, rclone): it needs nothing beyond put, get, head, list,
delete and multipart upload. What a store may lack (conditional writes, kept checksums) is asked with a probe, and
callers say by name what they do without.
Keys given and returned are relative to the prefix of the URL; listings are sorted here, because stores differ.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from synapse_ops.errors import ConfigError, IntegrityError, ObjectMissing, SynapseOpsError, Unreachable
from synapse_ops.systems.s3.client import make_client, make_session
from synapse_ops.systems.s3.errors import ConditionFailed, s3_errors
from synapse_ops.systems.s3.features import ask_features, sha256_base64
from synapse_ops.systems.s3.records import ObjectInfo, StoreAccess, StoreFeatures, UploadInfo, WrittenObject
from synapse_ops.systems.s3.streams import ObjectReader, ObjectWriter

__all__ = [
    "ConditionFailed",
    "ObjectInfo",
    "ObjectStore",
    "StoreAccess",
    "StoreFeatures",
    "UploadInfo",
    "WrittenObject",
]

DELETE_BATCH = 1000  # S3's own limit for DeleteObjects


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
        self._reads_directly = True

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    @cached_property
    def _session(self) -> Any:
        return make_session(self.access)

    @cached_property
    def _client(self) -> Any:
        with s3_errors(self.url):
            return make_client(self._session, self.access, self.url)

    @property
    def endpoint_url(self) -> str:
        """The address that requests go to, bucket not included."""
        return str(self._client.meta.endpoint_url)

    def credentials(self) -> Any:
        """Return botocore's credentials for one signature, renewed where they are short-lived; never print them."""
        with s3_errors(self.url):
            found = self._session.get_credentials()
            return None if found is None else found.get_frozen_credentials()

    def _key(self, key: str) -> str:
        return self.prefix + key

    def full_url(self, key: str) -> str:
        """Return the s3:// URL of a key, for people."""
        return self.url + key

    def list_objects(self, prefix: str = "", *, start_after: str = "") -> Iterator[ObjectInfo]:
        """Yield every object below `prefix`, page by page (1000 keys, one asked for ahead), in the store's own order.

        Most stores sort by UTF-8; SeaweedFS sorts by directory. Never rely on the order: sort what must be sorted.
        """
        position = {"StartAfter": self._key(start_after)} if start_after else {}
        with ThreadPoolExecutor(1, thread_name_prefix="s3-list") as ahead:
            rows, position, _ = self._list_page(prefix, position)
            while position:
                following = ahead.submit(self._list_page, prefix, position)
                yield from rows
                rows, position, _ = following.result()
            yield from rows

    def _list_page(
        self, prefix: str, position: Mapping[str, str]
    ) -> tuple[list[ObjectInfo], dict[str, str], list[str]]:
        """Return one page of a listing, what to ask for the next one with (empty at the end), and its prefixes."""
        with s3_errors(self.full_url(prefix)):
            page = self._client.list_objects_v2(Bucket=self.bucket, Prefix=self._key(prefix), **position)
            cut = len(self.prefix)
            rows = [
                # astimezone: the client makes a time zone object for every row
                ObjectInfo(row["Key"][cut:], row["Size"], row["ETag"].strip('"'), row["LastModified"].astimezone(UTC))
                for row in page.get("Contents", ())
            ]
            prefixes = [row["Prefix"][cut:] for row in page.get("CommonPrefixes", ())]
            following = {"ContinuationToken": page["NextContinuationToken"]} if page.get("IsTruncated") else {}
            return rows, following, prefixes

    def list_prefixes(self, prefix: str = "") -> list[str]:
        """Return the next path segments below `prefix`, sorted, without slashes."""
        return self.list_level(prefix)[1]

    def list_level(self, prefix: str = "") -> tuple[list[ObjectInfo], list[str]]:
        """Return the objects right below `prefix`, in the store's order, and the next path segments, sorted."""
        position: dict[str, str] = {"Delimiter": "/"}
        objects: list[ObjectInfo] = []
        found: set[str] = set()
        while True:
            rows, position, prefixes = self._list_page(prefix, position)
            objects += rows
            found.update(name[len(prefix) :].rstrip("/") for name in prefixes)
            if not position:
                return objects, sorted(found)
            position["Delimiter"] = "/"

    def head(self, key: str) -> ObjectInfo | None:
        """Return an object's size, ETag and time, or None when it does not exist."""
        try:
            with s3_errors(self.full_url(key)):
                reply = self._client.head_object(Bucket=self.bucket, Key=self._key(key))
                return ObjectInfo(key, reply["ContentLength"], reply["ETag"].strip('"'), reply["LastModified"])
        except ObjectMissing:
            return None

    def kept_checksum(self, key: str) -> str | None:
        """Return the sha256 that the store itself keeps for an object, as `WrittenObject.checksum`; None for none."""
        with s3_errors(self.full_url(key)):
            reply = self._client.head_object(Bucket=self.bucket, Key=self._key(key), ChecksumMode="ENABLED")
        kept: str | None = reply.get("ChecksumSHA256")
        return kept

    def read_metadata(self, key: str) -> dict[str, str]:
        """Return what `put_bytes` was given as metadata; empty where the store kept none. Raises ObjectMissing."""
        with s3_errors(self.full_url(key)):
            reply = self._client.head_object(Bucket=self.bucket, Key=self._key(key))
        return {str(name).lower(): str(value) for name, value in reply.get("Metadata", {}).items()}

    def read_bytes(self, key: str, *, etag: str | None = None, max_bytes: int = 64 * 1024 * 1024) -> bytes:
        """Return a small object whole. Raises ObjectMissing, or IntegrityError above `max_bytes`.

        etag: only this version; raises ConditionFailed when another one is stored by now.
        """
        pinned = {} if etag is None else {"IfMatch": f'"{etag}"'}
        with s3_errors(self.full_url(key)):
            reply = self._client.get_object(Bucket=self.bucket, Key=self._key(key), **pinned)
            if reply["ContentLength"] > max_bytes:
                reply["Body"].close()
                raise IntegrityError(
                    f"object {self.full_url(key)} has {reply['ContentLength']} bytes, limit {max_bytes}"
                )
            return bytes(reply["Body"].read())

    def read_listed(self, key: str, size_bytes: int, etag: str, *, max_bytes: int) -> bytes:
        """Return the version that a listing showed, as `read_bytes` does at twice the work: for thousands of them."""
        data = self._read_directly(key, size_bytes, etag) if self._reads_directly and size_bytes <= max_bytes else None
        return self.read_bytes(key, etag=etag, max_bytes=max_bytes) if data is None else data

    def _read_directly(self, key: str, size_bytes: int, etag: str) -> bytes | None:
        """Return an object through the client's signer and connections, without its models and hooks.

        None for anything but that version, whole: then `read_bytes` asks again, which retries and has the errors.
        """
        from botocore.auth import S3SigV4Auth
        from botocore.awsrequest import AWSRequest
        from botocore.exceptions import BotoCoreError
        from botocore.response import StreamingBody

        address = f"{self.endpoint_url.rstrip('/')}/{self.bucket}/{quote(self._key(key), safe='/~')}"
        request = AWSRequest("GET", address, headers={"If-Match": f'"{etag}"'}, stream_output=True)
        try:
            S3SigV4Auth(self.credentials(), "s3", self.access.region).add_auth(request)
            reply = self._client._endpoint.http_session.send(request.prepare())  # noqa: SLF001 - its pool, TLS and proxies
            with closing(reply.raw) as body:
                if reply.status_code == 200 and reply.headers.get("content-length") == str(size_bytes):
                    return bytes(StreamingBody(body, size_bytes).read())
        except (BotoCoreError, OSError):
            return None
        self._reads_directly = reply.status_code in {404, 412}  # after a redirect or a proxy's page: no second attempt
        return None

    def read_with_etag(self, key: str, *, max_bytes: int = 64 * 1024) -> tuple[bytes, str] | None:
        """Return a small object, cut at `max_bytes`, and its ETag for a later `if_match`; None when there is none."""
        try:
            with s3_errors(self.full_url(key)):
                reply = self._client.get_object(Bucket=self.bucket, Key=self._key(key))
                with closing(reply["Body"]) as body:
                    return bytes(body.read(max_bytes)), reply["ETag"].strip('"')
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
        self,
        key: str,
        data: bytes,
        *,
        if_none_match: bool = False,
        if_match: str | None = None,
        checksum: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> WrittenObject:
        """Write a small object in one request; safe to repeat.

        if_none_match: only when the key does not exist. if_match: only over the version with this ETag.
        checksum: base64 of the sha256 to announce, which the store may compare with what arrives.
        metadata: kept beside the object, readable with its head; not every store keeps it.
        Raises ConditionFailed when the condition does not hold, on stores that honour it (see `features`).
        """
        arguments: dict[str, Any] = {}
        if if_none_match:
            arguments["IfNoneMatch"] = "*"
        if if_match is not None:
            arguments["IfMatch"] = f'"{if_match}"'
        if checksum is not None:
            arguments["ChecksumSHA256"] = checksum
        if metadata:
            arguments["Metadata"] = dict(metadata)
        try:
            with s3_errors(self.full_url(key)):
                reply = self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=data, **arguments)
                etag = reply["ETag"].strip('"')
        except ObjectMissing as missing:
            if if_match is None:
                raise
            raise ConditionFailed(f"could not write {self.full_url(key)}: it was removed meanwhile") from missing
        sha256 = hashlib.sha256(data).digest() if checksum is None else base64.b64decode(checksum)
        return WrittenObject(key, len(data), etag, sha256.hex())

    def put_file(self, key: str, file: BinaryIO) -> None:
        """Write a file from its beginning in one request (at most 5 GiB), without holding it; safe to repeat."""
        file.seek(0)
        with s3_errors(self.full_url(key)):
            self._client.put_object(Bucket=self.bucket, Key=self._key(key), Body=file)

    def begin_upload(self, key: str) -> str:
        """Begin a multipart upload and return its id; nothing is visible until `complete_upload`."""
        checksums = {"ChecksumAlgorithm": "SHA256"} if self.features.keeps_checksums else {}
        with s3_errors(self.full_url(key)):
            reply = self._client.create_multipart_upload(Bucket=self.bucket, Key=self._key(key), **checksums)
            return str(reply["UploadId"])

    def upload_part(self, key: str, upload_id: str, number: int, chunk: bytes) -> dict[str, Any]:
        """Send part `number` (from 1) and return the receipt that `complete_upload` wants.

        With its sha256, where the store keeps checksums: then the store has compared what arrived.
        """
        arguments = {"Bucket": self.bucket, "Key": self._key(key), "UploadId": upload_id, "PartNumber": number}
        receipt: dict[str, Any] = {"PartNumber": number}
        if self.features.keeps_checksums:
            receipt["ChecksumSHA256"] = arguments["ChecksumSHA256"] = sha256_base64(chunk)
        with s3_errors(self.full_url(key)):
            reply = self._client.upload_part(**arguments, Body=chunk)
            return {**receipt, "ETag": reply["ETag"]}

    def complete_upload(self, key: str, upload_id: str, parts: Sequence[dict[str, Any]]) -> str:
        """Make the object exist and return its ETag.

        The client repeats a request whose answer was lost. A store that has carried out the first one knows no such
        upload then: the object under the key is ours if its ETag is that of these parts.
        """
        arguments = {"Bucket": self.bucket, "Key": self._key(key), "UploadId": upload_id}
        try:
            with s3_errors(self.full_url(key)):
                reply = self._client.complete_multipart_upload(**arguments, MultipartUpload={"Parts": list(parts)})
                return str(reply["ETag"]).strip('"')
        except ObjectMissing:
            found = self.head(key)
            if found is None or found.etag != _etag_of_parts(parts):
                raise
            return found.etag

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
                uploads = [
                    UploadInfo(row["Key"][cut:], row["UploadId"], row["Initiated"])
                    for row in page.get("Uploads", ())
                    if row["Key"].startswith(self._key(prefix))  # some stores ignore the prefix
                ]
                if page.get("IsTruncated"):
                    arguments |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}
            yield from uploads
            if not page.get("IsTruncated"):
                return

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
            if header:
                return parsedate_to_datetime(header).astimezone(UTC)
        raise Unreachable(f"could not read the clock of {self.url}: its reply carries no Date")

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
        """What the store honours, asked once per instance."""
        return ask_features(self)


def _etag_of_parts(parts: Sequence[Mapping[str, Any]]) -> str:
    """Return the ETag of an object of these parts; empty where those are not MD5s, as with a KMS key they are not."""
    try:
        digests = [bytes.fromhex(str(part["ETag"]).strip('"')) for part in parts]
    except ValueError:
        return ""
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(parts)}"
