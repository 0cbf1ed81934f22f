"""Servers on hosts of their own come back into a new directory; a person starts it, and says that the old are gone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest

from synapse_ops.domain.backup.layout import TIMELINE_ENDS
from synapse_ops.domain.progress import ignore_progress
from synapse_ops.domain.recovery.drill_score import Of, Scenario
from synapse_ops.domain.recovery.recovery_record import INTEGRITY, VALIDATION
from synapse_ops.errors import Refused
from synapse_ops.operations.database.base_backup import take_base_backup
from synapse_ops.operations.recovery import switch as switch_module
from synapse_ops.operations.recovery.named_servers import NamedServers
from synapse_ops.operations.recovery.prepare import prepare_recovery
from synapse_ops.operations.recovery.recovery_drill import rehearse
from synapse_ops.operations.recovery.scores import read_scores
from synapse_ops.operations.recovery.switch import switch_traffic, validate_system
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import PgServer, make_socket_dir
from synapse_ops.systems.s3.store import StoreAccess
from tests.operations.database.backups import make_stack
from tests.servers import running_postgres, servers_dir
from tests.services.wal_receiver.receiving import Receiving, wait_durable

pytestmark = pytest.mark.scenario


@pytest.fixture
def folder() -> Iterator[Path]:
    made = servers_dir("named")
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def test_nothing_is_switched_to_before_a_person_has_ended_the_old_server_and_started_the_new_one(
    folder: Path,
    server_tools: PgTools,
    object_store_access: StoreAccess,
    bucket_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that is known of it is the spec and the bucket; the rows of the last second before its end are there."""
    with running_postgres(server_tools) as old:
        stack = make_stack(folder, old.conninfo(), bucket_url, object_store_access, wal_archiving="continuous")
        spec = folder / "infrastructure.yaml"
        elsewhere = f"{bucket_url.rstrip('/')}-vectors/"
        vectors = f'backup: {{vectors: {{destination: "{elsewhere}"}}, '
        spec.write_text(spec.read_text().replace("backup: {", vectors, 1))
        stack = open_stack(spec, folder)
        old.execute("create table kept (n int)")
        wal = Receiving(folder, folder / "infrastructure.yaml", old.conninfo(), old.server.data_dir)
        with wal.in_process() as receiver:
            take_base_backup(stack)
            old.execute("insert into kept select generate_series(1, 1000)")
            wait_durable(wal, receiver)
        drill = folder / "drill"
        drill.mkdir(mode=0o755)
        rehearsed = rehearse(stack, drill, ignore_progress)
        old.server.stop("immediate")
        place = NamedServers(stack)

        record = prepare_recovery(stack, place, "latest", lambda impact: None, ignore_progress)
        assert record.steps[INTEGRITY]["databases"]["postgres"]["rows"] == 1000
        with pytest.raises(Refused, match="the old nodes cannot be ended from here"):
            switch_traffic(stack, place, record, "", ignore_progress)
        with pytest.raises(Refused, match="the restored server does not answer"):
            switch_traffic(stack, place, record, "powered off", ignore_progress)
        old.server.start(60)
        with pytest.raises(Refused, match=r"the server of database.admin is \d+-[0-9a-f]{8}, the restored one is"):
            switch_traffic(stack, place, record, "powered off", ignore_progress)
        old.server.stop("immediate")

        restored = place.folder(record.id) / "cluster"
        started: PgServer = replace(
            old.server,
            data_dir=restored,
            socket_dir=make_socket_dir(restored, old.server.identity),
            log_path=folder / "restored.log",
        )
        started.start(60)
        try:
            record = switch_traffic(stack, place, record, "powered off at 10:41", ignore_progress)
            monkeypatch.setattr(switch_module, "HEALTHY_LIMIT_S", 0.0)
            monkeypatch.setattr(switch_module, "OF_THE_HOST", _probes_of_others(stack))
            record = validate_system(stack, place, record, ignore_progress)
            with psycopg.connect(old.conninfo()) as connection:
                assert connection.execute("select count(*) from kept").fetchone() == (1000,)
        finally:
            started.stop("immediate")
    assert "no WAL receiver" in record.steps[VALIDATION]["base_backup_fault"]
    store = stack.database_repository().store
    [claim] = [one.key for one in store.list_objects(TIMELINE_ENDS)]
    assert json.loads(store.read_bytes(claim))["incident"] == f"recovery-{record.id}"
    [score] = read_scores(stack.database_repository()).scores
    assert (score.scenario, score.of, score.passed) == (Scenario.RECOVERY, Of.SYSTEM, True)
    assert rehearsed.faults == ()
    assert list(rehearsed.phase_s) == ["read", "replay", "start", "check", "first_write"]


def _probes_of_others(stack: Stack) -> frozenset[str]:
    """Return the probes of what this test has none of."""
    from synapse_ops.operations.health.report import ask_once
    from synapse_ops.operations.stack_probes import stack_probes

    rows = ask_once(lambda clients: stack_probes(stack, clients, is_embedded=False)).rows
    return frozenset(row.probe.name for row in rows if row.probe.name != "server/db-primary")
