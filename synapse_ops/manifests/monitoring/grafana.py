"""Renders Grafana: four dashboards and what provisions them.

uids, panel ids and places are fixed by order, so that links and a diff stay stable. The data source is a variable.
Dashboards are built with Grafana's own types, which are imported only here and only when something is rendered.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from synapse_ops.manifests.document import JSON, Document, yaml_document
from synapse_ops.manifests.monitoring.alert_rule import Dashboard, dashboard_uid
from synapse_ops.manifests.monitoring.alert_rules import READS as ALERT_READS
from synapse_ops.manifests.monitoring.alert_rules import all_alerts
from synapse_ops.manifests.monitoring.grafana_panels import DASHBOARDS, WINDOW, Panel, Section
from synapse_ops.manifests.monitoring.promql import range_of
from synapse_ops.manifests.stack import parts
from synapse_ops.spec import Spec

if TYPE_CHECKING:
    from grafana_foundation_sdk.builders.dashboard import Dashboard as Builder

READS = (ALERT_READS - {"alerting"}) | {"name"}
DATASOURCE = "${datasource}"
FOLDER = "Synapse"
IN_CONTAINER = "/var/lib/grafana/dashboards"
_WIDTH, _HEIGHT, _PER_ROW = 8, 8, 3
_TAG = "synapse-ops"


def render_grafana(spec: Spec) -> tuple[Document, ...]:
    return tuple(_dashboard(spec, name) for name in DASHBOARDS if name in spec.grafana.dashboards) + _provisioning()


def _provisioning() -> tuple[Document, ...]:
    source = {
        "name": "Prometheus",
        "uid": "synapse-ops-prometheus",
        "type": "prometheus",
        "access": "proxy",
        "url": f"http://prometheus:{parts.PROMETHEUS_PORT}",
        "isDefault": True,
        "editable": False,
        "jsonData": {"httpMethod": "POST", "manageAlerts": True, "alertmanagerUid": "synapse-ops-alertmanager"},
    }
    alertmanager = {
        "name": "Alertmanager",
        "uid": "synapse-ops-alertmanager",
        "type": "alertmanager",
        "access": "proxy",
        "url": f"http://alertmanager:{parts.ALERTMANAGER_PORT}",
        "editable": False,
        "jsonData": {"implementation": "prometheus"},
    }
    provider = {
        "name": "synapse-ops",
        "folder": FOLDER,
        "type": "file",
        "disableDeletion": True,
        "allowUiUpdates": False,
        "options": {"path": IN_CONTAINER},
    }
    return (
        yaml_document(
            "grafana/provisioning/datasources/synapse.yml",
            {"apiVersion": 1, "datasources": [source, alertmanager]},
            reads=frozenset(),
        ),
        yaml_document(
            "grafana/provisioning/dashboards/synapse.yml",
            {"apiVersion": 1, "providers": [provider]},
            reads=frozenset(),
        ),
    )


def _dashboard(spec: Spec, name: Dashboard) -> Document:
    from grafana_foundation_sdk.cog.encoder import JSONEncoder

    title, sections = DASHBOARDS[name]
    if spec.failover.standby is None:
        sections = tuple(Section(one.title, tuple(p for p in one.panels if not _is_of_standby(p))) for one in sections)
    builder = _head(spec, name, title)
    window = range_of(spec)
    for panel in _panels(sections, window):
        builder = builder.with_row(panel) if type(panel).__name__ == "Row" else builder.with_panel(panel)
    text: str = JSONEncoder(sort_keys=True, indent=2).encode(builder.build())
    return Document(PurePosixPath(f"grafana/dashboards/{name}.json"), f"{text}\n".encode(), JSON, READS)


def _is_of_standby(panel: Panel) -> bool:
    return all("synapse_ops_replication_" in expr for expr, _ in panel.queries)


def _head(spec: Spec, name: Dashboard, title: str) -> Builder:
    """Return the dashboard without panels: variables, links, and the alerts that lead here as annotations."""
    from grafana_foundation_sdk.builders import dashboard as build
    from grafana_foundation_sdk.models.dashboard import DashboardLinkType, DataSourceRef

    alerts = "|".join(alert.name for alert in all_alerts(spec) if alert.dashboard == name)
    firing = f'ALERTS{{alertstate="firing",alertname=~"{alerts}"}}'
    annotation = (
        build.AnnotationQuery()
        .name("Alerts")
        .datasource(DataSourceRef(type_val="prometheus", uid=DATASOURCE))
        .enable(True)
        .icon_color("red")
        .expr(firing)
    )
    others = (
        build.DashboardLink("Dashboards").type(DashboardLinkType.DASHBOARDS).tags([_TAG]).as_dropdown(True)
    ).keep_time(True)
    rules = build.DashboardLink("Alerts").type(DashboardLinkType.LINK).url("/alerting/list").icon("bell")
    return (
        build.Dashboard(f"{spec.name}: {title}")
        .uid(dashboard_uid(name))
        .tags([_TAG, name])
        .readonly()
        .refresh("30s")
        .time("now-6h", "now")
        .timezone("browser")
        .with_variable(build.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .annotation(annotation)
        .link(others)
        .link(rules)
    )


def _panels(sections: tuple[Section, ...], window: str) -> Iterator[Any]:
    """Yield rows and panels with ids counted through and places that do not overlap."""
    from grafana_foundation_sdk.builders import dashboard as build
    from grafana_foundation_sdk.models.dashboard import GridPos

    number, top = 1, 0
    for section in sections:
        yield build.Row(section.title).id(number).grid_pos(GridPos(h=1, w=_WIDTH * _PER_ROW, x=0, y=top))
        number, top = number + 1, top + 1
        for index, panel in enumerate(section.panels):
            row, column = divmod(index, _PER_ROW)
            place = GridPos(h=_HEIGHT, w=_WIDTH, x=column * _WIDTH, y=top + row * _HEIGHT)
            yield _panel(panel, window).id(number).grid_pos(place)
            number += 1
        top += -(-len(section.panels) // _PER_ROW) * _HEIGHT


def _panel(panel: Panel, window: str) -> Any:
    from grafana_foundation_sdk.builders import prometheus, stat, timeseries
    from grafana_foundation_sdk.models.dashboard import DataSourceRef

    source = DataSourceRef(type_val="prometheus", uid=DATASOURCE)
    built = (stat.Panel() if panel.kind == "stat" else timeseries.Panel()).title(panel.title).unit(panel.unit)
    built = built.description(panel.about).datasource(source)
    built = built.min(0)
    if panel.most is not None:
        built = built.max(panel.most)
    for index, (expr, legend) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expr.replace(WINDOW, window)).legend_format(legend)
        built = built.with_target(query.ref_id(chr(ord("A") + index)).datasource(source))
    return built
