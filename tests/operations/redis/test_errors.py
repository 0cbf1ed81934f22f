"""What a real Redis refuses, or cannot do now, is an error of ours: of the right kind, with what to do about it.

ACL users take single permissions away; a script keeps the server busy; a tiny relay cuts the line in the middle.
"""

from __future__ import annotations

import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import redis

from synapse_ops.errors import (
    ConfigError,
    DeadlineExceeded,
    Refused,
    SynapseOpsError,
    Throttled,
    Unreachable,
)
from synapse_ops.operations.cleanup.cache import apply_cache_plan, make_cache_plan
from synapse_ops.operations.redis.snapshot import snapshot_redis
from synapse_ops.operations.stack import Stack
from synapse_ops.systems.host.processes import free_ports
from synapse_ops.systems.redis.keys import all_keys, read_keys
from synapse_ops.systems.redis.replication import rdb_stream
from synapse_ops.systems.redis.server import RedisServer
from synapse_ops.systems.s3.store import StoreAccess
from tests.redis_servers import PASSWORD, RealRedis, make_redis_stack, running_redis

JOIN_TIMEOUT_S, CLUSTER_TIMEOUT_S = 20.0, 30.0


def opened(port: int, *, password: str = PASSWORD, timeout_s: float = 5.0) -> closing[RedisServer]:
    return closing(RedisServer("127.0.0.1", port, 0, password=password, timeout_s=timeout_s))


@contextmanager
def default_user(server: RealRedis, *rules: str) -> Iterator[None]:
    """Take permissions away from the user that our password belongs to; another user gives them back."""
    admin = server.client()
    admin.acl_setuser("admin", enabled=True, passwords=["+admin"], categories=["+@all"], keys=["*"])
    admin = redis.Redis(port=server.port, username="admin", password="admin")
    admin.execute_command("ACL", "SETUSER", "default", *rules)
    try:
        yield
    finally:
        admin.execute_command("ACL", "SETUSER", "default", "+@all", "~*")


@contextmanager
def relay(port: int, cut_after_bytes: int) -> Iterator[int]:
    """Hand on what clients and the server say, and reset a client's line after so many bytes of the server's."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=hand_on, args=(client, port, cut_after_bytes), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def hand_on(client: socket.socket, port: int, left: int) -> None:
    with client, socket.create_connection(("127.0.0.1", port)) as upstream, suppress(OSError):
        while left > 0:
            for source in select.select([client, upstream], [], [])[0]:
                data = source.recv(65536 if source is client else min(left, 65536))
                if not data:
                    return
                (upstream if source is client else client).sendall(data)
                left -= len(data) if source is upstream else 0
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # RST, no polite end


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ("-info", lambda server: server.info()),
        ("-scan", lambda server: list(server.idle_pages("*", 1))),
        ("-object", lambda server: list(server.idle_pages("*", 1))),
        ("-evalsha", lambda server: list(server.idle_pages("*", 1))),
        ("-unlink", lambda server: server.unlink_idle([b"key"], 0)),
        ("-get", lambda server: read_keys(server, {0: [b"key"]})),
        ("-memory|usage", lambda server: read_keys(server, {0: [b"key"]})),
        ("-scan", all_keys),
    ],
)
def test_a_permission_that_is_missing_is_a_fault_of_settings_that_names_the_command(
    server: RealRedis, rule: str, what: Any
) -> None:
    """Inside a script, too, where the server wraps the refusal in its own words. Exit 2, and nothing is retried."""
    server.client().set("key", "value")

    with default_user(server, rule), opened(server.port) as ours, pytest.raises(ConfigError) as caught:
        what(ours)

    assert "does not grant our user" in caught.value.message
    assert "ACL SETUSER" in caught.value.hint
    assert PASSWORD not in caught.value.render()


def test_a_key_that_our_user_may_not_see_ends_a_snapshot_before_a_backup_exists(
    stack: Stack, server: RealRedis
) -> None:
    """A reading that leaves keys out would compare less than it says."""
    server.client().set("app:1", "x")
    server.client().set("secret:1", "x")

    with (
        default_user(server, "resetkeys", "~app:*"),
        pytest.raises(ConfigError, match="does not grant our user") as caught,
    ):
        snapshot_redis(stack)

    assert "secret:1" not in caught.value.render()


@pytest.mark.parametrize("rule", ["-psync", "-replconf"])
def test_a_user_that_may_not_replicate_takes_no_snapshot(stack: Stack, server: RealRedis, rule: str) -> None:
    with default_user(server, rule), pytest.raises(ConfigError, match="does not grant our user"):
        snapshot_redis(stack)


def test_a_command_that_the_server_does_not_know_is_refused_with_the_reason(
    tmp_path: Path, bucket_url: str, object_store_access: StoreAccess
) -> None:
    """Managed services hide PSYNC: that will not pass by itself, and is no fault of the spec."""
    with running_redis(tmp_path, "--rename-command", "PSYNC", "") as hiding:
        stack = make_redis_stack(tmp_path, hiding, bucket_url, object_store_access)

        with pytest.raises(Refused, match="does not know a command"):
            snapshot_redis(stack)


def test_a_wrong_password_is_a_fault_of_settings_and_stands_in_no_message(server: RealRedis) -> None:
    with opened(server.port, password="wrong-one") as ours, pytest.raises(ConfigError) as caught:
        ours.info()

    assert "redis.password" in caught.value.hint
    assert "wrong-one" not in caught.value.render()


def test_a_server_that_loads_its_data_may_be_asked_later(
    tmp_path: Path, bucket_url: str, object_store_access: StoreAccess
) -> None:
    """LOADING passes by itself: exit 12, worth a retry, for cleanup and snapshot alike."""
    with running_redis(tmp_path) as first:
        first.client().mset({f"key:{n}": "v" for n in range(20000)})
        first.client().save()
    with running_redis(tmp_path, "--key-load-delay", "500", "--loading-process-events-interval-bytes", "1024") as slow:
        with opened(slow.port) as ours, pytest.raises(Unreachable, match="loading its data") as caught:
            list(ours.idle_pages("*", 1))
        assert caught.value.retryable

        stack = make_redis_stack(tmp_path, slow, bucket_url, object_store_access)
        with pytest.raises(Unreachable, match="loading its data"):
            snapshot_redis(stack)


def test_a_server_that_is_busy_answers_too_late_and_then_says_so(tmp_path: Path) -> None:
    """A script holds it: at first nothing comes within redis.timeout, then BUSY does. Both may pass."""
    with running_redis(tmp_path, "--busy-reply-threshold", "600") as server:
        endless = threading.Thread(target=run_endless_script, args=(server,))
        endless.start()
        try:
            kinds = {type(caught_by(lambda: ask(server))) for _ in range(8)}
        finally:
            with suppress(redis.exceptions.RedisError):
                redis.Redis(port=server.port, password=PASSWORD).script_kill()
            endless.join(JOIN_TIMEOUT_S)

    assert {DeadlineExceeded, Throttled} <= kinds


def run_endless_script(server: RealRedis) -> None:
    with suppress(redis.exceptions.RedisError):
        server.client().eval("while true do end", 0)


def ask(server: RealRedis) -> None:
    with opened(server.port, timeout_s=0.3) as ours:
        list(ours.idle_pages("*", 1))


def caught_by(act: Any) -> SynapseOpsError | None:
    try:
        act()
    except SynapseOpsError as error:
        return error
    return None


def test_a_cluster_whose_keys_are_elsewhere_is_refused(tmp_path: Path) -> None:
    """MOVED names another node; following it would clean up what nobody named. Slots without a node may come back."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    bus = [str(port) for port in free_ports(2)]  # its default, 10,000 above the other, may be taken
    with (
        running_redis(tmp_path / "one", "--cluster-enabled", "yes", "--cluster-port", bus[0]) as one,
        running_redis(tmp_path / "two", "--cluster-enabled", "yes", "--cluster-port", bus[1]) as two,
        opened(one.port) as ours,
    ):
        with pytest.raises(Unreachable, match="waits for other nodes"):
            ours.unlink_idle([b"key"], 0)

        one.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 1)
        two.client().execute_command("CLUSTER", "ADDSLOTSRANGE", 2, 16383)
        one.client().execute_command("CLUSTER", "MEET", "127.0.0.1", two.port, bus[1])
        deadline = time.monotonic() + CLUSTER_TIMEOUT_S
        while isinstance(error := caught_by(lambda: ours.unlink_idle([b"key"], 0)), Unreachable):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert isinstance(error, Refused)
        assert "is a node of a cluster" in error.message

        with pytest.raises(Refused, match="is a node of a cluster"):
            ours.unlink_idle([b"key", b"other"], 0)


def test_a_line_that_is_reset_in_the_middle_of_a_scan_may_be_tried_again_and_leaves_no_plan(
    stack: Stack, server: RealRedis, tmp_path: Path
) -> None:
    """Half a plan would look like a whole one."""
    server.client().mset({f"cache:{n}": "x" for n in range(20000)})
    with relay(server.port, cut_after_bytes=60_000) as port:
        spec = stack.spec.model_copy(update={"redis": stack.spec.redis.model_copy(update={"port": port})})
        cleanup = spec.cleanup.model_copy(
            update={"cache": spec.cleanup.cache.model_copy(update={"retention": datetime.resolution})}
        )

        with pytest.raises(Unreachable) as caught:
            make_cache_plan(spec.model_copy(update={"cleanup": cleanup}), tmp_path, datetime.now(UTC))

    assert caught.value.retryable
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_a_line_that_is_reset_in_the_middle_of_a_snapshot_is_no_end_of_it(stack: Stack, server: RealRedis) -> None:
    server.client().set("large", b"x" * 2_000_000)
    server.client().config_set("rdbcompression", "no")
    try:
        with relay(server.port, 300_000) as port, opened(port) as ours, pytest.raises(Unreachable) as caught:
            read_to_its_end(ours)
    finally:
        server.client().config_set("rdbcompression", "yes")

    assert "bytes had come" in caught.value.detail


def read_to_its_end(server: RedisServer) -> None:
    with rdb_stream(server) as stream:
        while stream.read():
            pass


def test_writes_that_the_server_takes_no_more_end_a_cleanup_before_its_first_key(
    server: RealRedis, stack: Stack, tmp_path: Path
) -> None:
    """A primary that became a replica since the plan: its keys are removed on the new primary, or not at all."""
    server.client().set("cache:1", "x")
    cleanup = stack.spec.cleanup.model_copy(
        update={"cache": stack.spec.cleanup.cache.model_copy(update={"retention": datetime.resolution})}
    )
    spec = stack.spec.model_copy(update={"cleanup": cleanup})
    plan = make_cache_plan(spec, tmp_path, datetime.now(UTC))
    server.client().execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(Refused, match="its role is slave"):
            apply_cache_plan(plan.digest, spec, tmp_path, datetime.now(UTC))
        with opened(server.port) as ours, pytest.raises(Refused, match="is a replica"):
            ours.unlink_idle([b"cache:1"], 0)
        with pytest.raises(Refused, match="replica without its primary"):
            snapshot_redis(stack)
    finally:
        server.client().execute_command("REPLICAOF", "NO", "ONE")

    assert server.client().exists("cache:1")


def test_what_is_no_redis_is_told_so() -> None:
    """A port of something else is a fault of settings, not an outage."""
    with socket.create_server(("127.0.0.1", 0)) as listener, opened(listener.getsockname()[1]) as ours:
        threading.Thread(target=greet_as_ssh, args=(listener,), daemon=True).start()

        with pytest.raises(ConfigError, match="does not speak Redis's protocol"):
            ours.info()


def greet_as_ssh(listener: socket.socket) -> None:
    client, _ = listener.accept()
    with client, suppress(OSError):
        client.sendall(b"SSH-2.0-OpenSSH_9.9\r\n")
        client.recv(65536)
