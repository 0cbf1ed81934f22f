"""Renders the way of log lines: Filebeat on each host, Logstash, Elasticsearch with its template and age limit.

Two places: on `hosts` Filebeat and Logstash speak TLS with the stack's certificate; in `compose` they share a private
network. Fields are named after the Elastic Common Schema. What Elasticsearch refuses goes to the dead letter queue.
Nothing of it is rendered where the spec names no node of Elasticsearch.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, urlsplit

from synapse_ops.manifests.document import Document, json_document, text_document, yaml_document
from synapse_ops.manifests.stack import parts
from synapse_ops.manifests.stack.parts import Place
from synapse_ops.manifests.stack.units import whole_seconds
from synapse_ops.spec import Spec
from synapse_ops.spec.fixed import LOCAL_HOSTS
from synapse_ops.spec.log_index import days_written_to

PIPELINE_PATHS: dict[Place, str] = {"hosts": "logging/logstash.conf", "compose": "logging/compose/logstash.conf"}
SET_UP_PATHS: dict[Place, str] = {"hosts": "logging/set-up.sh", "compose": "logging/compose/set-up.sh"}
FILEBEAT_PATHS: dict[Place, str] = {"hosts": "logging/filebeat.yml", "compose": "logging/compose/filebeat.yml"}
POLICY = "synapse-logs"
PIPELINE_READS = frozenset(["logging", "tls"])
_SET_UP_READS = frozenset(["logging"])
FILEBEAT_READS = frozenset(["logging", "name", "tls"])
TEMPLATE_READS = frozenset(["cleanup", "logging"])
_DAY_S = 86_400


def render_logstash(spec: Spec) -> tuple[Document, ...]:
    if not spec.logging.is_shipped:
        return ()
    pipelines = tuple(
        text_document(PIPELINE_PATHS[place], _pipeline(spec, place), PIPELINE_READS) for place in PIPELINE_PATHS
    )
    scripts = tuple(text_document(SET_UP_PATHS[place], _set_up(spec, place), _SET_UP_READS) for place in SET_UP_PATHS)
    return (
        *pipelines,
        *scripts,
        yaml_document("logging/logstash.yml", _logstash_yml("127.0.0.1"), reads=frozenset()),
        yaml_document("logging/pipelines.yml", _pipelines_yml("/etc/logstash/conf.d/logstash.conf"), reads=frozenset()),
        yaml_document("logging/compose/logstash.yml", _logstash_yml("0.0.0.0"), reads=frozenset()),  # noqa: S104
        yaml_document(
            "logging/compose/pipelines.yml",
            _pipelines_yml("/usr/share/logstash/pipeline/logstash.conf"),
            reads=frozenset(),
        ),
    )


def _logstash_yml(host: str) -> dict[str, object]:
    return {
        "api.http.host": host,
        "api.http.port": parts.LOGSTASH_API_PORT,
        "pipeline.ecs_compatibility": "v8",
        "queue.type": "persisted",
        "queue.max_bytes": "1gb",
        "dead_letter_queue.enable": True,
        "dead_letter_queue.max_bytes": "512mb",
        "log.format": "json",
        "config.reload.automatic": True,
    }


def _pipelines_yml(path: str) -> list[dict[str, object]]:
    return [{"pipeline.id": "synapse", "path.config": path}]


def _pipeline(spec: Spec, place: Place) -> str:
    return f"{_input(spec, place)}\n{_FILTER}\n{_output(spec, place)}"


def _input(spec: Spec, place: Place) -> str:
    options = [f"port => {spec.logging.beats_port}"]
    tls = spec.tls
    if place == "hosts":
        oldest = ["TLSv1.2", "TLSv1.3"] if tls.min_version == "TLSv1.2" else ["TLSv1.3"]
        options += [
            "ssl_enabled => true",
            f"ssl_certificate => {_quoted(tls.cert_file)}",
            f"ssl_key => {_quoted(tls.key_file)}",
            f"ssl_supported_protocols => {_list(oldest)}",
        ]
    return _block("input", "beats", options)


# lines of JSON become fields; whatever else a line is stays whole in `message`
_FILTER = """filter {
  if [message] =~ /^\\s*\\{/ {
    json {
      source => "message"
      target => "synapse"
      skip_on_invalid_json => true
    }
  }
  if [synapse][timestamp] {
    date {
      match => ["[synapse][timestamp]", "ISO8601", "UNIX", "UNIX_MS"]
      remove_field => ["[synapse][timestamp]"]
    }
  }
  if [synapse][level] {
    mutate {
      rename => { "[synapse][level]" => "[log][level]" }
      lowercase => ["[log][level]"]
    }
  }
  if [synapse][event] {
    mutate {
      replace => { "message" => "%{[synapse][event]}" }
      remove_field => ["[synapse][event]"]
    }
  }
  fingerprint {
    source => ["@timestamp", "[host][name]", "[log][file][path]", "[log][offset]", "message"]
    concatenate_sources => true
    method => "SHA256"
    target => "[@metadata][id]"
  }
}
"""


def _output(spec: Spec, place: Place) -> str:
    logging = spec.logging
    urls = elasticsearch_urls(spec, place)
    options = [
        f"hosts => {_list(urls)}",
        f"index => {_quoted(logging.index)}",
        'document_id => "%{[@metadata][id]}"',
        'action => "create"',
        "manage_template => false",
        "ilm_enabled => false",
    ]
    if any(url.startswith("https:") for url in urls):
        options += ["ssl_enabled => true", 'ssl_verification_mode => "full"']
    if needs_api_key(spec, place):
        options.append('api_key => "${ELASTICSEARCH_API_KEY}"')
    return _block("output", "elasticsearch", options)


def has_own_elasticsearch(spec: Spec, place: Place) -> bool:
    """Tell whether Elasticsearch is a service of the compose file: where the spec's nodes are all this machine."""
    return place == "compose" and all(node.hostname in LOCAL_HOSTS for node in _nodes(spec))


def elasticsearch_urls(spec: Spec, place: Place) -> list[str]:
    """Return the URL of each node, its port written out: curl's default is another one than Logstash's. In compose a
    node on this machine is out of reach beside others, and alone it is the service of that name, which has neither TLS
    nor keys and no way out.
    """
    if has_own_elasticsearch(spec, place):
        return [f"http://elasticsearch:{parts.ELASTICSEARCH_PORT}"]
    reached = [node for node in _nodes(spec) if place == "hosts" or node.hostname not in LOCAL_HOSTS]
    return [
        f"{node.scheme}://{parts.Address(node.hostname or '', node.port or parts.ELASTICSEARCH_PORT)}"
        for node in reached
    ]


def needs_api_key(spec: Spec, place: Place) -> bool:
    """Tell whether Elasticsearch asks for the key of `logging.api_key`."""
    return spec.logging.api_key is not None and not has_own_elasticsearch(spec, place)


def _nodes(spec: Spec) -> list[SplitResult]:
    return [urlsplit(node if "://" in node else f"http://{node}") for node in spec.logging.elasticsearch]


def _set_up(spec: Spec, place: Place) -> str:
    """Return the script that loads what Logstash does not: the age limit, and the template that applies it."""
    url = elasticsearch_urls(spec, place)[0]
    return f"""#!/bin/sh
# Loads the policy that deletes old indices, and the template that gives it to each; safe to repeat, and before the
# first line is shipped. Needs curl; a key in ELASTICSEARCH_API_KEY is sent, and seen by nobody in a list of processes.
set -eu
cd "$(dirname "$0")"
authorization() {{
  [ -n "${{ELASTICSEARCH_API_KEY:-}}" ] || return 0
  key="$(printf '%s' "$ELASTICSEARCH_API_KEY" | sed 's/["\\\\]/\\\\&/g')"
  printf 'header = "Authorization: ApiKey %s"\\n' "$key"
}}
put() {{
  authorization | curl --config - --silent --show-error --fail --max-time 30 --retry 10 --retry-connrefused \\
    --output /dev/null --request PUT --header 'Content-Type: application/json' --data-binary "@$2" "$1"
}}
put '{url}/_ilm/policy/{POLICY}' ilm-policy.json
put '{url}/_index_template/{POLICY}' index-template.json
"""


def _block(kind: str, plugin: str, options: list[str]) -> str:
    lines = "".join(f"    {option}\n" for option in options)
    return f"{kind} {{\n  {plugin} {{\n{lines}  }}\n}}\n"


def _list(values: list[str]) -> str:
    return f"[{', '.join(map(_quoted, values))}]"


def _quoted(text: str) -> str:
    """Return a string of Logstash's language. It knows no escapes: the spec admits no double quote in such a text."""
    return f'"{text}"'


def render_filebeat(spec: Spec) -> tuple[Document, ...]:
    if not spec.logging.is_shipped:
        return ()
    return tuple(
        yaml_document(FILEBEAT_PATHS[place], _filebeat(spec, place), reads=FILEBEAT_READS) for place in FILEBEAT_PATHS
    )


def _filebeat(spec: Spec, place: Place) -> dict[str, object]:
    host = "localhost" if place == "hosts" else "logstash"
    output: dict[str, object] = {"hosts": [f"{host}:{spec.logging.beats_port}"], "loadbalance": True}
    if place == "hosts":
        versions = ["TLSv1.2", "TLSv1.3"] if spec.tls.min_version == "TLSv1.2" else ["TLSv1.3"]
        output |= {
            "ssl.enabled": True,
            "ssl.certificate_authorities": [spec.tls.cert_file],
            "ssl.supported_protocols": versions,
            # this machine's own Logstash, by an address that no public authority puts into a certificate
            "ssl.verification_mode": "certificate",
        }
    return {
        "filebeat.inputs": [
            {
                "type": "filestream",
                "id": "synapse-logs",
                "enabled": True,
                "paths": list(spec.logging.paths),
                "prospector.scanner.fingerprint.enabled": True,
                "file_identity.fingerprint": None,
                "fields_under_root": True,
                "fields": {"service.name": spec.name},
            }
        ],
        "processors": [{"add_host_metadata": {"when.not.contains.tags": "forwarded"}}],
        "queue.mem": {"events": 4096, "flush.min_events": 512, "flush.timeout": "1s"},
        "output.logstash": output,
        # a container's log is what it writes to stderr, and its root file system is read-only
        "logging.to_stderr" if place == "compose" else "logging.to_files": True,
        "logging.level": "info",
    }


def render_index_template(spec: Spec) -> tuple[Document, ...]:
    """Return the index template and the policy that deletes an index `cleanup.logs.retention` after its day, or after
    the week, month or year that its name says.
    """
    if not spec.logging.is_shipped:
        return ()
    pattern = re.sub(r"%\{[^}]*\}", "*", spec.logging.index)
    days = max(1, whole_seconds(spec.cleanup.logs.retention) // _DAY_S)
    template = {
        "index_patterns": [pattern],
        "priority": 200,
        "template": {
            "settings": {
                "index.lifecycle.name": POLICY,
                "index.number_of_shards": 1,
                "index.auto_expand_replicas": "0-1",  # a single node has none, and is not yellow for it
                "index.codec": "best_compression",
                "index.mapping.total_fields.limit": 2000,
            },
            "mappings": {
                "dynamic_templates": [
                    {"texts": {"match_mapping_type": "string", "mapping": {"type": "keyword", "ignore_above": 1024}}}
                ],
                "properties": {
                    "@timestamp": {"type": "date"},
                    "message": {"type": "match_only_text"},
                    "log": {"properties": {"level": {"type": "keyword"}}},
                    "host": {"properties": {"name": {"type": "keyword"}}},
                    "service": {"properties": {"name": {"type": "keyword"}}},
                    "synapse": {"type": "object", "dynamic": True},
                },
            },
        },
        "_meta": {"managed_by": "synapse-ops"},
    }
    return (
        json_document("logging/index-template.json", template, TEMPLATE_READS),
        json_document("logging/ilm-policy.json", _policy(days, days_written_to(spec.logging.index)), TEMPLATE_READS),
    )


def _policy(days: int, written_days: int | None) -> dict[str, object]:
    """Return the policy. Ages count from an index' first line: what may still be written to is not deleted, and an
    index without a date is written to for ever. None is made read-only or merged, which does so too: a line of a host
    that was off for a weekend would be refused, and Logstash would offer it for ever and take no other.
    """
    phases: dict[str, object] = {"hot": {"min_age": "0ms", "actions": {"set_priority": {"priority": 100}}}}
    if written_days is not None:
        phases["delete"] = {"min_age": f"{days + written_days - 1}d", "actions": {"delete": {}}}
    return {"policy": {"phases": phases, "_meta": {"managed_by": "synapse-ops"}}}
