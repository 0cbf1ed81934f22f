"""Our signature of a small GET is botocore's own."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from synapse_ops.systems.request_signature import sign_get


@pytest.mark.parametrize("token", [None, "session-token=="])
@pytest.mark.parametrize("path", ["/bucket/a", "/bucket/b%C3%BCro%2E2/x~y", "/minio/bucket/a%20b"])
def test_a_signature_equals_that_of_the_reference_signer(path: str, token: str | None) -> None:
    """Same key, moment and headers, same signature: with a session token, odd characters and an ETag."""
    request = AWSRequest("GET", f"https://store.example:9000{path}", headers={"If-Match": '"0a1b"'})
    S3SigV4Auth(Credentials("KEY", "secret", token), "s3", "eu-west-1").add_auth(request)
    moment = datetime.strptime(request.context["timestamp"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)

    headers = sign_get(
        path,
        {"host": "store.example:9000", "if-match": '"0a1b"'},
        access_key="KEY",
        secret_key="secret",
        session_token=token,
        region="eu-west-1",
        now=moment,
    )

    assert headers["authorization"] == request.headers["Authorization"]
