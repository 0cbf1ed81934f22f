"""What Redis and its client say when something is wrong, as our errors. No error contains the password.

Source: the error codes of redis.io, "RESP protocol specification"; the client has a class for some of them, the others
are distinguished by the first word of the reply.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from synapse_ops.errors import (
    ConfigError,
    DeadlineExceeded,
    Refused,
    SynapseOpsError,
    Throttled,
    ToolFailed,
    Unreachable,
)

_CLUSTER_HINT = "Each primary of a cluster holds a part of the keys; Synapse Ops works on a single server."

# a missing permission, as a script reports it: since 7, and before
_REFUSED_IN_SCRIPT = ("ACL failure in script", "The user executing the script can't")

# the first words of a reply without its own error class -> our error, what it means, what to do
_BY_WORD: dict[str, tuple[type[SynapseOpsError], str, str]] = {
    "BUSY": (Throttled, "is busy with a script", "Try again when it has ended; `SCRIPT KILL` ends it."),
    "MISCONF": (Refused, "takes no writes, since it cannot save its data", "Is its disk full? See its log."),
    "NOREPLICAS": (Unreachable, "takes no writes, since too few replicas follow it", "Do its replicas run?"),
    "NOMASTERLINK": (Unreachable, "is a replica without its primary", "Name the primary in redis.host."),
    "UNKILLABLE": (Throttled, "is busy with a script", "Try again when it has ended."),
}


# What the client raises beside its own errors when it parses a reply of another form.
UNREADABLE = (ValueError, TypeError, AttributeError, LookupError)


@contextmanager
def redis_errors(address: str, timeout_s: float) -> Iterator[None]:
    """Turn the client's errors inside the block into ours. timeout_s: of one command, for the message."""
    from redis.exceptions import RedisError

    try:
        yield
    except RedisError as error:
        raise redis_error(error, address, timeout_s) from None


@contextmanager
def redis_answers(address: str, timeout_s: float) -> Iterator[None]:
    """As `redis_errors`, for a block that only asks and reads the answer: one that cannot be read is a ConfigError."""
    try:
        with redis_errors(address, timeout_s):
            yield
    except UNREADABLE as error:
        raise redis_error(error, address, timeout_s) from error


def redis_error(error: Exception, address: str, timeout_s: float) -> SynapseOpsError:
    """Return what an error of the client, or one of UNREADABLE, is in our terms."""
    from redis import exceptions as theirs

    for classes, build in (
        ((theirs.AuthenticationError, theirs.AuthenticationWrongNumberOfArgsError), _not_taken),
        ((theirs.NoPermissionError,), _not_allowed),
        ((theirs.BusyLoadingError,), _is_loading),
        ((theirs.ReadOnlyError,), _is_replica),
        ((theirs.ClusterDownError, theirs.TryAgainError), _cluster_down),  # MASTERDOWN is one of them
        ((theirs.AskError, theirs.ClusterCrossSlotError), _is_cluster),  # MOVED is one of them
        ((theirs.OutOfMemoryError,), _is_full),
        ((theirs.InvalidResponse, *UNREADABLE), _is_no_redis),
    ):
        if isinstance(error, classes):
            return build(address, str(error))
    if isinstance(error, theirs.TimeoutError):
        return DeadlineExceeded(
            f"Redis {address} did not answer within {timeout_s:g} s (redis.timeout)",
            hint="Is it busy with a long command? `redis-cli --latency` and SLOWLOG GET show it.",
        )
    if isinstance(error, theirs.ConnectionError):
        if "max number of clients" in str(error):
            return Throttled(f"Redis {address} takes no more clients", hint="Its maxclients is reached; raise it.")
        return Unreachable(f"could not reach Redis {address}: {error}", hint="Does it run there?")
    return _by_word(address, str(error))


def _by_word(address: str, text: str) -> SynapseOpsError:
    if text.startswith(_REFUSED_IN_SCRIPT):
        return _not_allowed(address, text.partition(" script: ")[0])
    word, _, rest = text.partition(" ")
    if word in _BY_WORD:
        kind, meaning, hint = _BY_WORD[word]
        return kind(f"Redis {address} {meaning}", detail=rest, hint=hint)
    if "unknown command" in text.lower():
        hint = "Managed services hide some commands, and old versions lack some; see docs/cleanup.md."
        return Refused(f"Redis {address} does not know a command that this needs: {text}", hint=hint)
    return ToolFailed(["redis"], status=1, stderr_tail=f"{address}: {text}")


def _not_taken(address: str, text: str) -> SynapseOpsError:
    return ConfigError(
        f"Redis {address} rejects the password: {text}",
        hint="redis.password of the spec refers to it; null means that none is sent.",
    )


def _not_allowed(address: str, text: str) -> SynapseOpsError:
    return ConfigError(
        f"Redis {address} does not grant our user a required permission: {text}",
        hint="`ACL SETUSER` gives the permission; docs/cleanup.md lists what each operation needs.",
    )


def _is_loading(address: str, text: str) -> SynapseOpsError:
    return Unreachable(f"Redis {address} is loading its data", detail=text, hint="Try again when it has.")


def _is_replica(address: str, text: str) -> SynapseOpsError:
    return Refused(f"Redis {address} is a replica: {text}", hint="Name the primary in redis.host.")


def _is_cluster(address: str, text: str) -> SynapseOpsError:
    return Refused(f"Redis {address} is a node of a cluster: {text}", hint=_CLUSTER_HINT)


def _cluster_down(address: str, text: str) -> SynapseOpsError:
    return Unreachable(f"Redis {address} waits for other nodes: {text}", hint="Do all of its nodes run?")


def _is_full(address: str, text: str) -> SynapseOpsError:
    return Unreachable(f"Redis {address} is full: {text}", hint="Its maxmemory is reached and nothing may be evicted.")


def _is_no_redis(address: str, text: str) -> SynapseOpsError:
    return ConfigError(
        f"{address} does not speak Redis's protocol: {text}", hint="Are redis.host and redis.port right?"
    )
