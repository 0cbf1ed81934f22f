"""botocore's session and client for a store: how requests are signed, timed, repeated and sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from synapse_ops.errors import ConfigError
from synapse_ops.systems.host.loopback import is_loopback
from synapse_ops.systems.s3.records import StoreAccess


@cache
def _loader() -> Any:
    """Return what reads botocore's models of S3, once per process: else each client spends 90 ms on it."""
    from botocore.loaders import create_loader

    return create_loader()


def make_session(access: StoreAccess) -> Any:
    """Return a session with the keys given, or one that finds them by boto3's own chain."""
    import botocore.session

    # a profile is where keys come from that we were not given; the one that the environment names may be missing
    without_profile = {"profile": (None, None, None, None)} if access.access_key else {}
    session = botocore.session.Session(session_vars=without_profile)
    session.register_component("data_loader", _loader())
    if access.access_key:
        session.set_credentials(access.access_key, access.secret_key, access.session_token)
    return session


def make_client(session: Any, access: StoreAccess, url: str) -> Any:
    """Return a client of a session. url: of the repository, for messages. Raises ConfigError for no endpoint."""
    from botocore.config import Config

    with _endpoint_errors(url):
        return session.create_client(
            "s3",
            region_name=access.region,
            aws_access_key_id=access.access_key,
            aws_secret_access_key=access.secret_key,
            aws_session_token=access.session_token,
            endpoint_url=access.endpoint,
            verify=str(access.ca_file) if access.ca_file else None,
            config=Config(
                signature_version="s3v4",
                connect_timeout=5,
                read_timeout=60,
                max_pool_connections=32,
                retries={"mode": "standard", "max_attempts": 4},
                s3={"addressing_style": "path" if access.endpoint else "auto"},
                # rclone and older stores answer a ranged GET with the whole object's checksum
                response_checksum_validation="when_required",
                # None: as the environment says; a proxy of it does not reach this host's own ports
                proxies={} if is_loopback(access.endpoint) else None,
            ),
        )


@contextmanager
def _endpoint_errors(url: str) -> Iterator[None]:
    """Turn botocore's error for an endpoint that is not a URL into a ConfigError."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"cannot address {url}", detail=str(error), hint="Correct object_store.endpoint.") from error
