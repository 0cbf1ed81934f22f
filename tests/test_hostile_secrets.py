"""Twenty hostile secrets, quoted by libraries that cannot use them, are in nothing that leaves a process."""

from __future__ import annotations

import json
import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import dagster as dg
import pytest
import structlog

from synapse_ops import redaction
from synapse_ops.cli.main import main
from synapse_ops.defs.backup.definitions import definitions_of
from synapse_ops.defs.backup.kinds import DATABASES
from synapse_ops.defs.place import Place
from synapse_ops.errors import ConfigError, SynapseOpsError
from synapse_ops.operations.database.restore_target import parse_target
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.redaction import redact, remember
from synapse_ops.spec.secrets import SecretRef
from synapse_ops.systems.log_output import configure_logging
from synapse_ops.systems.qdrant.server import QdrantServer
from tests.dagster_instances import shared_definitions
from tests.misbehaving import misbehaving

MARK = re.compile(r"LeAk\d\dXq")
BACKUP_NOW = ("backup", "now", "database")
SECRETS = [
    text.replace("M", f"LeAk{number}Xq")  # each its own: knowing one must not hide another
    for number, text in enumerate(
        (
            "M%zzPassw0rd",
            "%M%",
            "M@home",
            "in/M/side",
            "M:colon",
            "M#hash",
            "M?query=1",
            "[M]",
            "M'single",
            'M"double',
            "back\\M\\slash",
            "M with spaces ",
            "tab\tM",
            "line\nM\nline",
            "ünïM",
            "M\U0001f4a5",
            "$(M)`id`",
            "{M!r}{{}}",
            "M%40%2Fx",
            "\x1b[31mM\x1b[0m",
        ),
        start=10,
    )
]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test resolves its own secrets; traceback files lie where they are looked for."""
    monkeypatch.setattr(redaction, "_known", {})
    monkeypatch.setattr(redaction, "_pattern", None)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def spec_of(folder: Path) -> Path:
    path = folder / "infrastructure.yaml"
    path.write_text(
        "name: hostile\n"
        "database: {host: 127.0.0.1, port: 1, name: synapse, databases: [synapse], admin: 'env:ADMIN'}\n"
        "object_store: {endpoint: 'http://127.0.0.1:1', credentials: 'env:STORE'}\n"
        "backup: {database: {destination: s3://backups/database/}, vectors: {destination: s3://backups/vectors/}}\n"
    )
    return path


def address_with(secret: str) -> str:
    return f"postgresql://admin:{secret}@127.0.0.1:1/postgres"


def leaks(text: str) -> list[str]:
    """Return what of the secrets is in a text."""
    return MARK.findall(text)


def places_that_leak(folder: Path) -> Iterator[str]:
    """Yield every file below a folder that holds the mark."""
    for path in folder.rglob("*"):
        if path.is_file() and leaks(path.read_bytes().decode("latin-1")):
            yield str(path.relative_to(folder))


def raise_quoting(secrets: list[str]) -> None:
    """Raise as libraries do: with what they were given, in the causes too, as text, bytes and parts of an address."""
    try:
        try:
            int(f"{secrets!r} in {json.dumps(secrets)} {quote(secrets[0])}")
        except ValueError as cause:
            raise KeyError([secret.encode() for secret in secrets]) from cause
    except KeyError:
        raise RuntimeError("\n".join(secrets)) from ValueError(*map(quote, secrets))


@pytest.mark.parametrize("secret", SECRETS)
def test_a_connection_string_that_cannot_be_used_is_not_quoted(
    secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """libpq quotes what it cannot read: a bare %, a host [bad. Whatever the message is, the password is not in it."""
    for address in (address_with(secret), f"postgresql://admin:{secret}@[bad/postgres"):
        monkeypatch.setenv("ADMIN", address)
        for more in ((), ("--json",)):
            with pytest.raises(SystemExit) as ended:
                main([*BACKUP_NOW, *more, "--spec", str(spec_of(tmp_path)), "--state-dir", str(tmp_path)])
            assert ended.value.code in {2, 12}

    shown = capfd.readouterr()
    assert not leaks(shown.out + shown.err)
    assert "cannot use the connection string" in shown.err
    assert list(places_that_leak(tmp_path)) == []


@pytest.mark.parametrize(
    "address", ["postgresql://u:LeAk10Xq%zz@h/d", "postgresql://u:LeAk10Xq@[bad", "u LeAk10Xq\ud800"]
)
def test_every_reader_of_a_connection_string_says_that_it_cannot_use_it(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The spec's own, and the one of `restore --server`."""
    monkeypatch.setattr(SecretRef, "resolve", lambda self: address)
    stack = open_stack(spec_of(tmp_path), tmp_path)

    for use in (lambda: stack.admin_conninfo("x"), lambda: parse_target("new", "env:TARGET", None)):
        with pytest.raises(ConfigError, match="cannot use the connection string") as caught:
            use()
        assert not leaks(caught.value.render())


def test_a_bug_in_a_command_is_reported_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The traceback file, which the hint asks to report, holds no secret; nor do log lines, nor what libraries log."""

    def fail(stack: Stack, *_: Any, **__: Any) -> None:
        for number, secret in enumerate(SECRETS):
            monkeypatch.setenv("ADMIN", secret if number % 2 else address_with(secret))
            stack.spec.database.admin.resolve()
        structlog.get_logger().warning("as it is", secrets=SECRETS, exc_info=ValueError(SECRETS))
        logging.getLogger("a.library").warning("cannot use %s", SECRETS[0])
        raise_quoting(SECRETS)

    monkeypatch.setattr("synapse_ops.operations.database.dump.dump_database", fail)
    monkeypatch.setenv("ADMIN", "unused")
    for more in ((), ("--json",)):
        with pytest.raises(SystemExit) as ended:
            main([*BACKUP_NOW, *more, "--spec", str(spec_of(tmp_path)), "--state-dir", str(tmp_path)])
        assert ended.value.code == 1

    shown = capfd.readouterr()
    assert not leaks(shown.out + shown.err)
    assert "the traceback is in" in shown.err
    assert len(list(tmp_path.glob("synapse-ops-*.log"))) >= 2
    assert list(places_that_leak(tmp_path)) == []


def test_a_bug_in_a_run_is_recorded_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Event storage, compute logs and the console: the error, its causes and their causes."""

    def fail(stack: Stack, *_: Any, **__: Any) -> None:
        for secret in SECRETS:
            monkeypatch.setenv("ADMIN", secret)
            stack.spec.database.admin.resolve()
        print(redact("\n".join(SECRETS)))
        structlog.get_logger().warning("as it is", secrets=SECRETS)
        raise_quoting(SECRETS)

    configure_logging()
    spec = spec_of(tmp_path)
    monkeypatch.setattr("synapse_ops.operations.database.dump.dump_database", fail)
    stack = open_stack(spec, tmp_path)
    shared = shared_definitions(monkeypatch, stack)
    definitions = dg.Definitions.merge(shared, definitions_of([DATABASES], stack.spec, Place(spec, tmp_path, True)))
    (tmp_path / "home").mkdir()
    with dg.DagsterInstance.local_temp(str(tmp_path / "home")) as instance:
        job = definitions.resolve_job_def(DATABASES.job("backup"))
        result = job.execute_in_process(instance=instance, partition_key="synapse", raise_on_error=False)
        [failure] = [event for event in result.all_events if event.event_type_value == "STEP_FAILURE"]
        recorded = str(failure.event_specific_data.error)

    shown = capfd.readouterr()
    assert not result.success
    assert "RuntimeError" in recorded
    assert "KeyError" in recorded or "ValueError" in recorded
    assert not leaks(recorded + shown.out + shown.err)
    assert list(places_that_leak(tmp_path)) == []


def test_a_key_that_no_header_can_hold_is_not_quoted() -> None:
    """h11 quotes an illegal header value whole."""
    with misbehaving() as server:
        for secret in SECRETS:
            redaction.remember(secret)
            with QdrantServer(server.url("/page"), secret, timeout_s=5.0) as qdrant:
                with pytest.raises(SynapseOpsError) as caught:
                    qdrant.collections()
                assert not leaks(caught.value.render())


def test_what_is_no_secret_stays_readable() -> None:
    """A weak password is a word: it is replaced where it stands alone, and names that hold it stay."""
    redaction.remember("postgres")
    redaction.remember("ab")
    redaction.remember("# created by age-keygen\nAGE-SECRET-KEY-1QQQ\n")
    redaction.remember("https://hooks.example/services/T000/B000/key-of-this-hook")

    assert redact('user "postgres" of postgresql://postgres1') == f'user "{redaction.MASK}" of postgresql://postgres1'
    assert redact("ab is short") == "ab is short"
    assert redact("created by age-keygen: AGE-SECRET-KEY-1QQQ") == f"created by age-keygen: {redaction.MASK}"
    assert redact("POST /services/T000/B000/key-of-this-hook") == f"POST /services/T000/B000/{redaction.MASK}"


def test_the_id_of_an_access_key_is_no_secret_and_masks_nothing() -> None:
    """The embedded store's id is `synapse`: each message that named us would be full of masks."""
    remember("[default]\naws_access_key_id = synapse\naws_secret_access_key = Zr8kq2LmVw41\n")

    assert redact("slot synapse_wal of synapse-ops: Zr8kq2LmVw41") == "slot synapse_wal of synapse-ops: [secret]"
