"""The rendered script loads policy and template into Elasticsearch, and sends a key without showing it to others."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.operations.release.render import write_directory
from synapse_ops.spec.loading import check_text
from tests.manifests.specs import spec_of

KEY = "a2V5OnNlY3JldA=="
HOSTILE = """a"b\\c\\"d$HOME $(id) `id` 'e' %s #f ;g &h \\n"""


class Elasticsearch(ThreadingHTTPServer):
    """A stand-in that records what is put; a real one needs a Java machine and a gigabyte."""

    puts: dict[str, tuple[dict[str, object], str | None]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Recorder(BaseHTTPRequestHandler):
    server: Elasticsearch

    def do_PUT(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.puts[self.path] = (body, self.headers["Authorization"])
        self.send_response(200 if self.headers["Authorization"] in {f"ApiKey {KEY}", f"ApiKey {HOSTILE}"} else 401)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def elasticsearch() -> Iterator[Elasticsearch]:
    with Elasticsearch(("127.0.0.1", 0), _Recorder) as server:
        server.puts = {}
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join(10)


def set_up(release: Path, server: Elasticsearch, key: str, trace: Path) -> subprocess.CompletedProcess[str]:
    """Run the script of hosts against the stand-in, with a curl that notes its arguments before it runs, as the
    container of Logstash runs its own: with a key that it reads from a file.
    """
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("the script needs curl")
    write_directory(render_bundle(spec_of("logs elsewhere")), release)
    script = release / "logging" / "set-up.sh"
    script.write_text(script.read_text().replace("https://es-1.example.org:9243", server.url))
    programs = trace.parent / "programs"
    programs.mkdir()
    (programs / "curl").write_text(f'#!/bin/sh\nprintf "%s " "$@" >>{trace}\nexec {curl} "$@"\n')
    (programs / "curl").chmod(0o755)
    (trace.parent / "elasticsearch-api-key").write_text(f"{key}\n")
    compose = yaml.load((release / "docker" / "compose.yaml").read_text(), yaml.CSafeLoader)
    [*shell, start] = [part.replace("$$", "$") for part in compose["services"]["logstash"]["entrypoint"]]
    start, logstash = start.replace("/usr/share/logstash/set-up/set-up.sh", str(script)).rsplit("; exec ", 1)
    assert logstash == "/usr/local/bin/docker-entrypoint"
    return subprocess.run(
        [*shell, start.replace("/run/secrets", str(trace.parent))],
        env={"PATH": f"{programs}:/usr/bin:/bin"}, cwd="/", capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("key", [KEY, HOSTILE], ids=["usual", "hostile"])
def test_policy_and_template_are_loaded_with_a_key_that_nobody_sees(
    key: str, tmp_path: Path, elasticsearch: Elasticsearch
) -> None:
    """It passes two shells and curl's own configuration language, each with other quotes."""
    trace = tmp_path / "arguments"

    done = set_up(tmp_path / "release", elasticsearch, key, trace)

    assert done.returncode == 0, done.stderr
    policy, template = (
        elasticsearch.puts[path] for path in ("/_ilm/policy/synapse-logs", "/_index_template/synapse-logs")
    )
    assert policy[1] == template[1] == f"ApiKey {key}"
    assert policy[0] == json.loads((tmp_path / "release/logging/ilm-policy.json").read_text())
    assert template[0]["template"]["settings"]["index.lifecycle.name"] == "synapse-logs"  # type: ignore[index]
    assert key not in trace.read_text()


def test_the_script_asks_the_port_that_logstash_ships_to() -> None:
    """A node without a port: curl would take 443, and Logstash takes 9200."""
    text = "logging: {elasticsearch: ['https://es.example.org', 'https://[2001:db8::9]:9201']}"
    loaded, faults = check_text(text, Path("spec.yaml"))
    assert loaded is not None, faults
    documents = render_bundle(loaded.spec).by_path

    for path in ("logging/set-up.sh", "logging/logstash.conf", "logging/compose/set-up.sh"):
        assert "https://es.example.org:9200" in documents[path].text, path
    assert '"https://[2001:db8::9]:9201"' in documents["logging/compose/logstash.conf"].text


@pytest.mark.parametrize("index", ["synapse-%{+YYYY.MM.dd}", "synapse-%{+YYYY.MM}", "synapse"])
def test_a_late_line_is_taken_for_as_long_as_its_index_is_kept(index: str) -> None:
    """An index that takes no more lines answers 403, which Logstash offers again for ever: the pipeline stands still
    after a weekend of one host. A forced merge makes an index read-only, too.
    """
    loaded, faults = check_text(json.dumps({"logging": {"index": index}}), Path("spec.yaml"))
    assert loaded is not None, faults
    policy = json.loads(render_bundle(loaded.spec).by_path["logging/ilm-policy.json"].text)["policy"]
    actions = {name for phase in policy["phases"].values() for name in phase["actions"]}

    assert actions <= {"set_priority", "delete"}


def test_the_id_of_a_line_holds_its_time() -> None:
    """A file that is made anew holds equal lines at equal offsets: with one id the later line would be dropped. The
    time is the line's own where it has one.
    """
    for path in ("logging/logstash.conf", "logging/compose/logstash.conf"):
        text = render_bundle(spec_of("default")).by_path[path].text
        assert '"@timestamp"' in text.split("fingerprint {")[1].split("}")[0]
        assert text.index("date {") < text.index("fingerprint {")


def test_a_refusal_fails_the_script(tmp_path: Path, elasticsearch: Elasticsearch) -> None:
    """Else Logstash would start, and logs would stay for ever."""
    done = set_up(tmp_path / "release", elasticsearch, "wrong", tmp_path / "arguments")

    assert done.returncode != 0
    assert "401" in done.stderr
    assert "wrong" not in done.stderr
