"""What must hold of the rendered bytes of monitoring and logging: models, expressions, dashboards, references."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from synapse_ops.manifests.document import Document
from tests.manifests.consistency import prometheus_models
from tests.manifests.consistency.findings import load_yaml
from tests.manifests.consistency.logstash import pipeline_faults
from tests.manifests.consistency.metrics import METRICS
from tests.manifests.consistency.promql_tree import selectors

Fault = tuple[str, str]  # the document's path, what is wrong

_MODELS = {
    "prometheus/prometheus.yml": "PrometheusFile",
    "prometheus/prometheus.compose.yml": "PrometheusFile",
    "prometheus/prometheus.kubernetes.yml": "PrometheusFile",
    "prometheus/rules/recording.yml": "RuleFile",
    "prometheus/rules/alerts.yml": "RuleFile",
    "alertmanager/alertmanager.yml": "AlertmanagerFile",
    "alertmanager/alertmanager.compose.yml": "AlertmanagerFile",
    "alertmanager/alertmanager.kubernetes.yml": "AlertmanagerFile",
}


def monitoring_faults(documents: tuple[Document, ...]) -> Iterator[Fault]:
    """Yield every fault of the monitoring and logging documents among these, in the order of their paths."""
    texts = {str(document.path): document.text for document in documents}
    for path, text in sorted(texts.items()):
        if path in _MODELS:
            yield from ((path, fault) for fault in _model_faults(_MODELS[path], text))
        if path.endswith("logstash.conf"):
            yield from ((path, fault) for fault in pipeline_faults(text))
    for path, expr in expressions(texts):
        yield from ((path, fault) for fault in _expression_faults(expr))
    for path, text in sorted(texts.items()):
        if path.startswith("grafana/dashboards/"):
            yield from ((path, fault) for fault in _dashboard_faults(json.loads(text)))
    yield from _reference_faults(texts)


def expressions(texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (path, PromQL) of every rule, panel and annotation. The range of rates is written out in all of them."""
    for path, text in sorted(texts.items()):
        if path.startswith("prometheus/rules/"):
            for group in _yaml(text)["groups"]:
                yield from ((path, rule["expr"]) for rule in group["rules"])
        elif path.startswith("grafana/dashboards/"):
            found = json.loads(text)
            for panel in found["panels"]:
                yield from ((path, target["expr"]) for target in panel.get("targets", ()))
            yield from ((path, entry["expr"]) for entry in found["annotations"]["list"])


def _model_faults(name: str, text: str) -> Iterator[str]:
    try:
        getattr(prometheus_models, name).model_validate(_yaml(text))
    except ValidationError as problem:
        for error in problem.errors(include_url=False, include_input=False):
            yield f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


def _expression_faults(expr: str) -> Iterator[str]:
    try:
        found = selectors(expr)
    except ValueError as fault:
        yield str(fault)
        return
    for metric, _ in found:
        if metric not in METRICS:
            yield f"nobody serves {metric or 'a vector without a name'}: {expr.strip()}"


def _dashboard_faults(dashboard: dict[str, Any]) -> Iterator[str]:
    seen: set[int] = set()
    taken: dict[tuple[int, int], int] = {}
    for panel in dashboard["panels"]:
        number, place = panel["id"], panel["gridPos"]
        if number in seen:
            yield f"panel id {number} twice"
        seen.add(number)
        cells = [
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        if any(cell in taken for cell in cells):
            yield f"panel {number} lies over another"
        taken.update(dict.fromkeys(cells, number))
        if panel["type"] == "row":
            continue
        if not panel["fieldConfig"]["defaults"].get("unit"):
            yield f"panel {number} has no unit"
        names = [target["refId"] for target in panel["targets"]]
        if len(names) != len(set(names)):
            yield f"panel {number} has a refId twice"
        if any(target["datasource"]["uid"] != "${datasource}" for target in panel["targets"]):
            yield f"panel {number} names a data source of its own"


def _reference_faults(texts: Mapping[str, str]) -> Iterator[Fault]:
    """Yield references between documents that lead nowhere: routes to receivers, alerts to dashboards, twice a name."""
    for path in (path for path, model in _MODELS.items() if model == "AlertmanagerFile"):
        if path in texts:
            found = _yaml(texts[path])
            receivers = {receiver["name"] for receiver in found["receivers"]}
            for route in [found["route"], *found["route"].get("routes", ())]:
                if route["receiver"] not in receivers:
                    yield path, f"a route to {route['receiver']}, which is no receiver"
    path = "prometheus/rules/alerts.yml"
    if path not in texts:
        return
    uids = {json.loads(text)["uid"] for name, text in texts.items() if name.startswith("grafana/dashboards/")}
    alerts = [rule for group in _yaml(texts[path])["groups"] for rule in group["rules"]]
    names = [rule["alert"] for rule in alerts]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield path, f"the alert {name} twice"
    for rule in alerts:
        link = rule["annotations"].get("dashboard_url", "")
        uid = re.sub(r".*/d/", "", link)
        if link and uid not in uids:
            yield path, f"{rule['alert']} leads to the dashboard {uid}, which is not rendered"


def _yaml(text: str) -> Any:
    [found] = load_yaml(text)
    return found
