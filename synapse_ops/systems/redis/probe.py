"""Redis for the prober: a new connection each time, PING and INFO through redis.asyncio, its errors made ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from synapse_ops.errors import ConfigError, Unreachable
from synapse_ops.systems.probe_stage import Stage
from synapse_ops.systems.redis.errors import UNREADABLE, redis_error


async def read_info(host: str, port: int, *, password: str | None, timeout_s: float, stage: Stage) -> Mapping[str, Any]:
    """Return the fields of INFO, numbers as numbers. Raises Unreachable, or ConfigError when it refuses us."""
    from redis import exceptions
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    where = f"Redis at {host}:{port}"
    at: dict[str, Any] = {"unix_socket_path": host} if host.startswith("/") else {"host": host, "port": port}
    client = Redis(
        **at,
        password=password,
        socket_connect_timeout=timeout_s,
        socket_timeout=timeout_s,
        client_name="synapse-ops-watch",
        retry=Retry(NoBackoff(), 0),
        single_connection_client=True,
    )
    try:
        stage.words = "connecting and waiting for PONG"
        await client.execute_command("PING")  # type: ignore[no-untyped-call]
        stage.words = "waiting for INFO"
        info = await client.info()
        if "redis_version" not in info:
            raise ValueError("INFO has no redis_version")
    except exceptions.AuthenticationError as error:
        raise ConfigError(f"{where} refuses us: {error}", hint="Check redis.password of the spec.") from None
    except exceptions.BusyLoadingError:
        raise Unreachable(f"{where} is loading its data") from None
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
        raise Unreachable(f"{where} does not answer: {_shortly(error)}") from None
    except (exceptions.RedisError, *UNREADABLE) as error:
        raise redis_error(error, f"{host}:{port}", timeout_s) from None
    else:
        return info
    finally:
        await client.aclose()


def _shortly(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
