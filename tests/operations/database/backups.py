"""Builders for tests of recovery: a stack over the tests' real servers, and a database with something in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import md5, sha256
from pathlib import Path

import psycopg
from psycopg.conninfo import conninfo_to_dict

from synapse_ops.domain.backup.dump_record import DumpRecord
from synapse_ops.domain.backup.layout import BackupPlace
from synapse_ops.operations.repository import Repository
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.systems.s3.store import StoreAccess

CONTENT = """
create schema shop;
create table shop.customers (
    id bigint generated always as identity primary key,
    name text not null check (name <> ''),
    upper_name text generated always as (upper(name)) stored
);
create table shop.orders (
    id bigserial primary key,
    customer_id bigint not null references shop.customers,
    placed_on date not null,
    note jsonb
) ;
create index orders_by_day on shop.orders (placed_on);
create view shop.busy as select customer_id, count(*) from shop.orders group by 1;
insert into shop.customers (name) select 'Zoë ' || n from generate_series(1, 200) n;
insert into shop.orders (customer_id, placed_on, note)
    select 1 + n % 200, date '2026-01-01' + n % 300, jsonb_build_object('n', n, 'filler', repeat(md5(n::text), 8))
    from generate_series(1, 3000) n;
select lo_from_bytea(0, decode(repeat('ab', 4000), 'hex'));
"""


def fill(conninfo: str) -> None:
    """Put schemas, keys, an index, a view, generated columns, sequences and a large object into a database."""
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(CONTENT)


def make_stack(
    folder: Path,
    conninfo: str,
    bucket_url: str,
    access: StoreAccess,
    *,
    recipients: tuple[str, ...] = (),
    wal_archiving: str = "off",
    nodes: Mapping[str, int] | None = None,
    max_rate: str = "null",
    full_every: str = "null",
) -> Stack:
    """Return the stack of one database and one bucket; its secrets lie in files of `folder`. nodes: ports by name."""
    parts = conninfo_to_dict(conninfo)
    secrets = {
        "admin": conninfo,
        "store": f"[default]\naws_access_key_id = {access.access_key}\naws_secret_access_key = {access.secret_key}\n",
    }
    for name, text in secrets.items():
        path = folder / name
        path.write_text(text)
        path.chmod(0o600)
    spec = folder / "infrastructure.yaml"
    spec.write_text(
        f"""
name: tests
database: {{host: {parts["host"]}, port: {parts["port"]}, name: "{parts["dbname"]}", user: app,
            databases: ["{parts["dbname"]}"], admin: "file:{folder}/admin",
            nodes: {{{", ".join(f'{name}: "127.0.0.1:{port}"' for name, port in (nodes or {}).items())}}}}}
backup: {{database: {{destination: "{bucket_url}", wal_archiving: "{wal_archiving}",
          base: {{max_rate: {max_rate}, full_every: {full_every}}}}}}}
object_store: {{endpoint: "{access.endpoint}", credentials: "file:{folder}/store"}}
encryption: {{recipients: [{", ".join(f'"{r}"' for r in recipients)}]}}
"""
    )
    return open_stack(spec, folder / "state")


@dataclass(frozen=True)
class KeptBackup:
    """The objects of one real backup, to be put into as many repositories as tests need."""

    place: BackupPlace
    objects: dict[str, bytes]

    @classmethod
    def of(cls, repository: Repository, place: BackupPlace) -> KeptBackup:
        store = repository.store
        names = [info.key.removeprefix(place.prefix) for info in store.list_objects(place.prefix)]
        return cls(place, {name: store.read_bytes(place.key(name)) for name in names})

    def put(self, repository: Repository, **changed: bytes | None) -> BackupPlace:
        """Write the backup; `changed` replaces an object by its name with `.` as `_`, None leaves it out."""
        for name, data in self.objects.items():
            kept = changed.get(name.replace(".", "_"), data)
            if kept is not None:
                repository.store.put_bytes(self.place.key(name), kept)
        return self.place

    def with_objects(self, **replaced: bytes) -> KeptBackup:
        """Return a backup with other data whose backup.json names that data truthfully."""
        objects = dict(self.objects)
        record = DumpRecord.from_json(objects["backup.json"], key="backup.json")
        rows = []
        for row in record.objects:
            data = replaced.get(row.name.replace(".", "_"), objects[row.name])
            objects[row.name] = data
            update = {"size_bytes": len(data), "sha256": sha256(data).hexdigest(), "etag": md5(data).hexdigest()}
            rows.append(row.model_copy(update=update))
        stored = sum(row.size_bytes for row in rows)
        objects["backup.json"] = record.model_copy(update={"objects": tuple(rows), "stored_bytes": stored}).to_json()
        return KeptBackup(self.place, objects)


def flip(data: bytes, position: int) -> bytes:
    """Return the bytes with one bit of one byte changed."""
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]
