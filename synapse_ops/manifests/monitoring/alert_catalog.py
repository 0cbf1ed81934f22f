"""The alerts that every stack has, whatever its spec lists: about protection, failover, and the watching itself.

Thresholds come from the spec's own promises (schedules, limits of failover) where there are any. What must be there is
asked for with `absent`: a backup that was never made fires as one that is too old does.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

from synapse_ops.domain.backup.ages import SLACK
from synapse_ops.domain.backup.kinds import BASE, DUMP, RDB, SNAPSHOT, Kind
from synapse_ops.manifests.monitoring.alert_archive import archive_alerts
from synapse_ops.manifests.monitoring.alert_disk import disk_alerts
from synapse_ops.manifests.monitoring.alert_failover import failover_alerts
from synapse_ops.manifests.monitoring.alert_rule import AlertRule, Proof, Series
from synapse_ops.manifests.monitoring.alert_wal import slot_alerts, wal_alerts
from synapse_ops.manifests.monitoring.promql import quoted, range_of, seconds
from synapse_ops.manifests.stack.parts import has_wal_receiver
from synapse_ops.spec import Spec
from synapse_ops.spec.cron import Cron
from synapse_ops.spec.units import format_duration

CERTIFICATE_WARNING = timedelta(days=21)
CERTIFICATE_CRITICAL = timedelta(days=7)
XID_AGE = 1_000_000_000  # half of the distance; PostgreSQL itself warns at 40 million left
HEARTBEAT = "Watchdog"

_MINUTE = timedelta(minutes=1)
_FIVE = timedelta(minutes=5)


def own_alerts(spec: Spec) -> tuple[AlertRule, ...]:
    """Return the alerts, each name once, in a fixed order."""
    redis = spec.backup.redis
    return (
        *_protection(spec, DUMP, spec.database.databases, spec.backup.database.schedule),
        *_protection(spec, SNAPSHOT, _collections(spec), spec.backup.vectors.schedule),
        *(_protection(spec, RDB, (), redis.schedule) if redis is not None else ()),
        *(
            _protection(spec, BASE, (BASE.word,), spec.backup.database.schedule)
            if spec.backup.database.wal_archiving != "off"
            else ()
        ),
        *_repository(),
        *failover_alerts(spec),
        *slot_alerts(spec),
        *_postgres(),
        *(wal_alerts(spec) if has_wal_receiver(spec) else ()),
        *archive_alerts(),
        *_cache(),
        *_hosts(),
        *_probes(spec),
        *_watching(spec),
    )


def _collections(spec: Spec) -> tuple[str, ...]:
    return tuple(dict.fromkeys((spec.qdrant.collection, *(source.collection for source in spec.vectors.sources))))


def _protection(spec: Spec, kind: Kind, subjects: tuple[str, ...], schedule: Cron) -> Iterator[AlertRule]:
    """Yield what is said of one repository: too old, missing, not proven in time. Names begin with its kind of backup.

    subjects: those that must have one. Empty is a repository with one subject, which has another name in each place:
    Redis by its address.
    """
    noun = kind.backup_noun
    too_old = schedule.longest_gap(spec.time_zone) + SLACK
    prove_within = spec.proof.schedule.longest_gap(spec.time_zone) + spec.proof.timeout + SLACK
    backup, proof = "synapse_ops_backup_timestamp_seconds", "synapse_ops_proof_timestamp_seconds"
    of = f'{{repository="{kind.word}"}}'
    each = [f'{{repository="{kind.word}",subject={quoted(name)}}}' for name in subjects]
    sample = each[0] if each else f'{{repository="{kind.word}",subject="localhost:1"}}'
    by = "repository, subject" if subjects else "repository"
    whose = "{{ $labels.subject }}" if subjects else "Redis"
    newest, proven = (f"max by ({by}) ({metric}{of})" for metric in (backup, proof))
    yield AlertRule(
        name=f"{kind.alert}TooOld",
        expr=f"time() - {newest} > {seconds(too_old)}",
        hold=_FIVE,
        severity="critical",
        summary=f"the last {noun} of {whose} is {{{{ $value | humanizeDuration }}}} old",
        description=f"The schedule `{schedule}` promises one each {format_duration(too_old - SLACK)}.",
        page="backup-too-old",
        dashboard="database",
        proof=Proof(
            bad=(Series(backup + sample, -int(too_old.total_seconds()) - 1, 1),),
            good=(Series(backup + sample, -int(too_old.total_seconds()), 1),),
        ),
    )
    yield AlertRule(
        name=f"{kind.alert}Missing",
        expr=" or ".join(f"absent({backup}{one})" for one in each or (of,)),
        hold=timedelta(hours=1),
        severity="critical",
        summary=f"there is no {noun} of {whose}",
        description="The repository holds none, or could not be read.",
        page="backup-missing",
        dashboard="database",
        proof=Proof(
            bad=(Series(backup + sample, None), *(Series(backup + one, 0) for one in each[1:])),
            good=tuple(Series(backup + one, 0) for one in each or (sample,)),
        ),
    )
    yield AlertRule(
        name=f"{kind.alert}Unproven",
        expr=f"({newest} unless {proven} >= {newest}) < time() - {seconds(prove_within)}",
        hold=_FIVE,
        severity="critical",
        summary=f"the last {noun} of {whose} is not proven by a restore",
        description=f"A proof is due within {format_duration(prove_within)} of the backup.",
        page="backup-unproven",
        dashboard="database",
        proof=Proof(
            bad=(
                Series(backup + sample, -int(prove_within.total_seconds()) - 1),
                Series(proof + sample, -int(prove_within.total_seconds()) - 2),
            ),
            good=(
                Series(backup + sample, -int(prove_within.total_seconds()) - 1),
                Series(proof + sample, -int(prove_within.total_seconds()) + 60),
            ),
        ),
    )


def _repository() -> Iterator[AlertRule]:
    selector = 'synapse_ops_repository_read{repository="database"}'
    yield AlertRule(
        name="RepositoryUnreadable",
        expr="max by (repository) (synapse_ops_repository_read) == 0",
        hold=timedelta(minutes=30),
        severity="critical",
        summary="the repository of {{ $labels.repository }} cannot be read",
        description="Whether there are backups is unknown: ages shown elsewhere are those of the last good reading.",
        page="repository-unreadable",
        dashboard="database",
        proof=Proof(bad=(Series(selector, 0),), good=(Series(selector, 1),)),
    )
    met = 'synapse_ops_objectives_met{repository="database",subject="synapse"}'
    yield AlertRule(
        name="ObjectiveMissed",
        expr="min by (repository, subject) (synapse_ops_objectives_met) == 0",
        hold=timedelta(minutes=10),
        severity="critical",
        summary="{{ $labels.subject }} of the repository {{ $labels.repository }} cannot be restored as promised",
        description="Too much work would be lost now, a restore takes too long, or something stands against its "
        "backups. The page `recoverability` and `synapse-ops info` say which.",
        page="objectives-missed",
        dashboard="database",
        proof=Proof(bad=(Series(met, 0),), good=(Series(met, 1),)),
    )


def _postgres() -> Iterator[AlertRule]:
    node = '{node="db-primary"}'
    failures = "synapse_ops_postgres_checksum_failures"
    xids = "synapse_ops_postgres_oldest_xid_age"
    yield AlertRule(
        name="ChecksumFailures",
        expr=f"max by (node) ({failures}) > 0",
        hold=timedelta(0),
        severity="critical",
        summary="{{ $value }} pages of {{ $labels.node }} failed their checksum",
        description="The disk gave back something else than was written. Backups made since may hold it.",
        page="checksum-failures",
        dashboard="database",
        proof=Proof(bad=(Series(failures + node, 1),), good=(Series(failures + node, 0),)),
    )
    yield AlertRule(
        name="TransactionIdsWrapAround",
        expr=f"max by (node) ({xids}) > {XID_AGE}",
        hold=timedelta(hours=1),
        severity="critical",
        summary="the oldest transaction id of {{ $labels.node }} is {{ $value | humanize }} old",
        description="At 2.1 billion PostgreSQL takes no more writes until VACUUM has run.",
        page="transaction-ids-wrap-around",
        dashboard="database",
        proof=Proof(bad=(Series(xids + node, XID_AGE + 1),), good=(Series(xids + node, XID_AGE),)),
    )


def _cache() -> Iterator[AlertRule]:
    used, most = "synapse_ops_redis_memory_bytes", "synapse_ops_redis_max_memory_bytes"
    yield AlertRule(
        name="RedisNearlyFull",
        expr=f"sum({used}) / sum({most}) > 0.9",
        hold=timedelta(minutes=10),
        severity="warning",
        summary="Redis uses {{ $value | humanizePercentage }} of its memory",
        description="At maxmemory it drops keys or refuses writes, by its policy.",
        page="redis-nearly-full",
        dashboard="cache",
        proof=Proof(bad=(Series(used, 95), Series(most, 100)), good=(Series(used, 80), Series(most, 100))),
    )


def _hosts() -> Iterator[AlertRule]:
    left = "synapse_ops_certificate_left_seconds"
    for name, limit, severity in (
        ("CertificateExpiresSoon", CERTIFICATE_WARNING, "warning"),
        ("CertificateExpiresNow", CERTIFICATE_CRITICAL, "critical"),
    ):
        bound = int(limit.total_seconds())
        yield AlertRule(
            name=name,
            expr=f"min({left}) < {bound}",
            hold=_FIVE,
            severity="critical" if severity == "critical" else "warning",
            summary="a certificate is valid for {{ $value | humanizeDuration }} more",
            description=f"Less than {limit.days} days. `synapse-ops health` names it.",
            page="certificate-expires",
            dashboard="system",
            proof=Proof(bad=(Series(left, bound - 1),), good=(Series(left, bound),)),
        )
    yield from disk_alerts()


def _probes(spec: Spec) -> Iterator[AlertRule]:
    state = "synapse_ops_probe_state"
    unknown, failed = (f'{state}{{probe="api",state="{word}"}}' for word in ("unknown", "failed"))
    yield AlertRule(
        name="ProbeFailed",
        expr=f'max by (probe) ({state}{{state="failed"}}) == 1',
        hold=_MINUTE,
        severity="critical",
        summary="the probe {{ $labels.probe }} fails",
        description="Two of its last three verdicts say so. `synapse-ops health` says why.",
        page="probe-failed",
        dashboard="application",
        proof=Proof(bad=(Series(failed, 1),), good=(Series(failed, 0),)),
    )
    yield AlertRule(
        name="ProbeUnknown",
        expr=f'max by (probe) ({state}{{state="unknown"}}) == 1',
        hold=timedelta(minutes=10),
        severity="warning",
        summary="the state of {{ $labels.probe }} is unknown",
        description="The prober could not ask. Unknown is never good.",
        page="probe-unknown",
        dashboard="application",
        proof=Proof(bad=(Series(unknown, 1),), good=(Series(unknown, 0),)),
    )
    if spec.health:
        success = 'probe_success{job="health",instance="http://api:8000/health",check="api"}'
        yield AlertRule(
            name="EndpointDown",
            expr="probe_success == 0",
            hold=timedelta(minutes=2),
            severity="critical",
            summary="{{ $labels.check }} at {{ $labels.instance }} does not answer well",
            description="The blackbox exporter's view, which does not depend on Synapse Ops.",
            page="endpoint-down",
            dashboard="application",
            proof=Proof(bad=(Series(success, 0),), good=(Series(success, 1),)),
        )


def _watching(spec: Spec) -> Iterator[AlertRule]:
    window = range_of(spec)
    up = 'up{job="synapse_ops",instance="localhost:9109"}'
    beats = 'synapse_ops_watch_heartbeats_total{job="synapse_ops",instance="localhost:9109"}'
    yield AlertRule(
        name=HEARTBEAT,
        expr="vector(1)",
        hold=timedelta(0),
        severity="none",
        summary="alerts work",
        description="It always fires. Whoever gets it must raise an alarm when it stops coming: the dead-man's switch.",
        page="watchdog",
        dashboard=None,
        proof=Proof(bad=(), good=()),
    )
    yield AlertRule(
        name="ProberDown",
        expr='absent(up{job="synapse_ops"} == 1)',
        hold=_MINUTE * 2,
        severity="critical",
        summary="Synapse Ops is not watching",
        description="No probe, no age of a backup and no lag is known; automatic failover is off.",
        page="prober-down",
        dashboard="application",
        proof=Proof(bad=(Series(up, 0),), good=(Series(up, 1),)),
    )
    yield AlertRule(
        name="ProberStuck",
        expr=f"rate(synapse_ops_watch_heartbeats_total[{window}]) == 0",
        hold=_FIVE,
        severity="critical",
        summary="Synapse Ops answers and does not probe",
        description="What it tells is what it knew when it stopped.",
        page="prober-down",
        dashboard="application",
        proof=Proof(bad=(Series(beats, 5),), good=(Series(beats, 5, 1),), is_rate=True),
    )
    for name, metric, what in (
        ("PrometheusRulesFail", "prometheus_rule_evaluation_failures_total", "rules of Prometheus fail"),
        ("PrometheusCannotNotify", "prometheus_notifications_errors_total", "Prometheus cannot reach Alertmanager"),
        ("AlertmanagerCannotNotify", "alertmanager_notifications_failed_total", "Alertmanager cannot deliver alerts"),
    ):
        series = f'{metric}{{instance="localhost:9090"}}'
        yield AlertRule(
            name=name,
            expr=f"sum(increase({metric}[{window}])) > 0",
            hold=_FIVE,
            severity="critical",
            summary=what,
            description="Alerts are lost while this lasts.",
            page="alerts-do-not-arrive",
            dashboard=None,
            proof=Proof(bad=(Series(series, 0, 1),), good=(Series(series, 5),), is_rate=True),
        )
    for name, metric in (
        ("PrometheusConfigRefused", "prometheus_config_last_reload_successful"),
        ("AlertmanagerConfigRefused", "alertmanager_config_last_reload_successful"),
    ):
        series = f'{metric}{{instance="localhost:9090"}}'
        yield AlertRule(
            name=name,
            expr=f"min({metric}) == 0",
            hold=_FIVE,
            severity="warning",
            summary="a new configuration was refused; the old one is used",
            description="The rendered file and the running program do not fit.",
            page="config-refused",
            dashboard=None,
            proof=Proof(bad=(Series(series, 0),), good=(Series(series, 1),)),
        )
