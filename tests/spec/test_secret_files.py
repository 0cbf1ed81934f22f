"""`file:` references to what is no file of a secret: one clear line each, soon, and little memory."""

from __future__ import annotations

import asyncio
import os
import threading
from pathlib import Path

import pytest

from synapse_ops.errors import ConfigError
from synapse_ops.services.prober.prober import Prober
from synapse_ops.spec import secret_file
from synapse_ops.spec.secret_file import MAX_BYTES
from synapse_ops.spec.secrets import SecretRef

WAIT_S = 20.0


@pytest.fixture
def dead_mount(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Every reading of a file hangs until the event is set, as below a server that is gone. `reads` counts them."""
    is_back = threading.Event()
    monkeypatch.setattr(secret_file, "_under_way", {})
    monkeypatch.setattr(secret_file, "TIMEOUT_S", 0.3)

    def hang(path: str) -> bytes:
        assert is_back.wait(WAIT_S)
        return path.encode()

    monkeypatch.setattr(secret_file, "_read", hang)
    return is_back


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("fifo", "it is not a regular file"),
        ("folder", "it is not a regular file"),
        ("/dev/zero", "it is not a regular file"),
        ("/dev/stdin", "it is not a regular file"),
        ("/proc/self/environ", "it holds zero bytes, as no text does"),
        ("large", f"it has more than {MAX_BYTES} bytes"),
        ("latin-1", "it is not UTF-8 text"),
        ("missing", "No such file or directory"),
    ],
)
def test_what_is_no_secret_gets_one_clear_line(path: str, reason: str, tmp_path: Path) -> None:
    """A FIFO hung, /dev/zero was a MemoryError, and the environment of the process was taken for a secret."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(b"x" * (MAX_BYTES + 1))
    (tmp_path / "latin-1").write_bytes("bücher".encode("latin-1"))
    target = str(tmp_path / path)  # an absolute path stays as it is
    if path == "/dev/stdin" and Path(path).is_file():
        pytest.skip("stdin is a file here")

    with pytest.raises(ConfigError) as caught:
        SecretRef("file", target).resolve()

    assert caught.value.message == f'could not read secret "file:{target}": {reason}'


def test_a_file_system_that_does_not_answer_holds_nobody_for_long(dead_mount: threading.Event) -> None:
    """One thread hangs for each file, however often it is asked for; when it is back, the secret is read."""
    for _ in range(3):
        with pytest.raises(ConfigError, match=r"its file system does not answer within 0\.3 s"):
            SecretRef("file", "/mnt/gone/token").resolve()
    hanging = [thread for thread in threading.enumerate() if thread.name == "secret"]
    dead_mount.set()
    for thread in hanging:
        thread.join(WAIT_S)

    assert len(hanging) == 1
    assert SecretRef("file", "/mnt/gone/token").resolve() == "/mnt/gone/token"


def test_the_prober_lives_on_while_its_token_cannot_be_read(tmp_path: Path, dead_mount: threading.Event) -> None:
    """One call of the webhook hung the prober whole; many calls now wait beside it for one reading."""
    spec = tmp_path / "infrastructure.yaml"
    spec.write_text("name: x\nwatch: {servers: []}\nalerting: {webhook_token: 'file:/mnt/gone/token'}\n")

    async def ask() -> tuple[bool, list[object]]:
        prober = Prober(spec, tmp_path)
        calls = [asyncio.ensure_future(prober.webhook_token()) for _ in range(50)]
        await asyncio.sleep(0)
        lived_on = not any(call.done() for call in calls)
        return lived_on, await asyncio.gather(*calls, return_exceptions=True)

    lived_on, refused = asyncio.run(ask())
    hanging = [thread for thread in threading.enumerate() if thread.name == "secret"]
    dead_mount.set()

    assert lived_on
    assert {type(error) for error in refused} == {ConfigError}
    assert len(hanging) == 1
