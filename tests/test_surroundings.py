"""The environment that the tests run in reaches no test, and no server of this host."""

from __future__ import annotations

import os
from datetime import UTC, datetime

import pytest

from synapse_ops.systems.alert_outlet import Alarm, AlertOutlet
from synapse_ops.systems.host.loopback import is_loopback
from synapse_ops.systems.s3.store import ObjectStore, StoreAccess
from tests.misbehaving import misbehaving
from tests.surroundings import HOSTILE, without_other_work


def test_what_a_shell_set_for_other_work_reaches_no_test() -> None:
    """Where the tests' servers are, and what they trust, comes from fixtures; their own settings are kept."""
    ours = {"SYNAPSE_PROVE": "1", "SYNAPSE_TEST_STORE": "versitygw", "QDRANT_URL": "http://x", "PATH": "/bin"}
    environment = {**HOSTILE, "SYNAPSE_SPEC": "/other.yaml", "DAGSTER_HOME": "/other", **ours}

    without_other_work(environment)

    aws = {"AWS_CONFIG_FILE": os.devnull, "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    assert environment == ours | aws


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)


def test_a_store_of_this_host_is_reached_past_a_proxy_and_without_a_profile(
    object_store_access: StoreAccess, bucket_url: str, hostile: None
) -> None:
    """`local up` and a backup into it work in the shell of somebody who works with AWS through a proxy."""
    store = ObjectStore(bucket_url, object_store_access)

    store.put_bytes("one", b"1")

    assert store.read_bytes("one") == b"1"
    assert [found.key for found in store.list_objects()] == ["one"]


def test_a_store_elsewhere_is_reached_through_the_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be the only way out."""
    access = StoreAccess(endpoint="http://store.invalid", access_key="a", secret_key="b")
    with misbehaving() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url(""))

        found = ObjectStore("s3://bucket/", access).read_bytes("one")

    assert found == b'{"status": "ok"}'
    assert proxy.asked == {"http://store.invalid/bucket/one": 1}


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("http://127.0.0.1:9000", True),
        ("http://[::1]:9000", True),
        ("http://localhost:9000", True),
        ("http://10.0.0.1:9000", False),
        ("http://localhost.example.org", False),
        ("http://[::1", False),
        (None, False),
    ],
)
def test_an_address_of_this_host_is_known_by_its_name(url: str | None, own: bool) -> None:
    """Without a resolver: whatever else resolves to this host is reached as the environment says."""
    assert is_loopback(url) is own


def test_an_alertmanager_of_this_host_is_told_past_a_proxy(hostile: None) -> None:
    """An authority file that is not there is no reason to keep an alarm back either."""
    alarm = Alarm({"alertname": "it"}, "summary", "description", datetime.now(UTC))
    with misbehaving() as server:
        AlertOutlet("webhook", server.url("/ok")).post([alarm])

    assert server.asked == {"/ok": 1}
