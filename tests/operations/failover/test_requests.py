"""What a person asks of the prober is carried out soon, or not at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from click.testing import CliRunner

from synapse_ops.cli.failover import command as failover
from synapse_ops.cli.switchover import command
from synapse_ops.domain.failover.evidence import Sign
from synapse_ops.domain.failover.fence import Effect
from synapse_ops.domain.failover.incident import Limits
from synapse_ops.errors import ConfigError, Refused
from synapse_ops.operations.failover.chain import Chain
from synapse_ops.operations.failover.ledger import REQUEST_LIFE, Asked, Ledger, Request
from synapse_ops.operations.repository import Repository

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


def test_a_request_that_nobody_took_up_is_forgotten(tmp_path: Path) -> None:
    """Else a loss that was accepted for one outage would be accepted at the next one."""
    ledger, request = Ledger.of(tmp_path), Request(NOW, accept_loss_bytes=1 << 30)
    ledger.ask(request)
    assert ledger.take_request(NOW + REQUEST_LIFE) is None
    assert ledger.take_request(NOW) is None

    ledger.ask(request)
    assert ledger.take_request(NOW + REQUEST_LIFE - timedelta(seconds=1)) == request


def test_a_switchover_is_no_leave_to_fail_over(tmp_path: Path) -> None:
    ledger, request = Ledger.of(tmp_path), Request(NOW, Asked.SWITCHOVER, end_sessions=True)
    ledger.ask(request)
    assert ledger.take_request(NOW) is None
    assert ledger.take_request(NOW, Asked.SWITCHOVER) == request


def test_a_switchover_without_a_prober_is_refused_and_leaves_no_request(tmp_path: Path) -> None:
    done = CliRunner().invoke(command, ["--state-dir", str(tmp_path)])
    assert isinstance(done.exception, Refused)
    assert "no watcher looks at the nodes" in done.exception.message
    assert not (tmp_path / "failover").exists()


def test_a_directory_without_a_stack_is_named_and_stays_as_it_was(tmp_path: Path) -> None:
    """A typing error in --state-dir must not look like a pause."""
    for words in (["pause", "--reason", "work"], ["resume"]):
        done = CliRunner().invoke(failover, [*words, "--state-dir", str(tmp_path)])
        assert isinstance(done.exception, ConfigError)
        assert str(tmp_path) in done.exception.message
    assert list(tmp_path.iterdir()) == []


def test_the_status_says_once_why_nobody_would_act(tmp_path: Path) -> None:
    done = CliRunner().invoke(failover, ["status", "--state-dir", str(tmp_path)])
    assert done.exit_code == 17
    assert done.output.count("NOT armed") == 1


def test_a_lag_that_is_not_known_is_refused_until_a_person_accepts_a_loss(tmp_path: Path) -> None:
    """It is measured in the fenced server's WAL then, before anybody is promoted: no refusal is without a way on."""
    limits = Limits(True, "synapse", timedelta(0), 60, max_lag_bytes=1 << 20)
    effect = Effect(Sign.REFUSED, Sign.ENDED)
    chain = Chain(Ledger.of(tmp_path), _no_store, None, "", str, lambda: effect, lambda: limits, (), 1.0)
    facts = {"primary_lsn": "0/3000000", "standby_lsn": None}

    refused = chain._lag_fault(None, facts)
    chain.accept_loss_bytes = 1 << 30

    assert "primary at 0/3000000, standby at None, limit 1048576; `synapse-ops failover run --accept-loss" in refused
    assert chain._lag_fault(None, facts) == ""
    assert "failover run --accept-loss 1073741825" in chain._lag_fault((1 << 30) + 1, facts)


def _no_store() -> Repository:
    raise AssertionError("the store is not asked")
