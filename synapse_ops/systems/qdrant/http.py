"""One HTTP connection pool to a Qdrant server: requests, streams, and the server's answers as our errors.

Invariant: the api key is sent in a header only, and appears in no error. Nothing is retried and no redirect is
followed: the caller decides what is safe to repeat. Proxies of the environment are ignored: the server is ours.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote

from synapse_ops.errors import ConfigError, DeadlineExceeded, SynapseOpsError, Throttled, ToolFailed, Unreachable

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
# A node without power ends no connection. The kernel does, after 60 + 6 * 10 s without an answer to a keepalive, or
# 120 s with sent bytes that were not acknowledged; so a request without its own limit ends as well.
SOCKET_OPTIONS = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 6),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 120_000),  # milliseconds
)
BODY_SHOWN = 600  # characters of an answer that an error repeats


class QdrantRefused(ToolFailed):
    """Qdrant answered a request with an error. status: HTTP; stderr_tail: what it said.

    Its own messages are stable enough to show, not to parse.
    """

    def __init__(self, method: str, path: str, *, status: int, said: str) -> None:
        SynapseOpsError.__init__(self, f"qdrant answered {status} to {method} {path}", detail=said)
        self.argv, self.status, self.stderr_tail = ("qdrant", method, path), status, said

    @property
    def is_missing(self) -> bool:
        """Whether the thing asked for is not there."""
        return self.status == 404


class QdrantHttp:
    """The connection. timeout_s: the longest silence of a request. Thread-safe; close it, or use `with`."""

    def __init__(
        self, url: str, api_key: str | None = None, ca_file: str | None = None, timeout_s: float = TIMEOUT_S
    ) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._api_key = api_key
        self._ca_file = ca_file
        self._client: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.url!r})"

    def close(self) -> None:
        """Close the connections; the object can be used again."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, Any] | None = None,
        has_limit: bool = True,
        read: Callable[[Any], Any] = lambda result: result,
        **more: Any,
    ) -> Any:
        """Return what `read` takes from Qdrant's answer: from `result` of its JSON, or from the text of a plain answer.

        has_limit=False waits as long as the kernel of the node answers; connecting is always limited. Raises
        ConfigError (401, 403), Throttled (429), Unreachable (no answer, 502-504, or one that cannot be read: cut, a
        proxy's page, fields missing), DeadlineExceeded, QdrantRefused (anything else from 300 on).
        """
        with _mapped(self.url):
            if body is not None:
                more["json"] = body
            response = self._http().request(
                method, path, params=params, timeout=_limit(self.timeout_s if has_limit else None), **more
            )
        self._check(response, method, path)
        try:
            return read(_result(response))
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise Unreachable(
                f"could not read the answer of qdrant at {self.url} to {method} {path}: {type(error).__name__}",
                detail=_said(response),
                hint="Is it Qdrant that answers there, and is its answer cut on the way?",
            ) from error

    @contextmanager
    def stream(
        self, path: str, *, silence_s: float | None = 60.0, byte_range: tuple[int, int] | None = None
    ) -> Iterator[httpx.Response]:
        """GET bytes as they are: never compressed on the way. silence_s: longest pause between two pieces.

        byte_range: from the first to the last byte, both included; a server that knows no ranges sends everything.
        """
        headers = {"accept-encoding": "identity"}
        if byte_range is not None:
            headers["range"] = f"bytes={byte_range[0]}-{byte_range[1]}"
        with (
            _mapped(self.url),
            self._http().stream("GET", path, headers=headers, timeout=_limit(silence_s)) as response,
        ):
            if response.status_code >= 300:
                response.read()
            self._check(response, "GET", path)
            yield response

    def _http(self) -> httpx.Client:
        import httpx

        if self._client is None:
            self._client = httpx.Client(
                base_url=self.url,
                headers={"api-key": self._api_key} if self._api_key else {},
                transport=httpx.HTTPTransport(verify=self._trust(), trust_env=False, socket_options=SOCKET_OPTIONS),
                trust_env=False,
                follow_redirects=False,
            )
        return self._client

    def _trust(self) -> ssl.SSLContext | bool:
        if not self.url.startswith("https:"):
            return False
        try:
            return ssl.create_default_context(cafile=self._ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f'could not read the certificates "{self._ca_file}" that qdrant is checked against: {error}',
                hint="Correct qdrant.ca_file.",
            ) from error

    def _check(self, response: httpx.Response, method: str, path: str) -> None:
        status = response.status_code
        if status < 300:
            return
        said = _said(response)
        if status in (401, 403):
            raise ConfigError(
                f"qdrant at {self.url} does not allow {method} {path}: status {status}",
                detail=said,
                hint="qdrant.api_key refers to a key that may manage the whole server.",
            )
        if status == 429:
            raise Throttled(f"qdrant at {self.url} is throttling requests", detail=said)
        if status in (502, 503, 504):
            raise Unreachable(f"qdrant at {self.url} is not ready: status {status}", detail=said)
        raise QdrantRefused(method, path, status=status, said=said)


def _limit(silence_s: float | None) -> httpx.Timeout:
    import httpx

    return httpx.Timeout(silence_s, connect=CONNECT_TIMEOUT_S)


def _result(response: httpx.Response) -> Any:
    if not response.headers.get("content-type", "").startswith("application/json"):
        return response.text
    answer = response.json()
    return answer.get("result") if isinstance(answer, dict) and "status" in answer else answer


def _said(response: httpx.Response) -> str:
    try:
        status = response.json()["status"]
        text = str(status["error"] if isinstance(status, dict) else status)
    except (ValueError, KeyError, TypeError, RecursionError):
        text = response.text
    text = text.strip()
    if len(text) <= BODY_SHOWN:
        return text
    return f"{text[: BODY_SHOWN // 2]} ... {text[-BODY_SHOWN // 2 :]}"  # the cause, such as a full disk, stands last


@contextmanager
def _mapped(url: str) -> Iterator[None]:
    """Turn what httpx raises into our errors. Source: httpx's exception hierarchy."""
    import httpx

    try:
        yield
    except httpx.TimeoutException as late:
        what = (
            f"accept a connection within {CONNECT_TIMEOUT_S:g} s"
            if isinstance(late, httpx.ConnectTimeout)
            else "answer in time"
        )
        raise DeadlineExceeded(f"qdrant at {url} did not {what}", detail=str(late)) from late
    except httpx.TransportError as error:
        raise Unreachable(f"qdrant at {url} does not answer", detail=str(error) or type(error).__name__) from error
    except (httpx.InvalidURL, httpx.DecodingError, ValueError) as error:
        if isinstance(error, SynapseOpsError):
            raise
        raise QdrantRefused("GET", url, status=0, said=f"its answer could not be read: {error}") from error


def segment(name: str | int) -> str:
    """Return a name as one part of a path."""
    return quote(str(name), safe="")
