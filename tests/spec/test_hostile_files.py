"""Files that are not a spec: each gives one clear message, quickly."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from synapse_ops.errors import ConfigError
from synapse_ops.spec import load_spec

QUICK_S = 5.0  # of processor time, so that a busy machine is no fault; the slowest of these takes 1.5 s

BILLION_LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
HOSTILE = {
    "empty": (b"", "an empty file"),
    "only comments": (b"# nothing\n\n", "an empty file"),
    "null": (b"null\n", "null"),
    "an empty mapping": (b"{}\n", "an empty file"),
    "a list": (b"- a\n- b\n", "a list"),
    "a scalar": (b"hello\n", "a single value"),
    "tabs": (b"server:\n\tport: 80\n", "1: found character '\\t'"),
    "binary": (b"\x7fELF\x02\x01\xff\xfe", "not UTF-8 text: line 1"),
    "control characters": (b"name: a\x00b\n", "control character 0x00"),
    "utf-16": ("name: a".encode("utf-16"), "not UTF-8"),
    "an open bracket": (b"server: {port: 80\nname: a\n", "valid YAML"),
    "an open quote": (b'name: "a\n', "valid YAML"),
    "an unknown alias": (b"name: *nobody\n", "undefined alias"),
    "a tag": (b"name: !!python/object/apply:os.system [id]\n", "tag"),
    "a number as key": (b"80: a\n", "as a key"),
    "a list as key": (b"? [a, b]\n: c\n", "as a key"),
    "billion laughs": (BILLION_LAUGHS.encode(), "too many values, aliases expanded"),
    "ten megabytes": (b"name: a\n" + BILLION_LAUGHS.encode() * 20_000, "bytes; at most 131072"),
    "an alias of itself": (b"name: &a [*a]\n", "nested too deeply"),
    "deep nesting": (b"name: " + b"[" * 100_000, "nested too deeply"),
    "deep mappings": (b"".join(b" " * n + b"a:\n" for n in range(200)), "nested too deeply"),
    "many values": (b"name: [" + b"1," * 30_000 + b"]", "at most 20000"),
    "a long line": (b"name: " + b"x" * 100_000, "at most 63"),
    "half a character": (rb'name: "\ud800"', "half of an escaped character"),
    "half a character as key": (rb'"\udfff": 1', "half of an escaped character"),
    "latin-1": ("name: über".encode("latin-1"), "not UTF-8 text: line 1"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_file_that_is_no_spec_gives_one_clear_message_quickly(kind: str, tmp_path: Path) -> None:
    """No traceback, no long wait, no endless expansion: exit 2 and what is wrong."""
    content, said = HOSTILE[kind]
    file = tmp_path / "infrastructure.yaml"
    file.write_bytes(content)
    began = time.process_time()

    with pytest.raises(ConfigError) as caught:
        load_spec(file)

    report = caught.value.render()
    assert time.process_time() - began < QUICK_S
    assert said in report
    assert str(file) in report
    assert len(report) < 3_000


def test_a_path_that_is_no_file_is_told_as_what_it_is(tmp_path: Path) -> None:
    """A missing file, a directory, a pipe that would block, and a file in the place of a directory."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "file").touch()
    paths = {
        tmp_path / "missing.yaml": "no such file",
        tmp_path: "is a directory",
        pipe: "not a regular file",
        tmp_path / "file" / "infrastructure.yaml": "not a directory",
        tmp_path / ("x" * 300): "file name too long",
        Path("a\x00b"): "NUL",
    }

    for path, said in paths.items():
        with pytest.raises(ConfigError, match=said):
            load_spec(path)


def test_a_byte_order_mark_and_windows_line_ends_are_no_fault(tmp_path: Path) -> None:
    """Editors of other systems write them."""
    file = tmp_path / "infrastructure.yaml"
    file.write_bytes(b"\xef\xbb\xbfname: a\r\nserver:\r\n  port: 81\r\n")

    assert load_spec(file).spec.server.port == 81
