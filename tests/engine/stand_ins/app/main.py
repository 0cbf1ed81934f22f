"""The stand-in application of examples/synapse, with the settings that the rendered files give an application.

GET /version says which image answers, GET /health/redis whether Redis does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from urllib.parse import quote

import redis

sys.path.insert(0, str(Path(__file__).parent))  # the example's modules name each other without a package

from example import make_app
from vectors import VectorStore

VERSION = (Path(__file__).parent / "VERSION").read_text().strip()


def secret(name: str) -> str | None:
    file = os.environ.get(name)
    return Path(file).read_text().strip() if file else None


conninfo = Path("/tmp/conninfo")
password = quote(secret("SYNAPSE_DATABASE_PASSWORD_FILE") or "", safe="")
making = Path(f"/tmp/conninfo.{os.getpid()}")  # there are several processes
making.write_text(os.environ["SYNAPSE_DATABASE_URL"].replace("@", f":{password}@", 1))
making.rename(conninfo)
vectors = VectorStore(
    os.environ["SYNAPSE_QDRANT_URL"],
    secret("SYNAPSE_QDRANT_API_KEY_FILE"),
    os.environ["SYNAPSE_QDRANT_COLLECTION"],
)
cache = redis.Redis.from_url(os.environ["SYNAPSE_REDIS_URL"], password=secret("SYNAPSE_REDIS_PASSWORD_FILE"))
app = make_app(conninfo, Path("/var/log/synapse/ledger.log"), vectors)


@app.get("/version")
def version() -> dict[str, str]:
    return {"version": VERSION}


@app.get("/health/redis")
def health_redis() -> dict[str, bool]:
    return {"ok": bool(cache.ping())}
