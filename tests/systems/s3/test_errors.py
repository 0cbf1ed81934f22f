"""No error of botocore leaves the seam, whatever its class or the store's reply; no secret stands in ours."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from botocore import exceptions as boto

from synapse_ops.errors import ConfigError, ObjectMissing, SynapseOpsError, Throttled, Unreachable
from synapse_ops.systems.s3.errors import AccessRefused, s3_errors
from synapse_ops.systems.s3.store import ConditionFailed, ObjectStore, StoreAccess

BOTO_ERRORS = [
    kind
    for _, kind in inspect.getmembers(boto, inspect.isclass)
    if issubclass(kind, boto.BotoCoreError | boto.ClientError)
]
REPLIES = [
    ("NoSuchKey", 404, ObjectMissing),
    ("404", 404, ObjectMissing),
    ("NoSuchBucket", 404, ConfigError),
    ("XAdminUserNotFound", 404, AccessRefused),
    ("AccessDenied", 403, AccessRefused),
    ("InvalidAccessKeyId", 403, AccessRefused),
    ("SignatureDoesNotMatch", 403, AccessRefused),
    ("RequestTimeTooSkewed", 403, AccessRefused),
    ("ExpiredToken", 400, AccessRefused),
    ("PreconditionFailed", 412, ConditionFailed),
    ("412", 412, ConditionFailed),
    ("ConditionalRequestConflict", 409, ConditionFailed),
    ("SlowDown", 503, Throttled),
    ("ServiceUnavailable", 503, Throttled),
    ("TooManyRequests", 429, Throttled),
    ("InternalError", 500, Unreachable),
    ("", 502, Unreachable),
    ("RequestTimeout", 400, Unreachable),
    ("OperationAborted", 409, Unreachable),
    ("NotImplemented", 501, SynapseOpsError),
    ("BucketNotEmpty", 409, SynapseOpsError),
    ("EntityTooSmall", 400, SynapseOpsError),
]


@pytest.mark.parametrize("kind", BOTO_ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_of_botocore_becomes_one_of_ours(kind: type[Exception]) -> None:
    """A new botocore with a new error class cannot leak it: whatever its class, ours comes out and names the key."""
    error = kind.__new__(kind)
    Exception.__init__(error, "as botocore says")
    if isinstance(error, boto.ClientError):
        error.response = {"Error": {"Code": "Odd", "Message": "words"}, "ResponseMetadata": {"HTTPStatusCode": 418}}

    with pytest.raises(SynapseOpsError, match="s3://bucket/key") as caught, s3_errors("s3://bucket/key"):
        raise error

    assert caught.value.__cause__ is error


@pytest.mark.parametrize(("code", "status", "expected"), REPLIES)
def test_a_reply_of_the_store_becomes_the_error_it_means(
    code: str, status: int, expected: type[SynapseOpsError]
) -> None:
    """By code first, then by status: what may pass is retryable, what is ours to configure is exit 2."""
    response = {"Error": {"Code": code, "Message": "words"}, "ResponseMetadata": {"HTTPStatusCode": status}}

    with pytest.raises(SynapseOpsError) as caught, s3_errors("s3://bucket/key"):
        raise boto.ClientError(response, "PutObject")

    assert type(caught.value) is expected
    assert "s3://bucket/key" in caught.value.message


@pytest.mark.parametrize(
    "url", ["http://bucket/", "s3:///prefix/", "bucket/prefix", "s3://bucket/?versions", "s3://bucket/#x"]
)
def test_a_url_of_another_form_is_refused(url: str) -> None:
    """Found out before anything is contacted."""
    with pytest.raises(ConfigError, match="is not of the form s3://bucket/prefix/"):
        ObjectStore(url, StoreAccess())


def test_no_secret_stands_in_any_text_about_a_store() -> None:
    """repr and str of what is passed around are safe to log."""
    access = StoreAccess(
        endpoint="http://127.0.0.1:1", access_key="key", secret_key="the-secret", session_token="the-token"
    )
    store = ObjectStore("s3://bucket/prefix/", access)

    told = f"{access} {access!r} {store} {store!r}"

    assert "the-secret" not in told
    assert "the-token" not in told


def test_access_is_read_from_the_environment_alone(tmp_path: Path) -> None:
    """`--repository` needs no spec: a URL and the AWS_* variables."""
    environment = {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_CA_BUNDLE": str(tmp_path / "ca.pem"),
    }

    access = StoreAccess.from_environment(environment)

    assert access == StoreAccess("http://127.0.0.1:9", "eu-central-1", "key", "secret", None, tmp_path / "ca.pem")
