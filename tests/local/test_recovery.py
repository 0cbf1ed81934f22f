"""The embedded stack comes back from its bucket, wherever the recovery is cut, to whichever moment a person names."""

from __future__ import annotations

import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
import httpx
import psycopg
import pytest
from click.testing import CliRunner
from redis import Redis

from synapse_ops.cli.main import cli
from synapse_ops.defs.recovery.recovery_plan import recovery_plan_definitions
from synapse_ops.defs.resources import StackResource
from synapse_ops.domain.backup.layout import TIMELINE_ENDS, timeline_end_key
from synapse_ops.domain.progress import ignore_progress
from synapse_ops.domain.recovery.recovery_record import (
    IMPACT,
    INTEGRITY,
    RESTORED,
    STEPS,
    SWITCH,
    VALIDATION,
    RecoveryRecord,
)
from synapse_ops.errors import PlanChanged, Refused, SynapseOpsError, ToolFailed
from synapse_ops.local import recovery_place
from synapse_ops.local.embedded_stack import living, reset_stack, start_stack
from synapse_ops.local.example_data import load_example_data, load_example_vectors
from synapse_ops.local.failover_place import embedded_databases
from synapse_ops.local.layout import find_layout
from synapse_ops.local.lose_everything import lose
from synapse_ops.local.recovery_place import EmbeddedRecovery
from synapse_ops.operations.backup_kinds import BASES, RDBS, SNAPSHOTS, BackupKind
from synapse_ops.operations.database.wal_report import read_wal_report
from synapse_ops.operations.recovery.choice import Choice
from synapse_ops.operations.recovery.impact import assess_impact
from synapse_ops.operations.recovery.journal import Journal
from synapse_ops.operations.recovery.prepare import prepare_recovery
from synapse_ops.operations.recovery.switch import apply_recovery
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.systems.postgres.control_file import control_data
from synapse_ops.systems.postgres.identity import read_identity
from tests.servers import servers_dir

pytestmark = [pytest.mark.scenario, pytest.mark.timeout(900)]

DEADLINE_S = 120.0
SOURCES = "vectors:\n  sources:\n    - {table: library.document, collection: documents, key: id}\n"


class Cut(BaseException):
    """The process ends here, as by kill -9: what was done is not written down."""


class Site:
    """A started stack with data and proven backups of it."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir

    @property
    def stack(self) -> Stack:
        return open_stack(self.state_dir / "infrastructure.yaml", self.state_dir.resolve())

    @property
    def place(self) -> EmbeddedRecovery:
        return EmbeddedRecovery(self.stack.state_dir, self.stack.spec.qdrant, dies_with_us=True)

    def begin(self) -> None:
        start_stack(self.state_dir, die_with_us=True)
        spec = self.state_dir / "infrastructure.yaml"
        text = spec.read_text().replace("  redis: null", '  redis: {schedule: "0 0 * * *", retention: 7d}', 1)
        at = text.index("vectors:   ") if "vectors:   " in text else text.index("\nvectors:") + 1
        end = text.index("\nobject_store:")
        spec.write_text(text[:at] + SOURCES + text[end:])
        stack = self.stack
        assert stack.spec.backup.redis is not None
        assert stack.spec.vectors.sources
        load_example_data(stack.admin_conninfo("synapse"), size="8MB")
        load_example_vectors(stack.admin_conninfo("synapse"), stack.spec.qdrant, most=300)

    def back_up(self, *kinds: BackupKind) -> list[str]:
        """Take and prove one backup of each kind; return their ids."""
        stack, ids = self.stack, []
        for kind in kinds:
            [subject] = kind.subjects(stack)
            ids.append(kind.verbs().take(stack, subject).record.backup_id)
            report = kind.prove(kind.repository(stack), backup_id=ids[-1], work_dir=self.state_dir / "proof")
            assert report is not None
            assert report.is_proven, report.record.differences
        return ids

    def write(self, count: int = 5) -> list[int]:
        """Write documents through the application, and return their numbers once their WAL is stored."""
        with httpx.Client(base_url=self.stack.spec.health_base_url or "", timeout=30, trust_env=False) as client:
            numbers = [
                client.post("/generate", json={"prompt": f"text {secrets.token_hex(4)}"})
                .raise_for_status()
                .json()["id"]
                for _ in range(count)
            ]
        self.wait_stored()
        return numbers

    def wait_stored(self) -> None:
        def is_stored() -> bool:
            status = read_wal_report(self.stack).status
            return status is not None and status.lag_bytes == 0

        wait_for(is_stored, "WAL is stored")

    def documents(self) -> set[int]:
        with psycopg.connect(self.stack.admin_conninfo("synapse")) as connection:
            return {number for (number,) in connection.execute("select id from public.documents")}

    def redis(self) -> Redis:
        spec = self.stack.spec.redis
        assert spec.password is not None
        return Redis(spec.host, spec.port, password=spec.password.resolve(), socket_timeout=10)

    def prepare(self, until: str = "latest") -> RecoveryRecord:
        return prepare_recovery(self.stack, self.place, until, lambda impact: None, ignore_progress)

    def apply(self, digest: str) -> RecoveryRecord:
        return apply_recovery(self.stack, self.place, digest, "", ignore_progress)

    def identity(self) -> str:
        with psycopg.connect(self.stack.admin_conninfo("postgres")) as connection:
            return str(read_identity(connection))

    def command(self, *arguments: str) -> Any:
        spec = self.state_dir / "infrastructure.yaml"
        places = ["--spec", str(spec), "--state-dir", str(self.state_dir)]
        return CliRunner().invoke(cli, [*arguments, *places], catch_exceptions=True)


def wait_for(is_true: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline_s, f"not in {DEADLINE_S:g} s: {what}"
        time.sleep(0.1)


def repeated(work: Callable[[], RecoveryRecord]) -> tuple[RecoveryRecord, int]:
    """Do the work again after each cut; return what came of it and how often it was cut."""
    for cuts in range(30):
        try:
            return work(), cuts
        except Cut:
            continue
    raise AssertionError("it does not come to an end")


def cut_at_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut each attempt when it is about to write a second step down: its effect is there, and nobody knows."""
    write, writes = Journal.write, list[str]()

    def cut(self: Journal, record: RecoveryRecord) -> None:
        writes.append(record.id)
        if len(writes) == 2:
            writes.clear()
            raise Cut
        write(self, record)

    monkeypatch.setattr(Journal, "write", cut)


def cut_once_after(monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> None:
    """Cut behind each of the first `times` calls of a function of the embedded recovery."""
    real, left = getattr(recovery_place, name), [times]

    def cut(*given: Any, **more: Any) -> Any:
        found = real(*given, **more)
        if left[0]:
            left[0] -= 1
            raise Cut
        return found

    monkeypatch.setattr(recovery_place, name, cut)


def host_ends_in_validation(monkeypatch: pytest.MonkeyPatch, site: Site) -> None:
    """Kill every server when the first validation begins, and the recovery with them."""
    validate, ends = EmbeddedRecovery.validate, list[str]()

    def cut(self: EmbeddedRecovery, record: RecoveryRecord) -> dict[str, Any]:
        if ends:
            return validate(self, record)
        ends.append(record.id)
        for mark in living(find_layout(site.state_dir)).values():
            mark.signal(signal.SIGKILL)
            mark.wait_gone(30.0)
        raise Cut

    monkeypatch.setattr(EmbeddedRecovery, "validate", cut)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    folder = servers_dir("recovery")
    folder.chmod(0o755)
    made = Site(folder / ".synapse")
    with ExitStack() as opened:
        opened.callback(shutil.rmtree, folder)
        opened.callback(reset_stack, made.state_dir)
        made.begin()
        yield made


def test_all_is_lost_and_comes_back_wherever_the_recovery_is_cut(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every cut leaves an effect that nobody wrote down; what is acknowledged is there in the end."""
    site.redis().set("kept", "value")
    site.back_up(BASES, SNAPSHOTS, RDBS)
    written = site.write()
    lose(site.state_dir)
    with pytest.raises(Refused, match="the data of PostgreSQL is gone"):
        start_stack(site.state_dir, die_with_us=True)
    impact, _ = assess_impact(site.stack, site.place, "latest", datetime.now(UTC))
    assert impact.recommended == "restore to latest"
    assert any(line.startswith("db: ") for line in impact.situation.down)
    assert not any("local up" in line for line in impact.situation.down)  # which would be refused
    assert "next:  synapse-ops recover --plan\n" in site.command("recover").output
    status = CliRunner().invoke(cli, ["local", "status", "--state-dir", str(site.state_dir)])
    assert isinstance(status.exception, SynapseOpsError)
    assert "`synapse-ops recover`" in status.exception.hint

    with monkeypatch.context() as cutting:
        cut_at_second(cutting)
        record, cuts = repeated(site.prepare)
    assert cuts >= 4
    assert record.faults == ()
    assert set(record.steps[RESTORED]["parts"]) == {one.what for one in record.chosen}
    [pair] = record.steps[INTEGRITY]["stores"]
    assert (pair["points"], pair["points_without_row"]) == (300, 0)
    assert site.prepare() == record  # nothing was stored since: the digest that a person holds stays good

    with monkeypatch.context() as cutting:
        cut_once_after(cutting, "_put", 3)
        cut_once_after(cutting, "start_stack", 1)
        cut_at_second(cutting)
        host_ends_in_validation(cutting, site)
        record, cuts = repeated(lambda: site.apply(record.digest))
    assert cuts == 6
    found = record.steps[VALIDATION]
    assert (found["lost_writes"], found["rto_met"]) == (0, True)
    assert set(written) <= site.documents()
    assert site.redis().get("kept") == b"value"
    assert "base_backup" in found
    assert sorted(path.name for path in (site.state_dir / "recovery" / record.id).iterdir() if path.is_dir()) == []
    assert site.apply(record.digest) == record  # a used digest does nothing
    with pytest.raises(PlanChanged, match="has the digest"):
        site.apply("0123456789abcdef")


def test_a_moment_before_a_mistaken_delete_comes_back_and_the_old_primary_takes_no_write(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both nodes run and take sessions: they are ended first, and what is left of them does not start."""
    site.back_up(BASES)
    written = site.write()
    moment = datetime.now(UTC)
    [later] = site.write(1)
    conninfo = site.stack.admin_conninfo("synapse")
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute("delete from public.documents")
    site.write(1)
    databases = embedded_databases(site.state_dir.resolve())
    assert databases is not None
    system = control_data(databases.primary.data_dir, databases.primary.tools, databases.primary.identity)
    ended = timeline_end_key(system["Database system identifier"], 7)  # by a failover of another generation
    site.stack.database_repository().store.put_bytes(ended, b'{"incident": "of-old"}')

    record = site.prepare(f"time:{moment.isoformat()}")
    with psycopg.connect(conninfo, autocommit=True) as open_session, monkeypatch.context() as cutting:
        cut_once_after(cutting, "_put", 1)
        record, _ = repeated(lambda: site.apply(record.digest))
        with pytest.raises(psycopg.OperationalError):
            open_session.execute("insert into public.documents (prompt, body, sha256) values ('', '', '')")

    assert set(written) <= site.documents()
    assert record.steps[VALIDATION]["lost_writes"] == 1 + 1  # behind the moment: one before the mistake, one after
    assert later not in site.documents()
    assert databases.primary.control_timeline() == 9  # behind all that were ever begun
    assert [one["node"] for one in record.steps[SWITCH]["fenced"]] == ["db-primary", "db-standby"]
    for fenced in record.steps[SWITCH]["fenced"]:
        assert fenced["killed"] > 0
        kept = Path(fenced["kept"])
        assert (kept / "synapse.fenced").exists()
        (kept / "synapse.fenced").unlink()  # by hand, as somebody might
        stale = replace(databases.primary, data_dir=kept, log_path=site.state_dir / "stale.log")
        with pytest.raises((ToolFailed, Refused)):
            stale.start(20)

    site.write(1)
    since = datetime.now(UTC)
    site.write(1)
    for until in ("latest", f"time:{since.isoformat()}"):  # by its new base backup, which no proof has tried yet
        impact, choice = assess_impact(site.stack, site.place, until, datetime.now(UTC))
        assert isinstance(choice, Choice)
        assert choice.identity == site.identity()
        assert all(option.is_possible for option in impact.options[2:])
        assert impact.situation.to_at is not None
        assert impact.situation.to_at > since


def test_a_base_backup_that_is_damaged_is_named_and_an_older_one_taken(site: Site) -> None:
    """One has lost an object, which the listing shows; of one a byte has changed, which only reading shows."""
    [good, changed, short] = [site.back_up(BASES)[0] for _ in range(3)]
    written = site.write(2)
    store = site.stack.database_repository().store
    keys = {one.key.split("/")[-2]: one.key for one in store.list_objects() if "/base.tar" in one.key}
    store.delete([keys[short]])
    body = bytearray(store.read_bytes(keys[changed]))
    body[len(body) // 2] ^= 0xFF
    store.put_bytes(keys[changed], bytes(body))

    record = site.prepare()

    [cluster] = [one for one in record.chosen if one.what == "cluster"]
    assert cluster.backup_id == good
    assert short in cluster.note
    assert changed in cluster.note
    assert record.faults == ()
    copied = record.steps[INTEGRITY]["databases"]["synapse"]["rows"]
    assert copied > 100 + len(written)
    ends = sorted(one.key for one in store.list_objects(TIMELINE_ENDS))
    with pytest.raises(Refused, match="takes writes: what it committed since the copy was made would be lost"):
        site.apply(record.digest)
    assert (
        sorted(one.key for one in store.list_objects(TIMELINE_ENDS)) == ends
    )  # no claim against a primary that is well
    assert set(written) <= site.documents()


def test_two_jobs_of_dagster_do_the_same(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The digest on the page of the first is what the second takes; each step is on the page of its asset."""
    monkeypatch.setenv("SYNAPSE_SPEC", str(site.state_dir / "infrastructure.yaml"))
    monkeypatch.setenv("SYNAPSE_STATE_DIR", str(site.state_dir.resolve()))
    monkeypatch.setattr(recovery_place, "place_of", lambda stack: site.place)
    site.back_up(BASES, SNAPSHOTS, RDBS)
    written, moment = site.write(2), datetime.now(UTC)
    later = site.write(1)
    definitions = dg.Definitions.merge(
        recovery_plan_definitions(),
        dg.Definitions(resources={"stack": StackResource()}, executor=dg.in_process_executor),
    )
    with dg.DagsterInstance.ephemeral() as instance:

        def run(job: str, op: str, **config: str) -> dict[str, dg.AssetMaterialization]:
            ops = {"ops": {op: {"config": config}}}
            result = definitions.resolve_job_def(job).execute_in_process(run_config=ops, instance=instance)
            found = [event.materialization for event in result.all_events if event.is_step_materialization]
            return {one.asset_key.to_user_string(): one for one in found}

        prepared = run("recover_plan", "prepare_recovery", until=f"time:{moment.isoformat()}")
        assert list(prepared) == list(STEPS[:3])
        next_step = str(prepared[IMPACT].metadata["next_step"].value)
        assert next_step == f"synapse-ops recover --plan --until time:{moment.isoformat()}"
        digest = str(prepared[INTEGRITY].metadata["digest"].value)
        assert f"recover --apply {digest}" in str(prepared[INTEGRITY].metadata["summary"].value)
        done = run("recover_switch", "switch_to_recovery", digest=digest)
    assert list(done) == list(STEPS[3:])
    assert set(written) <= site.documents()
    assert not set(later) & site.documents()


def test_what_a_person_writes_wrong_is_said_and_nothing_is_changed(site: Site) -> None:
    before = Journal.of(site.stack.state_dir).records()
    for arguments, words in (
        (["recover", "--plan", "--until", "xid:7"], "latest or to a time"),
        (["recover", "--plan", "--until", "yesterday"], "allowed: latest"),
        (["recover", "--plan", "--until", "time:2001-01-01T00:00:00Z"], "the oldest base backup ended at"),
        (["recover", "--apply", "feed", "--plan"], "--plan and --until made it"),
    ):
        said = site.command(*arguments)
        assert said.exception is not None
        assert words in f"{said.exception} {getattr(said.exception, 'detail', '')}", said.exception
    assert Journal.of(site.stack.state_dir).records() == before
