"""Answers as a real server writes them: the envelope around results, and errors with their status and text.

The texts of errors are part of the interface: clients compare some of them, and tests/contract pins them.
"""

from __future__ import annotations

import json
import time
from typing import Any

from starlette.responses import PlainTextResponse, Response


class Fault(Exception):
    """An answer from 400 on. Raised anywhere below the routes, written by the application."""

    status = 500
    prefix = "Service internal error: "

    def __init__(self, text: str) -> None:
        super().__init__(self.prefix + text)


class WrongInput(Fault):
    status = 400
    prefix = "Wrong input: "


class BadRequest(Fault):
    status = 400
    prefix = "Bad request: "


class BadBody(Fault):
    status = 400
    prefix = "Format error in JSON body: "


class BadChecksum(Fault):
    status = 400
    prefix = "Checksum mismatch: "


class Invalid(Fault):
    """A value of the right type that is out of its range. where: such as JSON body, path parameters."""

    status = 422

    def __init__(self, where: str, field: str, text: str) -> None:
        self.prefix = f"Validation error in {where}: "
        super().__init__(f"[{field}: {text}]")


class Missing(Fault):
    status = 404
    prefix = "Not found: "


class Conflict(Fault):
    status = 409
    prefix = "Wrong input: "


class Forbidden(Fault):
    status = 403
    prefix = "Forbidden: "


class NotSpoken(Fault):
    """A part of Qdrant that this stand-in leaves out; a real server would answer."""

    status = 501
    prefix = "Not part of the embedded server: "


class JsonAnswer(Response):
    """Compact JSON as it is, without Starlette's check for NaN: the engine returns none."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def answer(result: Any, began: float) -> Response:
    """Return 200 with a result; began: time.monotonic() of the request's arrival."""
    return JsonAnswer({"result": result, "status": "ok", "time": time.monotonic() - began})


def accepted(began: float) -> Response:
    return JsonAnswer({"status": "accepted", "time": time.monotonic() - began}, status_code=202)


def refused(fault: Fault, began: float, *, as_text: bool = False) -> Response:
    """Return the answer of a fault. as_text: downloads answer in plain text."""
    if as_text:
        return PlainTextResponse(str(fault), status_code=fault.status)
    body = {"status": {"error": str(fault)}, "time": time.monotonic() - began}
    return JsonAnswer(body, status_code=fault.status)
