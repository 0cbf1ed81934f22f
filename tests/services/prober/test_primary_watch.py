"""Another manager promotes: we say which node takes writes, follow it, and touch nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from synapse_ops.cli.main import cli
from synapse_ops.domain.failover.evidence import Sign
from synapse_ops.errors import Refused
from synapse_ops.operations.failover.status import FailoverStatus, read_status
from synapse_ops.operations.stack import Stack, open_stack
from synapse_ops.services.prober.primary_watch import DatabaseWatch
from synapse_ops.services.prober.watched_node import WatchedNode
from synapse_ops.systems.postgres.kept_session import KeptSession
from synapse_ops.systems.postgres.programs import PgTools
from synapse_ops.systems.postgres.server import FENCE_MARKER
from tests.servers import running_postgres, running_standby

LIMIT_S = 60.0


def until(state_dir: Path, holds: Callable[[FailoverStatus], bool]) -> FailoverStatus:
    ends = time.monotonic() + LIMIT_S
    while not holds(found := read_status(state_dir, datetime.now(UTC))):
        assert time.monotonic() < ends, found.sentence
        time.sleep(0.05)
    return found


def test_another_managers_failover_is_reported_and_followed(
    server_tools: PgTools, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No promotion, fence, ledger entry or request is ours; the spec in force says who watches, at any time."""
    with running_postgres(server_tools) as primary, running_standby(primary) as standby:
        monkeypatch.setenv("TEST_ADMIN_DSN", primary.conninfo())
        ports = {"db-primary": primary.server.port, "db-standby": standby.server.port}

        def stack_of(manager: str) -> Stack:
            nodes = ", ".join(f'{name}: "127.0.0.1:{port}"' for name, port in ports.items())
            path = tmp_path / f"{manager}.yaml"
            path.write_text(
                f"database: {{admin: 'env:TEST_ADMIN_DSN', nodes: {{{nodes}}}}}\nfailover: {{manager: {manager}}}"
            )
            return open_stack(path, tmp_path)

        in_force = [stack_of("synapse")]
        watch = DatabaseWatch(lambda: in_force[0], tmp_path, place=None)
        thread = threading.Thread(target=watch.run, daemon=True)
        thread.start()
        try:
            assert read_status(tmp_path, datetime.now(UTC)).primary is None  # nothing here may fence: nobody watches
            in_force[0] = stack_of("external")
            before = until(tmp_path, lambda found: found.primary == "db-primary" and found.standby == "db-standby")
            primary.server.stop("immediate")
            down = until(tmp_path, lambda found: found.primary is None)
            marked = (primary.server.data_dir / FENCE_MARKER).exists()
            standby.execute("select pg_promote()")
            after = until(tmp_path, lambda found: found.primary == "db-standby")
            asked = [
                CliRunner().invoke(cli, [*words, "--state-dir", str(tmp_path)])
                for words in (["failover", "status"], ["failover", "run"], ["switchover"])
            ]
            in_force[0] = stack_of("synapse")
            until(tmp_path, lambda found: not found.state)
        finally:
            watch.stop()
            thread.join(LIMIT_S)

    assert not marked
    assert before.is_in_order
    assert not before.is_armed
    assert not down.is_in_order
    assert after.sentence.startswith("only watched: db-standby takes writes (failover.manager is external")
    assert after.incidents == ()
    assert asked[0].exit_code == 0
    for one in asked[1:]:
        assert isinstance(one.exception, Refused)
        assert "failover.manager is external" in one.exception.message


def test_a_time_out_began_when_the_question_was_asked() -> None:
    """What was known 2 s before it counts: noted at the end of its wait, nothing was ever that fresh."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"host=127.0.0.1 port={silent.getsockname()[1]} sslmode=disable"
        node = WatchedNode("db-primary", KeptSession(address, application_name="test"))
        before = datetime.now(UTC)
        answer = node.ask()
        took = datetime.now(UTC) - before

    assert answer.sign is Sign.SILENT
    assert node.first_failed_at is not None
    assert node.first_failed_at - before < took / 2


def test_a_name_that_does_not_resolve_is_silence_and_ends_no_watch() -> None:
    """There is no socket to wait for then."""
    answer = KeptSession("host=nowhere.invalid", application_name="test").ask("select 1", 5.0)

    assert (answer.sign, answer.words.startswith("could not translate host name")) == (Sign.SILENT, True)
