"""TLS as the stack's fronts serve it: nginx and haproxy for hosts and compose, and the names a certificate must carry.

One minimum version and one list of ciphers for all of them. Ciphers are those with forward secrecy and authenticated
encryption; Mozilla's "intermediate" list less DHE. The request limit is `server.timeout`, which uvicorn itself lacks.
"""

from __future__ import annotations

import shlex

from synapse_ops.manifests.document import Document, text_document
from synapse_ops.manifests.stack.parts import (
    API,
    HTTPS_PORT,
    INTERNAL_PATHS,
    QDRANT,
    Address,
    PlaceName,
    address_of,
    is_ours,
    namespace,
    node_addresses,
    object_name,
)
from synapse_ops.manifests.stack.probes import FAILURES, PERIOD_S, readiness
from synapse_ops.manifests.stack.units import whole_seconds
from synapse_ops.spec import Spec

READS = frozenset({"name", "server", "tls", "kubernetes", "database", "failover", "qdrant", "health"})

CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)
HTTP_PORT = 80
_INTERNAL = f"({'|'.join(INTERNAL_PATHS)})(/|$)".replace(".", "[.]")  # as nginx and haproxy both read it
INNER_HTTP_PORT, INNER_HTTPS_PORT = 8080, 8443  # in a container without the right to bind low ports


def render_tls(spec: Spec) -> tuple[Document, ...]:
    """Return nginx.conf, haproxy.cfg, and the names that the certificate must carry."""
    upstream = address_of(spec, API, "hosts")
    return (
        text_document("tls/nginx.conf", nginx_conf(spec, upstream), READS),
        text_document("tls/haproxy.cfg", haproxy_cfg(spec, upstream), READS),
        text_document("tls/certificate-names.txt", "\n".join(certificate_names(spec)), READS),
    )


def certificate_names(spec: Spec) -> tuple[str, ...]:
    """Return every name under which a part with TLS is reached: what clients verify against."""
    names = list(spec.kubernetes.entry.hosts) or [spec.name]
    for place in ("hosts", "compose", "kubernetes"):
        names += _database_names(spec, place)
        if spec.qdrant.tls and is_ours(spec, "qdrant", place):
            names += _qdrant_names(spec, place)
    return tuple(dict.fromkeys(names))


def _qdrant_names(spec: Spec, place: PlaceName) -> list[str]:
    """Clients in the cluster ask by the Service's name; Prometheus, of another namespace, by the longer one."""
    host = address_of(spec, QDRANT, place).host
    return [host, f"{host}.{namespace(spec)}.svc"] if place == "kubernetes" else [host]


def _database_names(spec: Spec, place: PlaceName) -> list[str]:
    """Somebody else's server has its own certificate; nodes elsewhere that the spec names are set up by our files."""
    if is_ours(spec, "database", place) or (place == "hosts" and spec.database.nodes):
        return [node.host for node in node_addresses(spec, place)]
    return []


def protocols(spec: Spec) -> tuple[str, ...]:
    """Return the accepted protocols, the oldest first."""
    return ("TLSv1.2", "TLSv1.3")[0 if spec.tls.min_version == "TLSv1.2" else 1 :]


def nginx_conf(spec: Spec, upstream: Address, *, in_container: bool = False) -> str:
    """Return a whole nginx.conf: HTTP is sent to HTTPS, and HTTPS to the application."""
    http, https = (INNER_HTTP_PORT, INNER_HTTPS_PORT) if in_container else (HTTP_PORT, HTTPS_PORT)
    certificate, key = ("/run/secrets/tls.crt", "/run/secrets/tls.key") if in_container else _files(spec)
    names = " ".join(spec.kubernetes.entry.hosts) or "_"
    limit_s, idle_ms = whole_seconds(spec.server.timeout), whole_seconds(spec.server.keepalive) * 800
    pid_file = "/tmp/nginx.pid" if in_container else "/run/nginx.pid"  # noqa: S108 - the container's own
    scratch = "".join(
        f"  {kind}_temp_path /tmp/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    return f"""# nginx 1.22 or newer. Check: nginx -t -c nginx.conf
worker_processes auto;
pid {pid_file};
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
{scratch if in_container else ""}  access_log {"/dev/stdout" if in_container else "/var/log/nginx/access.log"};
  server_tokens off;
  keepalive_timeout {whole_seconds(spec.server.keepalive)}s;
  client_max_body_size 10m;
  ssl_certificate "{certificate}";
  ssl_certificate_key "{key}";
  ssl_protocols {" ".join(protocols(spec))};
  ssl_ciphers {CIPHERS};
  ssl_prefer_server_ciphers off;
  ssl_session_cache shared:tls:10m;
  ssl_session_timeout 1d;
  ssl_session_tickets off;
  upstream api {{
    server {upstream};
    keepalive 32;
    keepalive_timeout {idle_ms}ms;  # shorter than the API's own: a request on a connection that it just closed fails
  }}
  server {{
    listen {http};
    listen [::]:{http};
    server_name {names};
    return 301 https://$host$request_uri;
  }}
  server {{
    listen {https} ssl;
    listen [::]:{https} ssl;
    server_name {names};
    add_header Strict-Transport-Security "max-age=31536000" always;
    location ~ ^{_INTERNAL} {{
      return 404;  # of the API itself: Prometheus asks there
    }}
    location / {{
      proxy_pass http://api;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_connect_timeout 5s;
      proxy_send_timeout {limit_s}s;
      proxy_read_timeout {limit_s}s;
    }}
  }}
}}
"""


def _files(spec: Spec) -> tuple[str, str]:
    return spec.tls.cert_file, spec.tls.key_file


def haproxy_cfg(spec: Spec, upstream: Address) -> str:
    """Return a whole haproxy.cfg that does the same, and that takes an API out of service which cannot serve."""
    pem = f"/etc/haproxy/certs/{spec.name}.pem"
    limit_s = whole_seconds(spec.server.timeout)
    return f"""# haproxy 2.6 or newer. Check: haproxy -c -f haproxy.cfg
global
  ssl-default-bind-ciphers {CIPHERS}
  ssl-default-bind-options ssl-min-ver {spec.tls.min_version} no-tls-tickets

defaults
  mode http
  timeout connect 5s
  timeout client {limit_s}s
  timeout server {limit_s}s
  timeout http-keep-alive {whole_seconds(spec.server.keepalive)}s
  option forwardfor

frontend http
  bind :::{HTTP_PORT} v4v6
  http-request redirect scheme https code 301

frontend https
  # haproxy takes chain and key in one file: cat {shlex.join(_files(spec))} > {pem}
  bind :::{HTTPS_PORT} v4v6 ssl crt {pem}
  # of the API itself: Prometheus asks there
  http-request deny deny_status 404 if {{ path,url_dec -m reg ^/*{_INTERNAL} }}
  http-request set-header X-Forwarded-Proto https
  http-response set-header Strict-Transport-Security "max-age=31536000"
  default_backend api

backend api
{_haproxy_check(spec)}  server {object_name(spec)} {upstream} check inter {PERIOD_S}s fall {FAILURES}
"""


def _haproxy_check(spec: Spec) -> str:
    """Return what the API is asked, as the readiness probe asks it; an open port where no check is a path."""
    probe = readiness(spec)
    if probe is None:
        return ""
    path = probe.path.replace("'", "\\'")  # the only character of a path that means something in this file
    return f"""  option httpchk
  http-check send meth GET uri {path} ver HTTP/1.1 hdr Host localhost
  timeout check {probe.timeout_s}s
"""
