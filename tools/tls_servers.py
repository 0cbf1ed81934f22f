"""nginx and haproxy with a rendered file: its syntax, and which TLS versions a server that runs it accepts.

The file is the rendered one but for what belongs to a host: ports, paths of certificates and logs, the API's address.
"""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tools.program import Program, Server, found_program, run_program, serving
from tools.tool import ToolOutcome, ToolVerdict

HOST = "localhost"
_NGINX = ("tls/nginx.conf", "docker/nginx.conf")
_HAPROXY = ("tls/haproxy.cfg",)
_START_S = 15.0
_HANDSHAKE_S = 10.0
_INSTALL = "apt-get install nginx-light haproxy openssl"
_TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
_V = ssl.TLSVersion
NAMES = {_V.TLSv1_1: "TLS 1.1", _V.TLSv1_2: "TLS 1.2", _V.TLSv1_3: "TLS 1.3"}


def staged(directory: Path, path: PurePosixPath) -> tuple[Path, int]:
    """Write the file as it can run here, with a certificate of its own; return it and its TLS port on loopback."""
    scratch = Path(tempfile.mkdtemp(prefix="tls-", dir=directory.parent))
    _make_certificate(scratch)
    text, (secure, plain) = (directory / path).read_text(encoding="utf-8"), _free_ports()
    change = _staged_nginx if path.suffix == ".conf" else _staged_haproxy
    file = scratch / path.name
    file.write_text(change(text, scratch, secure, plain), encoding="utf-8")
    return file, secure


def _staged_nginx(text: str, scratch: Path, secure: int, plain: int) -> str:
    text = re.sub(r"(?m)^\s*(listen \[::\]|\w+_temp_path ).*\n", "", text)
    for pattern, new in (
        (r"listen \d+ ssl;", f"listen 127.0.0.1:{secure} ssl;"),
        (r"listen \d+;", f"listen 127.0.0.1:{plain};"),
        (r"ssl_certificate [^;]+;", f"ssl_certificate {scratch}/tls.crt;"),
        (r"ssl_certificate_key [^;]+;", f"ssl_certificate_key {scratch}/tls.key;"),
        (r"pid [^;]+;", f"pid {scratch}/nginx.pid;"),
        (r"access_log [^;]+;", "access_log off;"),
        (r"(?m)^(\s+)server [^\s;{]+;", r"\1server 127.0.0.1:9;"),
    ):
        text = re.sub(pattern, new, text)
    temporary = "".join(f"  {kind}_temp_path {scratch}/{kind};\n" for kind in _TEMPORARY)
    return text.replace("http {\n", f"http {{\n{temporary}", 1)


def _staged_haproxy(text: str, scratch: Path, secure: int, plain: int) -> str:
    text = re.sub(r"bind :::\d+ v4v6 ssl crt \S+", f"bind 127.0.0.1:{secure} ssl crt {scratch}/tls.pem", text)
    text = re.sub(r"bind :::\d+ v4v6", f"bind 127.0.0.1:{plain}", text)
    return re.sub(r"(?m)^(  server \S+) \S+", r"\1 127.0.0.1:9", text)


def _free_ports() -> tuple[int, int]:
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:
        return one.getsockname()[1], other.getsockname()[1]


def _make_certificate(scratch: Path) -> None:
    key, chain = scratch / "tls.key", scratch / "tls.crt"
    argv = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    argv += ["-days", "1", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"]
    run_program([*argv, "-keyout", str(key), "-out", str(chain)], scratch, _START_S).check_returncode()
    (scratch / "tls.pem").write_bytes(chain.read_bytes() + key.read_bytes())


def declared_versions(text: str) -> frozenset[ssl.TLSVersion]:
    """Return the versions that a file means to accept, in nginx's words or haproxy's."""
    listed = re.search(r"ssl_protocols ([^;]+);", text)
    if listed:
        names = {"TLSv1.1": _V.TLSv1_1, "TLSv1.2": _V.TLSv1_2, "TLSv1.3": _V.TLSv1_3}
        return frozenset(names[word] for word in listed.group(1).split() if word in names)
    least = re.search(r"ssl-min-ver TLSv(1\.\d)", text)
    order = [_V.TLSv1_1, _V.TLSv1_2, _V.TLSv1_3]
    return frozenset(order[{"1.2": 1, "1.3": 2}.get(least.group(1), 0) :] if least else order)


def accepts(port: int, version: ssl.TLSVersion, authority: Path | None) -> bool:
    """Tell whether a server completes a handshake of exactly this version, its name and chain verified.

    The client's own limits are off, so that a refusal is the server's. Raises OSError when nobody listens.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(authority)
    with socket.create_connection(("127.0.0.1", port), timeout=_HANDSHAKE_S) as raw:
        try:
            with context.wrap_socket(raw, server_hostname=HOST) as secure:
                return secure.version() is not None
        except (ssl.SSLError, ConnectionError) as error:
            if isinstance(error, ssl.SSLCertVerificationError):
                raise
            return False


@dataclass(frozen=True)
class TlsHandshakes:
    """Serves each file, and asks for TLS 1.1, 1.2 and 1.3: 1.1 is refused, 1.3 accepted, 1.2 as the file says."""

    name: str = "tls-handshakes"
    install: str = _INSTALL
    opens: tuple[str, ...] = ()

    def applies(self, path: PurePosixPath, /) -> bool:
        return any(path.match(glob) for glob in (*_NGINX, *_HAPROXY))

    def version(self) -> str | None:
        """Return the client's version of OpenSSL; None where there is nothing to make a certificate with."""
        return ".".join(map(str, ssl.OPENSSL_VERSION_INFO[:3])) if found_program("openssl") else None

    def check(
        self, directory: Path, documents: tuple[PurePosixPath, ...], timeout_s: float
    ) -> Mapping[PurePosixPath, ToolOutcome]:
        """Return the outcome for each document; every wait within has a limit of seconds."""
        ends_s = time.monotonic() + timeout_s
        return {path: self._judge(directory, path) for path in documents if time.monotonic() < ends_s}

    def _judge(self, directory: Path, path: PurePosixPath) -> ToolOutcome:
        began_s, program = time.monotonic(), "nginx" if path.suffix == ".conf" else "haproxy"
        verdict: ToolVerdict = "absent"
        findings = [f"not installed: {self.install}"]
        if found_program(program):
            try:
                staged_file = staged(directory, path)
            except subprocess.TimeoutExpired:
                verdict, findings = "timed-out", ["openssl made no certificate in time"]
            except (OSError, subprocess.CalledProcessError) as error:
                verdict, findings = "broken", [f"no certificate can be made here: {error}"]
            else:
                findings = _wrong_handshakes(*staged_file, program)
                verdict = "failed" if findings else "passed"
        spent_s = round(time.monotonic() - began_s, 3)
        return ToolOutcome(self.name, self.version() or "unknown", verdict, tuple(findings), spent_s)


def _wrong_handshakes(file: Path, port: int, program: str) -> list[str]:
    declared = declared_versions(file.read_text(encoding="utf-8"))
    findings = []
    try:
        with _served(file, port, program):
            for version, name in NAMES.items():
                wanted = version == _V.TLSv1_3 or (version == _V.TLSv1_2 and version in declared)
                if accepts(port, version, file.parent / "tls.crt") != wanted:
                    findings.append(f"{name} is {'refused' if wanted else 'accepted'}")
    except OSError as error:  # a certificate that does not verify is one of them
        findings.append(f"{program} with this file does not serve: {error}")
    return findings


@contextmanager
def _served(file: Path, port: int, program: str) -> Iterator[None]:
    arguments = {
        "nginx": ["-p", str(file.parent), "-c", str(file), "-g", "daemon off; master_process off;"],
        "haproxy": ["-db", "-f", str(file)],
    }[program]
    try:
        with serving([program, *arguments], file.parent / "log") as server:
            _await_port(server, port)
            yield
    finally:
        shutil.rmtree(file.parent, ignore_errors=True)


def _await_port(server: Server, port: int) -> None:
    ends_s = time.monotonic() + _START_S
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > ends_s:
                raise
            time.sleep(0.02)


SERVER_TOOLS: tuple[Program | TlsHandshakes, ...] = (
    Program(
        "nginx",
        "nginx",
        _NGINX,
        lambda directory, path: [["-t", "-q", "-p", str(directory.parent), "-c", str(staged(directory, path)[0])]],
        "apt-get install nginx-light",
        version_arguments=("-v",),
    ),
    Program(
        "haproxy",
        "haproxy",
        _HAPROXY,
        lambda directory, path: [["-c", "-q", "-f", str(staged(directory, path)[0])]],
        "apt-get install haproxy",
        version_arguments=("-v",),
    ),
    TlsHandshakes(),
)
