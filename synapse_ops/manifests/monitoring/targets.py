"""What is rendered for monitoring and logging: one row a target, as targets.py takes it."""

from __future__ import annotations

from collections.abc import Callable

from synapse_ops.manifests.document import Document
from synapse_ops.manifests.logs import hosts as logging_hosts
from synapse_ops.manifests.logs import pipeline as logging_pipeline
from synapse_ops.manifests.monitoring import alert_rules, alertmanager, grafana, prometheus
from synapse_ops.spec import Spec

Row = tuple[str, Callable[[Spec], tuple[Document, ...]], frozenset[str], str, str]

MONITORING: tuple[Row, ...] = (
    (
        "prometheus_config",
        prometheus.render_prometheus,
        prometheus.READS,
        prometheus.__name__,
        "What Prometheus scrapes, and what the blackbox exporter asks for it.",
    ),
    (
        "alert_rules",
        alert_rules.render_alert_rules,
        alert_rules.READS,
        alert_rules.__name__,
        "Recorded series, alerts from the spec's conditions and our own, and the tests that prove each.",
    ),
    (
        "alertmanager_config",
        alertmanager.render_alertmanager,
        alertmanager.READS,
        alertmanager.__name__,
        "Who is told of which alert, how soon, and what a worse one silences.",
    ),
    (
        "grafana_dashboards",
        grafana.render_grafana,
        grafana.READS,
        grafana.__name__,
        "System, application, database and cache, and what provisions them.",
    ),
    (
        "logstash_pipeline",
        logging_pipeline.render_logstash,
        logging_pipeline.PIPELINE_READS,
        logging_pipeline.__name__,
        "From Filebeat's lines to fields in Elasticsearch.",
    ),
    (
        "filebeat_config",
        logging_pipeline.render_filebeat,
        logging_pipeline.FILEBEAT_READS,
        logging_pipeline.__name__,
        "Which log files are read, and where they go.",
    ),
    (
        "index_template",
        logging_pipeline.render_index_template,
        logging_pipeline.TEMPLATE_READS,
        logging_pipeline.__name__,
        "Types of the fields, and when an index of log lines is deleted.",
    ),
    (
        "logrotate_rules",
        logging_hosts.render_host_logs,
        logging_hosts.READS,
        logging_hosts.__name__,
        "Rotation of log files on hosts without the log chain.",
    ),
)
