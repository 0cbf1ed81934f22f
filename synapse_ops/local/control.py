"""How a command talks to the supervisor: JSON lines over a Unix socket in a folder that only we can enter.

A request is one line. Replies are lines `{"stage": ...}`, then one `{"done": ...}` or `{"error": ...}`; a connection
that ends without either means that the supervisor died.
"""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from synapse_ops import errors
from synapse_ops.errors import DeadlineExceeded, SynapseOpsError, Unreachable
from synapse_ops.local.layout import StackLayout
from synapse_ops.systems.pg_server import make_socket_dir

CONNECT_TIMEOUT_S = 5.0
LINE_LIMIT_BYTES = 1024 * 1024


def control_socket(layout: StackLayout) -> Path:
    """Return the path of the supervisor's socket; makes its folder."""
    return make_socket_dir(layout.root, None) / "control.sock"


def request(path: Path, body: dict[str, Any], tell: Callable[[str], None], *, timeout_s: float) -> dict[str, Any]:
    """Send one request and return what was done.

    Raises the supervisor's own error, Unreachable when nobody listens or it died meanwhile, DeadlineExceeded when it
    said nothing for `timeout_s`.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.connect(str(path))
            connection.settimeout(timeout_s)
            connection.sendall(json.dumps(body).encode() + b"\n")
            with connection.makefile("rb") as replies:
                for line in replies:
                    reply = json.loads(line)
                    if "stage" in reply:
                        tell(str(reply["stage"]))
                    elif "error" in reply:
                        raise revived(reply["error"])
                    else:
                        done = reply["done"]
                        return dict(done)
        except TimeoutError as late:
            raise DeadlineExceeded(f"the supervisor of the embedded stack said nothing for {timeout_s:g} s") from late
        except OSError as error:
            raise Unreachable(f"the supervisor of the embedded stack does not answer: {error.strerror}") from error
    raise Unreachable("the supervisor of the embedded stack ended while it was asked")


def read_request(connection: socket.socket) -> dict[str, Any]:
    """Return the request of a new connection; empty when the caller said nothing sensible."""
    connection.settimeout(CONNECT_TIMEOUT_S)
    try:
        with connection.makefile("rb") as lines:
            body = json.loads(lines.readline(LINE_LIMIT_BYTES))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def reply(connection: socket.socket, body: dict[str, Any]) -> None:
    """Send one line; a caller that has gone is no fault of ours."""
    try:
        connection.sendall(json.dumps(body, ensure_ascii=False).encode() + b"\n")
    except OSError:
        return


def packed(error: SynapseOpsError) -> dict[str, str]:
    """Return an error as JSON; `revived` is its inverse as far as message, detail, hint and exit code go."""
    return {"code": error.code, "message": error.message, "detail": error.detail, "hint": error.hint}


def revived(body: dict[str, str]) -> SynapseOpsError:
    """Return an error of the same class, hence of the same exit code."""
    kinds = {kind.__name__: kind for kind in _tree(SynapseOpsError)}
    kind = kinds.get(body.get("code", ""), errors.SynapseOpsError)
    error = kind.__new__(kind)
    SynapseOpsError.__init__(error, body["message"], detail=body.get("detail", ""), hint=body.get("hint", ""))
    return error


def _tree(kind: type[SynapseOpsError]) -> Iterator[type[SynapseOpsError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)
