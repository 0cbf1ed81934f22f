"""Secrets: only references are read, and no message ever repeats a literal one."""

from __future__ import annotations

import base64
import json
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from synapse_ops.errors import ConfigError, SynapseOpsError
from synapse_ops.local.credentials import make_certificates, now_utc
from synapse_ops.spec import SecretRef
from synapse_ops.spec.kubernetes_secret import read_kubernetes_secret
from synapse_ops.spec.loading import check_text
from synapse_ops.spec.secrets import parse_secret

PASSWORD = "hunter2-Zq9"
LITERALS = [
    f"postgresql://postgres:{PASSWORD}@db/synapse",
    f"redis://:{PASSWORD}@cache:6379/0",
    f"https://user:{PASSWORD}@es.example.org",
    f"elastic:{PASSWORD}@es:9200",
    f"host=db password={PASSWORD}",
    f"host=db sslpassword = {PASSWORD}",
    f"https://hooks.example.org/?token={PASSWORD}",
    f"https://hooks.slack.com/services/T0/B0/{PASSWORD}",
    f"https://discord.com/api/webhooks/1/{PASSWORD}",
    f"AGE-SECRET-KEY-1{PASSWORD}",
    f"-----BEGIN RSA PRIVATE KEY----- {PASSWORD}",
]
PLACES = [
    "database: {{admin: {0}}}",
    "database: {{password: {0}}}",
    "database: {{host: {0}}}",
    "database: {{databases: [{0}, {0}]}}",
    "object_store: {{endpoint: {0}, credentials: {0}}}",
    "logging: {{elasticsearch: [{0}]}}",
    "backup: {{destination: {0}}}",
    "backup: {{database: {{destination: {0}}}}}",
    "encryption: {{recipients: [{0}], identity: {0}}}",
    "failover: {{stonith_command: [/bin/fence, {0}]}}",
    "health: [{{name: api, url: {0}}}]",
    "alerts: [{{name: a, condition: {0}}}]",
    "alerting: {{webhook_token: {0}, actions: {{{0}: notify}}}}",
    "{0}: 5",
    "name: {0}",
    "server: {0}",
    "server: [{0}]",
    "name: !secret {0}",
    "updates: {{schedule: {0}}}",
]


@pytest.mark.parametrize("literal", LITERALS)
@pytest.mark.parametrize("template", PLACES)
def test_a_literal_secret_is_refused_wherever_it_stands_and_never_repeated(template: str, literal: str) -> None:
    """In any field, list, key or unknown place, a secret is a fault whose message does not hold it."""
    text = template.format(json.dumps(literal))

    loaded, faults = check_text(text, Path("infrastructure.yaml"))

    assert loaded is None
    report = "\n".join(fault.render(Path("f")) + json.dumps(fault.as_json(Path("f"))) for fault in faults)
    assert PASSWORD not in report
    assert "f:1:" in report


@pytest.mark.parametrize(
    "field",
    [
        "database: {admin",
        "object_store: {credentials",
        "alerting: {webhook_token",
        "encryption: {identity",
        "qdrant: {api_key",
    ],
)
def test_a_field_for_a_reference_shows_nothing_of_what_stands_there(field: str) -> None:
    """A plain password looks like any word; where a reference belongs, whatever else stands there is not shown."""
    _, faults = check_text(f"{field}: {PASSWORD}}}", Path("f"))

    assert len(faults) == 1
    assert PASSWORD not in faults[0].render(Path("f"))
    assert "env:NAME" in faults[0].allowed


@pytest.mark.parametrize(
    "text", ["env:", "env:1A", "env:A-B", "file:relative", "file:", "kubernetes:a/b", "vault:x", "ENV:A", "", 5]
)
def test_a_reference_of_another_form_is_refused(text: object) -> None:
    """A relative file would mean another one in another directory, so only absolute ones are references."""
    with pytest.raises(ValueError, match="a reference"):
        parse_secret(text)


def test_a_reference_to_the_environment_is_read_anew_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rotated secret is seen without loading the spec again."""
    reference = parse_secret("env:SYNAPSE_TEST_SECRET")
    monkeypatch.setenv("SYNAPSE_TEST_SECRET", "one")
    first = reference.resolve()
    monkeypatch.setenv("SYNAPSE_TEST_SECRET", "two")

    assert (first, reference.resolve()) == ("one", "two")


def test_a_missing_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unset and an empty variable are both missing, and the message names it."""
    monkeypatch.setenv("SYNAPSE_TEST_SECRET", "")

    with pytest.raises(ConfigError, match="SYNAPSE_TEST_SECRET is not set"):
        SecretRef("env", "SYNAPSE_TEST_SECRET").resolve()


def test_a_secret_file_loses_one_line_end_and_nothing_else(tmp_path: Path) -> None:
    """Editors end files with a line end; a password may end with a space."""
    file = tmp_path / "secret"
    file.write_text(f"{PASSWORD} \r\n", newline="")

    assert SecretRef("file", str(file)).resolve() == f"{PASSWORD} "


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_secret_file_that_holds_none_is_named(tmp_path: Path, content: bytes | None) -> None:
    """Missing, empty and binary files are told apart from a secret, by path."""
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(ConfigError, match=str(file)):
        SecretRef("file", str(file)).resolve()


def test_a_kubernetes_reference_outside_a_pod_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a service account there is nobody to ask."""
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)

    with pytest.raises(ConfigError) as caught:
        SecretRef("kubernetes", "prod/db/password").resolve()

    assert "not a pod" in caught.value.message
    assert "env:NAME" in caught.value.hint


@pytest.fixture(scope="module")
def kubernetes_api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """A TLS server that answers as the API does for one secret, and the directory of a service account."""
    account = tmp_path_factory.mktemp("account")
    make_certificates(account, account / "ca.crt", None, now_utc())
    (account / "token").write_text("the-token\n")

    class Api(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers["Authorization"] == "Bearer the-token"
            found = self.path == "/api/v1/namespaces/prod/secrets/db"
            self.send_response(200 if allowed and found else 404 if allowed else 403)
            self.end_headers()
            self.wfile.write(json.dumps({"data": {"dsn": base64.b64encode(b"postgresql://").decode()}}).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Api)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(account / "server.crt", account / "server.key")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"https://127.0.0.1:{server.server_port}", account
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_kubernetes_secret_is_read_with_the_pods_own_account(kubernetes_api: tuple[str, Path]) -> None:
    """The API is asked with the pod's token and its certificate is checked; the value is decoded."""
    api, account = kubernetes_api

    assert read_kubernetes_secret("prod/db/dsn", api=api, account=account) == "postgresql://"


@pytest.mark.parametrize(("target", "said"), [("prod/other/dsn", "answered 404"), ("prod/db/other", 'no key "other"')])
def test_a_kubernetes_secret_that_is_not_there_is_named(
    kubernetes_api: tuple[str, Path], target: str, said: str
) -> None:
    """A missing secret and a missing key are different messages."""
    api, account = kubernetes_api

    with pytest.raises(SynapseOpsError, match=said):
        read_kubernetes_secret(target, api=api, account=account)
