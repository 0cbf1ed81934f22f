"""Text of the spec, and secrets, mean the same to the programs that read them in another language."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest
import yaml
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.operations.stack import open_stack
from synapse_ops.spec.document import Spec
from synapse_ops.spec.loading import check_text
from tests.misbehaving import make_certificate
from tests.servers import PostgresServer

HOSTILE = "a@b:c/d%e%41#f?g&h=i'j\"k\\l $(m) `n` $$o {p} +ü"


def checked(**blocks: object) -> Spec:
    loaded, faults = check_text(yaml.safe_dump(blocks, allow_unicode=True), Path("spec.yaml"))
    assert loaded is not None, faults
    return loaded.spec


def test_the_url_of_the_application_names_user_and_database_to_the_letter() -> None:
    """Read by libpq itself: as it stands, as compose and as Kubernetes hand it over, each with its own `$`."""
    spec = checked(database={"user": HOSTILE, "name": HOSTILE, "databases": [HOSTILE]})
    documents = render_bundle(spec).by_path
    in_compose = yaml.load(documents["docker/compose.yaml"].text, yaml.CSafeLoader)["services"]["api"]["environment"]
    api = yaml.load_all(documents["kubernetes/41-api.yaml"].text, yaml.CSafeLoader)
    [pod] = [found["spec"]["template"]["spec"] for found in api if found["kind"] == "Deployment"]
    in_pod = {each["name"]: each["value"] for each in pod["containers"][0]["env"]}

    for url in (
        documents["postgres/database-url.txt"].text.strip(),
        in_compose["SYNAPSE_DATABASE_URL"].replace("$$", "$"),
        in_pod["SYNAPSE_DATABASE_URL"].replace("$$(", "$("),
    ):
        found = conninfo_to_dict(url)
        assert (found["user"], found["dbname"], found["target_session_attrs"]) == (HOSTILE, HOSTILE, "read-write")


def test_an_administrator_of_any_name_and_password_logs_in(
    postgres_server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`database.admin` is a URL, in which both are encoded; on the way to a real server they are decoded once."""
    create = sql.SQL("create role {} login superuser password {}").format(sql.Identifier(HOSTILE), sql.Literal(HOSTILE))
    with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connection:
        connection.execute(create)
    try:
        word, port = quote(HOSTILE, safe=""), postgres_server.server.port
        monkeypatch.setenv("ADMIN", f"postgresql://{word}:{word}@127.0.0.1:{port}/postgres")
        (tmp_path / "spec.yaml").write_text("database: {admin: 'env:ADMIN'}\n")
        stack = open_stack(tmp_path / "spec.yaml", tmp_path)
        with psycopg.connect(stack.admin_conninfo("postgres")) as connection:
            assert connection.execute("select session_user").fetchone() == (HOSTILE,)
    finally:
        with psycopg.connect(postgres_server.conninfo(), autocommit=True) as connection:
            connection.execute(sql.SQL("drop role {}").format(sql.Identifier(HOSTILE)))


def test_keys_of_the_object_store_are_read_to_the_letter(tmp_path: Path) -> None:
    """An ini reader may take % for a reference to another line, and what follows # for a comment."""
    key = HOSTILE.replace(" ", "")
    (tmp_path / "keys").write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {key}\n")
    (tmp_path / "spec.yaml").write_text(f"object_store: {{credentials: 'file:{tmp_path}/keys'}}\n")

    access = open_stack(tmp_path / "spec.yaml", tmp_path).store_access()

    assert (access.access_key, access.secret_key) == (key, key)


@pytest.mark.parametrize("folder", ["a b", "a;b", "a{b}", "a#b", "a'b", "a@b:c", "a%62", "aüb"])
def test_nginx_reads_the_path_of_a_certificate_to_the_letter(folder: str, tmp_path: Path) -> None:
    """`nginx -t` opens both files. What it cannot be told, a `$`, is refused by the spec."""
    if shutil.which("nginx") is None:
        pytest.skip("not installed: apt-get install nginx")
    odd = tmp_path / folder
    odd.mkdir()
    make_certificate(odd)
    [chain, key] = sorted(odd.iterdir())
    text = render_bundle(checked(tls={"cert_file": str(chain), "key_file": str(key)})).by_path["tls/nginx.conf"].text
    text = text.replace("/var/log/nginx", str(tmp_path)).replace("/run/", f"{tmp_path}/")
    (tmp_path / "nginx.conf").write_text(text)

    done = subprocess.run(
        ["nginx", "-t", "-e", "stderr", "-c", str(tmp_path / "nginx.conf")],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ["/etc/a$b.crt", "/etc/${HOME}.crt", '/etc/a"b.crt', "/etc/a\\b.crt"])
def test_a_path_that_some_program_cannot_be_told_is_refused(path: str) -> None:
    """nginx and Logstash take `$b` or `${HOME}` for a variable in quotes too; Logstash's strings know no escapes."""
    for field in ("cert_file", "key_file"):
        loaded, faults = check_text(yaml.safe_dump({"tls": {field: path}}), Path("spec.yaml"))

        assert loaded is None
        assert [fault.path for fault in faults] == [("tls", field)]
