"""The rendered files of Prometheus and Alertmanager as they can run here for seconds. What is changed, and no more is:

prometheus.yml: `scrape_interval`, `scrape_timeout` and `evaluation_interval` are at most 500 ms. The watched job's
targets are one stand-in, those of every other job another, those of `alertmanagers` the Alertmanager that runs here; a
relabelling that writes `__address__` writes the job's stand-in. `scheme`, `tls_config` and `authorization` of a job are
left out: stand-ins speak plain HTTP and ask for nothing.
rules/*.yml: `for` is at most 1 s, a group's `interval` at most 500 ms.
alertmanager.yml: `group_wait` and `group_interval` of every route are at most 500 ms. The `url` of every webhook is the
receiver's here, its `credentials_file` a file that holds that receiver's token.

Expressions, labels, relabelling, routes, inhibitions and receivers stay as they were rendered. Nothing leaves loopback.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from synapse_ops.spec.measures import OPERATORS
from synapse_ops.spec.units import format_duration, parse_duration

PROMETHEUS = PurePosixPath("prometheus/prometheus.yml")
RULES = "prometheus/rules/*.yml"
ALERTMANAGER = PurePosixPath("alertmanager/alertmanager.yml")
STEP = timedelta(milliseconds=500)
HOLD = timedelta(seconds=1)
_WATCHED = "api"
_GRAVITY = ("critical", "warning", "info")
_PLAIN_UP = re.compile(r"\s*up\s*(==|!=|<=|>=|<|>)\s*(\d+(?:\.\d+)?)\s*")

Document = dict[str, Any]


class ChainBroken(Exception):
    """The files do not do what they promise; the message says where the chain broke."""


@dataclass(frozen=True, slots=True)
class WatchedAlert:
    """The alert that must be told, and the job whose target goes away."""

    name: str
    job: str

    @property
    def labels(self) -> Mapping[str, str]:
        """What every call about it carries."""
        return {"alertname": self.name, "job": self.job}


@dataclass(frozen=True, slots=True)
class ChainFiles:
    """The parsed documents of a rendering, rules by path. Methods raise ChainBroken for a form that is not rendered."""

    prometheus: Document
    rules: Mapping[PurePosixPath, Document]
    alertmanager: Document

    @classmethod
    def read(cls, directory: Path) -> ChainFiles:
        rules = [PurePosixPath(path.relative_to(directory)) for path in sorted(directory.glob(RULES))]
        return cls(
            _parsed(directory, PROMETHEUS),
            {path: _parsed(directory, path) for path in rules},
            _parsed(directory, ALERTMANAGER),
        )

    def plan(self) -> WatchedAlert | str:
        """Return what is to be watched, or why nothing could be: see `plan_chain`."""
        with _of_known_form():
            return plan_chain(self.prometheus, tuple(self.rules.values()))

    def write_alertmanager(self, folder: Path, *, webhook_url: str, token: str) -> Path:
        """Write the file and the token for this host; return the file's path."""
        token_file = folder / "webhook-token"
        token_file.touch(mode=0o600)
        token_file.write_text(token, encoding="utf-8")
        with _of_known_form():
            document = staged_alertmanager(self.alertmanager, webhook_url=webhook_url, token_file=str(token_file))
        return _write(folder / ALERTMANAGER, document)

    def write_prometheus(self, folder: Path, job: str, *, watched: str, others: str, alertmanager: str) -> Path:
        """Write the file for this host, and the rules where it expects them; return the file's path."""
        with _of_known_form():
            for path, rules in self.rules.items():
                _write(folder / path, staged_rules(rules))
            document = staged_prometheus(
                self.prometheus, job, watched=watched, others=others, alertmanager=alertmanager
            )
        return _write(folder / PROMETHEUS, document)


def _parsed(directory: Path, path: PurePosixPath) -> Document:
    with _of_known_form():
        return dict(YAML(typ="safe", pure=True).load((directory / path).read_text(encoding="utf-8")))


def _write(path: Path, document: Document) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")  # JSON is YAML
    return path


@contextmanager
def _of_known_form() -> Iterator[None]:
    try:
        yield
    except (YAMLError, LookupError, TypeError, AttributeError, ValueError) as error:
        raise ChainBroken(f"a file is not of the form that is rendered: {type(error).__name__} {error}") from error


def plan_chain(prometheus: Document, rules: Sequence[Document]) -> WatchedAlert | str:
    """Return what is to be watched; the reason in words where these files promise nothing that could be.

    Of several alerts on a target that is gone it is the gravest: it silences the others. The job is the API's, or the
    first one where the API is not scraped.
    """
    gone = [rule for rule in _alerts(rules) if rule.get("labels", {}).get("measure") == "up" and not _is_of_life(rule)]
    told = [rule for rule in gone if rule["labels"].get("action") != "none"]
    jobs = [str(job["job_name"]) for job in prometheus["scrape_configs"] if job.get("static_configs")]
    if not gone:
        return "the spec has no alert on up == 0"
    if not told:
        return f"the spec tells nobody of {gone[0]['alert']} (alerting.actions)"
    if not jobs:
        return "the spec has no target that is scraped (prometheus.targets)"
    if not prometheus["alerting"]["alertmanagers"]:
        return "the spec has no Alertmanager that is told (prometheus.targets)"
    gravest = min(told, key=lambda rule: _gravity(str(rule["labels"].get("severity"))))
    return WatchedAlert(str(gravest["alert"]), _WATCHED if _WATCHED in jobs else jobs[0])


def _alerts(rules: Sequence[Document]) -> Iterator[Document]:
    for document in rules:
        for group in document["groups"]:
            yield from (rule for rule in group["rules"] if "alert" in rule)


def _gravity(severity: str) -> int:
    return _GRAVITY.index(severity) if severity in _GRAVITY else len(_GRAVITY)


def _is_of_life(rule: Document) -> bool:
    """Tell whether the alert holds while a target is there, and not when it is gone."""
    plain = _PLAIN_UP.fullmatch(str(rule["expr"]))
    if plain is None:
        return False
    holds, limit = OPERATORS[plain[1]], Decimal(plain[2])
    return holds(Decimal(1), limit) and not holds(Decimal(0), limit)


def staged_prometheus(document: Document, job: str, *, watched: str, others: str, alertmanager: str) -> Document:
    """Return prometheus.yml for this host. watched, others, alertmanager: host:port."""
    alerting = document["alerting"]
    return {
        **document,
        "global": _at_most(document["global"], STEP, "scrape_interval", "scrape_timeout", "evaluation_interval"),
        "alerting": alerting
        | {"alertmanagers": [_with_targets(found, alertmanager) for found in alerting["alertmanagers"]]},
        "scrape_configs": [
            _staged_job(found, watched if found["job_name"] == job else others) for found in document["scrape_configs"]
        ],
    }


def _staged_job(job: Document, target: str) -> Document:
    kept = {key: value for key, value in job.items() if key not in ("scheme", "tls_config", "authorization")}
    staged = _at_most(_with_targets(kept, target), STEP, "scrape_interval", "scrape_timeout")
    if "relabel_configs" in staged:
        staged["relabel_configs"] = [
            rule | {"replacement": target} if rule.get("target_label") == "__address__" else rule
            for rule in staged["relabel_configs"]
        ]
    return staged


def _with_targets(found: Document, target: str) -> Document:
    return found | {"static_configs": [group | {"targets": [target]} for group in found.get("static_configs", ())]}


def staged_rules(document: Document) -> Document:
    """Return a rule file for this host."""
    return document | {
        "groups": [
            _at_most(group, STEP, "interval") | {"rules": [_at_most(rule, HOLD, "for") for rule in group["rules"]]}
            for group in document["groups"]
        ]
    }


def staged_alertmanager(document: Document, *, webhook_url: str, token_file: str) -> Document:
    """Return alertmanager.yml for this host."""
    return document | {
        "route": _staged_route(document["route"]),
        "receivers": [_staged_receiver(found, webhook_url, token_file) for found in document["receivers"]],
    }


def _staged_route(route: Document) -> Document:
    staged = _at_most(route, STEP, "group_wait", "group_interval")
    return staged | ({"routes": [_staged_route(below) for below in route["routes"]]} if "routes" in route else {})


def _staged_receiver(receiver: Document, url: str, token_file: str) -> Document:
    def staged(webhook: Document) -> Document:
        settings = webhook.get("http_config", {})
        access = settings.get("authorization", {})
        if "credentials_file" not in access:
            return webhook | {"url": url}
        access = access | {"credentials_file": token_file}
        return webhook | {"url": url, "http_config": settings | {"authorization": access}}

    return receiver | {"webhook_configs": [staged(webhook) for webhook in receiver.get("webhook_configs", ())]}


def _at_most(document: Document, limit: timedelta, *keys: str) -> Document:
    """Return the document with these of its durations cut to the limit; one that is absent stays so."""
    return document | {
        key: format_duration(min(parse_duration(document[key]), limit)) for key in keys if key in document
    }
