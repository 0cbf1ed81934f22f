"""A stand-in for the Synapse API: small, and true where protection is concerned.

GET /health          the process answers
GET /health/db       PostgreSQL answers a query, on a server that takes writes
GET /metrics         Prometheus text
GET /health/vectors  Qdrant answers a count
POST /generate       {"prompt": ...} writes a document and its vector, and only then acknowledges it
GET /documents/{id}  reads one back
GET /search?q=       the documents nearest to a text

Every acknowledged write stands in the ledger, one JSON line, fsynced before the reply is sent: what a client was told
is kept must be there after any failure, and the ledger is how that is checked.
A document and its vector are written together: the vector inside the transaction, so that neither is acknowledged
without the other; a crash between the two may leave a vector whose document never was.
Settings: SYNAPSE_API_PORT, SYNAPSE_API_DATABASE_FILE (holds a libpq conninfo), SYNAPSE_API_LEDGER; and for vectors
SYNAPSE_API_QDRANT_URL, SYNAPSE_API_QDRANT_KEY_FILE, SYNAPSE_API_QDRANT_COLLECTION. Without the URL there are none.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import psycopg
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, Field
from vectors import VectorStore, point_id, point_of

POOL_SIZE = 5
STATEMENT_TIMEOUT_MS = 10_000
BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
DOCUMENTS = """
create table if not exists documents (
  id bigint generated always as identity primary key,
  prompt text not null,
  body text not null,
  sha256 bytea not null,
  created_at timestamptz not null default clock_timestamp()
)"""


class Prompt(BaseModel):
    prompt: str = Field(min_length=1, max_length=10_000)


class Database:
    """A few kept connections; one that broke is thrown away and made anew at the next request."""

    def __init__(self, conninfo_file: Path) -> None:
        self._conninfo_file = conninfo_file
        self._idle: queue.LifoQueue[psycopg.Connection[Any]] = queue.LifoQueue()
        self._slots = threading.BoundedSemaphore(POOL_SIZE)
        self._has_table = False

    @contextmanager
    def connection(self) -> Iterator[psycopg.Connection[Any]]:
        with self._slots:
            connection = self._take()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._idle.put(connection)

    def _take(self) -> psycopg.Connection[Any]:
        try:
            kept = self._idle.get_nowait()
        except queue.Empty:
            # the file is read each time: after a failover it may name other servers
            conninfo = self._conninfo_file.read_text(encoding="utf-8").strip()
            options = f"-c statement_timeout={STATEMENT_TIMEOUT_MS}"
            return psycopg.connect(conninfo, autocommit=True, options=options)
        return kept

    def ensure_table(self, connection: psycopg.Connection[Any]) -> None:
        if not self._has_table:
            connection.execute(DOCUMENTS)
            self._has_table = True


class Ledger:
    """Appends lines that survive kill -9 and power loss; a line is whole or it is the torn last one."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            os.write(self._file, b"\n")  # a write that was cut: its line stays apart from ours
        self._lock = threading.Lock()

    def append(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False).encode() + b"\n"
        with self._lock:
            os.write(self._file, line)
            os.fsync(self._file)


class Metrics:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets: Counter[float] = Counter()
        self._sum_s = 0.0
        self.acknowledged = 0
        self.database_up = 0

    def observe(self, path: str, status: int, took_s: float) -> None:
        with self._lock:
            self._requests[path, status] += 1
            self._sum_s += took_s
            for bound in BUCKETS_S:
                self._buckets[bound] += took_s <= bound

    def text(self) -> str:
        with self._lock:
            lines = ["# HELP synapse_requests_total Requests answered.", "# TYPE synapse_requests_total counter"]
            for (path, status), count in sorted(self._requests.items()):
                lines.append(f'synapse_requests_total{{path="{path}",status="{status}"}} {count}')
            total = sum(self._requests.values())
            lines += ["# HELP synapse_request_seconds Time to answer.", "# TYPE synapse_request_seconds histogram"]
            lines += [f'synapse_request_seconds_bucket{{le="{bound}"}} {self._buckets[bound]}' for bound in BUCKETS_S]
            lines.append(f'synapse_request_seconds_bucket{{le="+Inf"}} {total}')
            lines += [f"synapse_request_seconds_sum {self._sum_s:.6f}", f"synapse_request_seconds_count {total}"]
            lines += [
                "# HELP synapse_documents_acknowledged_total Writes that clients were told are kept.",
                "# TYPE synapse_documents_acknowledged_total counter",
                f"synapse_documents_acknowledged_total {self.acknowledged}",
                "# HELP synapse_database_up Whether the last use of the database succeeded.",
                "# TYPE synapse_database_up gauge",
                f"synapse_database_up {self.database_up}",
            ]
        return "\n".join(lines) + "\n"


def make_app(conninfo_file: Path, ledger_file: Path, vectors: VectorStore | None = None) -> FastAPI:
    """Return the application; it starts whether or not the database and the vector store answer."""
    app = FastAPI(title="Synapse stand-in")
    database, ledger, metrics = Database(conninfo_file), Ledger(ledger_file), Metrics()

    @app.middleware("http")
    async def measured(request: Request, call_next: Any) -> Response:
        began = time.monotonic()
        response: Response = await call_next(request)
        route = request.scope.get("route")
        metrics.observe(getattr(route, "path", "other"), response.status_code, time.monotonic() - began)
        return response

    @app.exception_handler(psycopg.Error)
    async def no_database(request: Request, error: psycopg.Error) -> Response:
        del request
        metrics.database_up = 0
        body = {"status": "down", "cause": type(error).__name__, "sqlstate": getattr(error, "sqlstate", None)}
        return Response(json.dumps(body), status_code=503, media_type="application/json")

    @app.exception_handler(httpx.HTTPError)
    async def no_vectors(request: Request, error: httpx.HTTPError) -> Response:
        del request
        body = {"status": "down", "store": "qdrant", "cause": type(error).__name__}
        return Response(json.dumps(body), status_code=503, media_type="application/json")

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/health/db")
    def health_db() -> dict[str, Any]:
        with database.connection() as connection:
            [is_standby, lsn] = _row(connection, "select pg_is_in_recovery(), pg_current_wal_lsn()::text")
        metrics.database_up = 1
        return {"status": "ok", "takes_writes": not is_standby, "lsn": lsn}

    @app.get("/health/vectors")
    def health_vectors() -> dict[str, Any]:
        return {"status": "ok", "points": vectors.count()} if vectors is not None else {"status": "none"}

    @app.get("/search")
    def search(q: str) -> dict[str, Any]:
        found = vectors.search(q) if vectors is not None else []
        return {"found": [{"score": point["score"], "payload": point.get("payload")} for point in found]}

    @app.get("/metrics")
    def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/generate")
    def generate(prompt: Prompt) -> dict[str, Any]:
        body = _generated(prompt.prompt)
        digest = hashlib.sha256(body.encode()).hexdigest()
        with database.connection() as connection:
            database.ensure_table(connection)
            statement = "insert into documents (prompt, body, sha256) values (%s, %s, %s) returning id"
            with connection.transaction():
                [number] = _row(connection, statement, [prompt.prompt, body, bytes.fromhex(digest)])
                if vectors is not None:
                    payload = {"document": number, "title": prompt.prompt[:80], "state": "draft", "sha256": digest}
                    vectors.upsert([point_of(point_id(number), body, payload, vectors.size)])
        metrics.database_up = 1
        ledger.append({"id": number, "sha256": digest, "acknowledged_at": datetime.now(UTC).isoformat()})
        metrics.acknowledged += 1
        return {"id": number, "sha256": digest, "text": body}

    @app.get("/documents/{number}")
    def document(number: int) -> Response:
        with database.connection() as connection:
            database.ensure_table(connection)
            found = connection.execute("select id, prompt, body from documents where id = %s", [number]).fetchone()
        if found is None:
            return Response('{"status": "missing"}', status_code=404, media_type="application/json")
        body = {"id": found[0], "prompt": found[1], "text": found[2]}
        return Response(json.dumps(body, ensure_ascii=False), media_type="application/json")

    return app


def _generated(prompt: str) -> str:
    """Return a text that depends on the prompt alone."""
    chance = random.Random(prompt)
    words = prompt.split() or ["…"]
    return " ".join(chance.choice(words) for _ in range(chance.randint(40, 160)))


def _row(connection: psycopg.Connection[Any], statement: str, values: list[Any] | None = None) -> Any:
    return connection.execute(statement, values).fetchone()  # type: ignore[arg-type]


def _vectors() -> VectorStore | None:
    url, key_file = os.environ.get("SYNAPSE_API_QDRANT_URL"), os.environ.get("SYNAPSE_API_QDRANT_KEY_FILE")
    if not url:
        return None
    key = Path(key_file).read_text(encoding="utf-8").strip() if key_file else None
    return VectorStore(url, key, os.environ.get("SYNAPSE_API_QDRANT_COLLECTION", "documents"))


if __name__ == "__main__":
    uvicorn.run(
        make_app(Path(os.environ["SYNAPSE_API_DATABASE_FILE"]), Path(os.environ["SYNAPSE_API_LEDGER"]), _vectors()),
        host="127.0.0.1",
        port=int(os.environ["SYNAPSE_API_PORT"]),
        log_level="warning",
        access_log=False,
    )
