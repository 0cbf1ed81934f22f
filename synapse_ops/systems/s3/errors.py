"""How botocore's errors become ours, at one seam, with the key attached."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from synapse_ops.errors import (
    ConfigError,
    IntegrityError,
    ObjectMissing,
    Refused,
    SynapseOpsError,
    Throttled,
    Unreachable,
)

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
_LOST_RACE = {"PreconditionFailed", "412", "ConditionalRequestConflict"}
_MAY_PASS = {"InternalError", "OperationAborted", "RequestTimeout"}
_NEVER = {"NotImplemented", "501"}  # a server error by its number, and yet no repetition helps
_DENIED = {
    "403",
    "AccessDenied",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "SignatureDoesNotMatch",
    "XAdminUserNotFound",  # versitygw
}


class AccessRefused(ConfigError):
    """The keys are not taken, or may not do this."""


class ConditionFailed(Refused):
    """A conditional write lost: another process wrote the key first."""


@contextmanager
def s3_errors(what: str) -> Iterator[None]:
    """Turn every botocore error inside into one of ours that names `what`; an answer that lacks a field, too.

    Only the client's call and the reading of its answer belong inside: its KeyError and ValueError are caught.
    """
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
    except (KeyError, ValueError) as error:
        raise Unreachable(
            f"could not read the object store's answer for {what}",
            detail=repr(error),
            hint="Is object_store.endpoint an S3 store, and no proxy in between?",
        ) from error
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
    if both & _LOST_RACE or (status == "409" and code in {"", "409", "Conflict"}):
        return ConditionFailed(
            f"could not keep to one version of {what}: another process wrote it", detail=f"{code} {message}"
        )
    if code == "NoSuchBucket":
        bucket = what.partition("://")[2].partition("/")[0]
        return ConfigError(
            f"cannot find the bucket of {what}",
            detail=message,
            hint=f"Create the bucket first, such as with `aws s3 mb s3://{bucket or 'BUCKET'}` (`--endpoint-url URL`"
            " for another store than AWS), or correct the destination in the spec.",
        )
    if both & _DENIED:  # before 404: versitygw answers an unknown key so
        return AccessRefused(
            f"the object store refused access to {what}",
            detail=f"{code} {message}",
            hint="Check the access key, its secret, and the rights of that identity on the bucket.",
        )
    if both & _MISSING:
        return ObjectMissing(f"object {what} is not in the store", detail=f"{code} {message}")
    if both & _THROTTLED:
        return Throttled(f"could not finish with {what}: the object store is busy", detail=f"{code} {message}")
    if code in _MAY_PASS or (status.startswith("5") and not both & _NEVER):
        return Unreachable(
            f"could not finish with {what}: the object store failed", detail=f"{code or status} {message}"
        )
    return SynapseOpsError(f"the object store refused {what}", detail=f"{code or status} {message}")
