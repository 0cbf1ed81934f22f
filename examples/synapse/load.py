"""Fills a database with realistic seeded data: `python examples/synapse/load.py --size 100MB --conninfo-file FILE`.

The same seed and size give the same rows. All of it is one transaction: an interrupted load leaves nothing. A database
that was filled before is left as it is.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

HERE = Path(__file__).parent
START = datetime(2025, 1, 1, tzinfo=UTC)
SPAN_S = 2 * 365 * 86400
DOCUMENT_BYTES = 2700  # of one document with its share of everything else, as stored
DOCUMENTS_LEAST = 50
ATTACHMENT_BYTES = 6000
_TEXT = (
    "backup restore server table index standby primary vector model prompt answer river mountain winter garden letter "
    "Zürich naïve façade Ærø smörgåsbord größer Łódź İstanbul 東京 données señal über quick brown fox jumps lazy dog "
    "query latency token embedding chunk replica segment timeline checkpoint heap page tuple vacuum freeze analyse"
)
WORDS = _TEXT.split()
_UNITS = {"": 1, "b": 1, "k": 1024, "kb": 1000, "kib": 1024, "m": 1024**2, "mb": 1000**2, "mib": 1024**2}
_UNITS |= {"g": 1024**3, "gb": 1000**3, "gib": 1024**3}

Report = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Loaded:
    """What a load did. size_bytes: of the database afterwards; documents: rows of the main table."""

    did_load: bool
    size_bytes: int
    documents: int
    took_s: float


def load_example_data(
    conninfo: str, size: int | str = "20MB", seed: int = 1, progress: Report = lambda stage, done, total: None
) -> Loaded:
    """Fill the database that `conninfo` names (as a superuser: it makes roles and extensions) with about `size` bytes.

    size: stored bytes, tables and indexes, or text such as "100MB". progress: called with a stage, rows done and total.
    """
    began = time.monotonic()
    documents = max(DOCUMENTS_LEAST, parse_size(size) // DOCUMENT_BYTES)
    with psycopg.connect(conninfo, application_name="synapse example data") as connection:
        is_there = connection.execute("select to_regclass('library.document')").fetchone() != (None,)
        if not is_there:
            connection.execute("set local synchronous_commit = on; set local maintenance_work_mem = '64MB'")
            connection.execute((HERE / "schema.sql").read_text(encoding="utf-8"))
            _fill(connection, random.Random(seed), documents, progress)
            connection.execute((HERE / "after_load.sql").read_text(encoding="utf-8"))
            connection.commit()
            progress("loading example data", documents, documents)
        [size_bytes] = _row(connection, "select pg_database_size(current_database())")
        [count] = _row(connection, "select count(*) from library.document")
    return Loaded(not is_there, size_bytes, count, time.monotonic() - began)


def parse_size(size: int | str) -> int:
    """Return bytes of 100, "100", "64KiB", "100MB" or "2GiB". Raises ValueError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(size))
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f'a size is a number of bytes or like 100MB, found "{size}"')
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _fill(connection: psycopg.Connection[Any], chance: random.Random, documents: int, progress: Report) -> None:
    authors = max(10, documents // 40)
    phrases = [" ".join(chance.choices(WORDS, k=chance.randint(5, 11))) for _ in range(4000)]
    _copy(
        connection,
        "library.author (name, email, home, aliases, attributes, born, is_active)",
        _authors(chance, authors),
    )
    names = (
        "library.document (id, author_id, title, body, state, metadata, labels, score, embedding, created_at, reply_to)"
    )
    rows = _documents(chance, phrases, documents, authors)
    _copy(connection, names, _counted(rows, documents, progress))
    _copy(connection, "library.attachment (id, document_id, name, content)", _attachments(chance, documents))
    connection.execute("select setval('library.document_number', %s)", [_document_id(documents)])
    _large_objects(connection, chance, max(3, min(200, documents // 200)))
    events = _events(chance, phrases, documents * 2)
    _copy(connection, "audit.event (happened_at, actor, action, detail, address)", events)
    _billing(connection, chance, max(20, documents // 100))
    _oddities(connection, chance)


def _authors(chance: random.Random, count: int) -> Iterator[tuple[Any, ...]]:
    for number in range(count):
        name = f"{chance.choice(WORDS).title()} {chance.choice(WORDS).title()} {number}"
        home = f'("{chance.randint(1, 99)} {chance.choice(WORDS)} St.","{chance.choice(WORDS)}",{number:05d},CH)'
        aliases = [chance.choice(WORDS) for _ in range(number % 4)]
        yield (name, f"author{number}@example.org", home, aliases, f'"city"=>"{chance.choice(WORDS)}", "n"=>NULL',
               (START - timedelta(days=7000 + number)).date(), number % 11 != 0)  # fmt: skip


def _document_id(number: int) -> int:
    return 5000 + 3 * number


def _documents(chance: random.Random, phrases: list[str], count: int, authors: int) -> Iterator[tuple[Any, ...]]:
    states = ("draft", "review", "published", "published", "withdrawn")
    for number in range(count):
        body = ". ".join(chance.choices(phrases, k=chance.randint(3, 18)))
        title = phrases[chance.randrange(4000)][:70].strip()
        metadata = {"lang": WORDS[number % 7], "tokens": len(body) // 4, "sources": [number % 13, None, {"π": 3.14159}]}
        yield (
            _document_id(number),
            1000 + 7 * chance.randrange(authors),
            title,
            body,
            states[number % 5],
            Jsonb(metadata),
            ["a", "b c", 'd"e'][: number % 4],
            None if number % 9 == 0 else round(chance.uniform(-99999, 99999), 4),
            [round(chance.uniform(-1, 1), 6) for _ in range(8)],
            _moment(chance),
            _document_id(chance.randrange(number)) if number % 5 == 4 else None,
        )


def _attachments(chance: random.Random, documents: int) -> Iterator[tuple[Any, ...]]:
    for number in range(0, documents, 20):
        identity = f"{chance.getrandbits(128):032x}"
        content = chance.randbytes(chance.randint(100, 2 * ATTACHMENT_BYTES))
        yield (identity, _document_id(number), f"Anhang {number} – ü.bin", content)


def _events(chance: random.Random, phrases: list[str], count: int) -> Iterator[tuple[Any, ...]]:
    for number in range(count):
        action = chance.choice(("read", "read", "insert", "login"))
        detail = Jsonb({"n": number, "где": phrases[number % 97]})
        address = f"10.{number % 256}.{number // 256 % 256}.7"
        yield (_moment(chance), f"user{chance.randint(1, 99)}", action, detail, address)


def _large_objects(connection: psycopg.Connection[Any], chance: random.Random, count: int) -> None:
    for number in range(count):
        [oid] = _row(connection, "select lo_from_bytea(0, %s)", [chance.randbytes(chance.randint(10, 9000))])
        connection.execute("insert into library.scan values (%s, %s)", [_document_id(number), oid])
        if number == 0:
            connection.execute(f"comment on large object {oid} is 'first scan'")  # type: ignore[arg-type]
            connection.execute(f"grant select on large object {oid} to synapse_reader")  # type: ignore[arg-type]
            connection.execute(f"alter large object {oid} owner to synapse_writer")  # type: ignore[arg-type]


def _billing(connection: psycopg.Connection[Any], chance: random.Random, customers: int) -> None:
    rows = (
        (n, f"K{n:07d}", round(chance.uniform(-500, 90000), 4), chance.choice(("CH", "DE", "JP")))
        for n in range(1, customers + 1)
    )
    _copy(connection, "billing.customer (id, code, balance, country)", rows)
    connection.execute("select setval(pg_get_serial_sequence('billing.customer', 'id'), %s)", [customers])
    years = ((n, f"[20{y}-01-01,20{y}-12-31)", f"{n * 10}.50") for n in range(1, customers + 1) for y in (24, 25))
    _copy(connection, "billing.contract (customer_id, runs, fee)", years)
    usage = (
        (n, START + timedelta(hours=h * 6), chance.randint(0, 10**12))
        for n in range(1, customers + 1)
        for h in range(40)
    )
    _copy(connection, "billing.usage (customer_id, measured_at, units)", usage)


def _oddities(connection: psycopg.Connection[Any], chance: random.Random) -> None:
    rows = (
        (n, f"Wert {n}\t\n\\ é", chance.randint(-5, 10**20), None if n % 2 else "x", chance.uniform(-1, 1))
        for n in range(200)
    )
    _copy(connection, '"Übersicht"."Größe & Maß"', rows)
    connection.execute("insert into \"Übersicht\".\"Größe & Maß (Archiv)\" values (1000, 'alt', 1, null, 'NaN', now())")
    connection.execute("insert into library.note (secret) select 'note ' || n from generate_series(1, 50) n")
    connection.execute("insert into library.session values ('lost in a crash', now())")


def _moment(chance: random.Random) -> datetime:
    return START + timedelta(seconds=chance.random() * SPAN_S)


def _counted(rows: Iterable[tuple[Any, ...]], total: int, progress: Report) -> Iterator[tuple[Any, ...]]:
    for number, row in enumerate(rows):
        if number % 2000 == 0:
            progress("loading example data", number, total)
        yield row


def _copy(connection: psycopg.Connection[Any], table: str, rows: Iterable[tuple[Any, ...]]) -> None:
    with connection.cursor().copy(f"copy {table} from stdin") as copy:  # type: ignore[arg-type]
        for row in rows:
            copy.write_row(row)


def _row(connection: psycopg.Connection[Any], statement: str, values: list[Any] | None = None) -> Any:
    row = connection.execute(statement, values).fetchone()  # type: ignore[arg-type]
    if row is None:
        raise LookupError(statement)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill a database with realistic seeded data.")
    parser.add_argument("--conninfo-file", type=Path, required=True, help="holds the superuser's libpq conninfo or URL")
    parser.add_argument("--database", default="synapse")
    parser.add_argument("--size", default="20MB", help="stored bytes, e.g. 100MB (default 20MB)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    conninfo = psycopg.conninfo.make_conninfo(given.conninfo_file.read_text().strip(), dbname=given.database)
    loaded = load_example_data(conninfo, given.size, given.seed)
    what = f"loaded {loaded.documents} documents" if loaded.did_load else f"already holds {loaded.documents} documents"
    sys.stdout.write(f"{what}, database is {loaded.size_bytes / 1e6:.1f} MB, {loaded.took_s:.1f} s\n")


if __name__ == "__main__":
    main()
