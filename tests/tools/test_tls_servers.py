"""What belongs to this machine is never found against a document."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from tools.tls_servers import TlsHandshakes

DOCUMENT = PurePosixPath("tls/haproxy.cfg")
TIMEOUT_S = 60.0


@pytest.fixture
def release(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a rendering with one document, beside an openssl and a haproxy that end with status 1."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("openssl", "haproxy"):
        (programs / name).write_text("#!/bin/sh\nexit 1\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    file = tmp_path / "release" / DOCUMENT
    file.parent.mkdir(parents=True)
    file.write_text("global\n  ssl-default-bind-options ssl-min-ver TLSv1.2\n")
    return tmp_path / "release"


def test_an_openssl_that_makes_no_certificate_is_not_a_fault_of_the_document(release: Path) -> None:
    """It was recorded as a refusal of the file."""
    found = TlsHandshakes().check(release, (DOCUMENT,), TIMEOUT_S)[DOCUMENT]

    assert found.verdict == "broken"
    assert "openssl" in found.findings[0]


def test_a_server_that_does_not_start_with_the_file_refuses_it(release: Path) -> None:
    """The certificate was made; what fails then fails with the document."""
    openssl = release.parent / "bin" / "openssl"
    openssl.write_text('#!/bin/sh\nwhile [ $# -gt 1 ]; do case "$1" in -keyout|-out) : >"$2" ;; esac; shift; done\n')

    found = TlsHandshakes().check(release, (DOCUMENT,), TIMEOUT_S)[DOCUMENT]

    assert found.verdict == "failed"
    assert "haproxy with this file does not serve" in found.findings[0]
