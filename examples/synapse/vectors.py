"""Vectors of the stand-in application: made from words alone, kept in Qdrant under an alias.

The embedding is a seeded hash projection, no model: every word adds a few signed ones at places that its hash names, so
texts that share words lie near each other. It is the same everywhere and for ever, which is all that a backup needs.
Applications search by alias: after a restore into a new collection, moving the alias makes it live.
"""

from __future__ import annotations

import functools
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import psycopg

SIZE = 768
PLACES_PER_WORD = 8
PAGE = 250
TIMEOUT_S = 10.0
INDEXES = {"state": "keyword", "words": "integer", "created_at": "datetime", "title": "text"}

Report = Callable[[str, int, int], None]


def alias_of(collection: str) -> str:
    """Return the alias that the application uses for a collection."""
    return f"{collection}-live"


def embed(text: str, size: int = SIZE) -> list[float]:
    """Return the vector of a text; never all zeros."""
    vector = [0.0] * size
    for word in text.lower().split() or ["…"]:
        for place, sign in _places(word, size):
            vector[place] += sign
    if not any(vector):
        vector[0] = 1.0
    return vector


@functools.lru_cache(maxsize=100_000)
def _places(word: str, size: int) -> tuple[tuple[int, float], ...]:
    digest = hashlib.blake2b(word.encode(), digest_size=4 * PLACES_PER_WORD).digest()
    numbers = (int.from_bytes(digest[at : at + 4], "big") for at in range(0, len(digest), 4))
    return tuple((number // 2 % size, 1.0 if number % 2 else -1.0) for number in numbers)


class VectorStore:
    """A collection of a Qdrant server by its alias; made with its payload indexes where it is missing."""

    def __init__(
        self, url: str, api_key: str | None, collection: str, size: int = SIZE, distance: str = "Cosine"
    ) -> None:
        headers = {"api-key": api_key} if api_key else {}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=TIMEOUT_S, trust_env=False)
        self.collection, self.alias = collection, alias_of(collection)
        self.size, self._distance = size, distance
        self._is_there = False

    def upsert(self, points: list[dict[str, Any]]) -> None:
        """Write points, applied when it returns. Raises httpx.HTTPError."""
        self._ensure()
        self._call("PUT", f"/collections/{self.alias}/points?wait=true", {"points": points})

    def search(self, text: str, limit: int = 5) -> list[dict[str, Any]]:
        self._ensure()
        body = {"query": embed(text, self.size), "limit": limit, "with_payload": True}
        return list(self._call("POST", f"/collections/{self.alias}/points/query", body)["points"])

    def count(self) -> int:
        self._ensure()
        return int(self._call("POST", f"/collections/{self.alias}/points/count", {"exact": True})["count"])

    def _ensure(self) -> None:
        if self._is_there:
            return
        if not self._call("GET", f"/collections/{self.alias}/exists")["exists"]:
            if not self._call("GET", f"/collections/{self.collection}/exists")["exists"]:
                vectors = {"size": self.size, "distance": self._distance}
                self._call("PUT", f"/collections/{self.collection}", {"vectors": vectors})
            for field, schema in INDEXES.items():
                body = {"field_name": field, "field_schema": schema}
                self._call("PUT", f"/collections/{self.collection}/index?wait=true", body)
            alias = {"collection_name": self.collection, "alias_name": self.alias}
            self._call("POST", "/collections/aliases", {"actions": [{"create_alias": alias}]})
        params = self._call("GET", f"/collections/{self.alias}")["config"]["params"]
        self.size = params["vectors"]["size"]
        self._is_there = True

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        answer = self._http.request(method, path, json=body)
        if answer.status_code == 404:
            self._is_there = False
        answer.raise_for_status()
        return answer.json()["result"]


def point_of(number: int | str, text: str, payload: dict[str, Any], size: int) -> dict[str, Any]:
    return {"id": number, "vector": embed(text, size), "payload": payload}


def point_id(document: int) -> str:
    """Return the id of a document that the application wrote; those of the loader are numbers."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"synapse/documents/{document}"))


@dataclass(frozen=True)
class LoadedVectors:
    """What a load did. points: in the collection afterwards."""

    did_load: bool
    points: int
    took_s: float


def load_example_vectors(
    conninfo: str, store: VectorStore, most: int = 2000, progress: Report = lambda stage, done, total: None
) -> LoadedVectors:
    """Write vectors of the first `most` documents of the database, by id, unless as many are there."""
    began = time.monotonic()
    with psycopg.connect(conninfo, application_name="synapse example vectors") as connection:
        row = connection.execute("select least(%s, count(*)) from library.document", [most]).fetchone()
        wanted = row[0] if row else 0
        if store.count() >= wanted:
            return LoadedVectors(False, store.count(), time.monotonic() - began)
        done = 0
        for page in _pages(connection, wanted):
            store.upsert([point_of(row[0], row[1], row[2], store.size) for row in page])
            done += len(page)
            progress("loading example vectors", done, wanted)
    return LoadedVectors(True, store.count(), time.monotonic() - began)


def _pages(connection: psycopg.Connection[Any], wanted: int) -> Iterator[list[tuple[int, str, dict[str, Any]]]]:
    statement = "select id, title, body, state::text, created_at from library.document order by id limit %s"
    with connection.cursor(name="documents") as cursor:
        cursor.execute(statement, [wanted])
        while rows := cursor.fetchmany(PAGE):
            yield [
                (
                    number,
                    f"{title} {body}",
                    {"title": title, "state": state, "words": len(body.split()), "created_at": created.isoformat()},
                )
                for number, title, body, state, created in rows
            ]
