"""The scanners of hardening: what each is asked, and how its report is read."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from tools.scanner import Complaint, Scan, Scanner

_KUBERNETES = ("kubernetes/*.yaml",)
_BEST_GRADE = 10  # of kube-score: less is a finding


def _checkov(directory: Path, asked: tuple[PurePosixPath, ...]) -> list[str]:
    paths = dict.fromkeys([*map(str, asked), *_kubernetes_files(directory)])  # it looks for each pod's NetworkPolicy
    files = [argument for path in paths for argument in ("--file", path)]
    return [*files, "--framework", "dockerfile", "kubernetes", "--compact", "--skip-download", "--output", "json"]


def _checkov_report(report: Any, asked: tuple[PurePosixPath, ...]) -> Scan:
    by_name = {path.name: path for path in asked}
    judged, complaints = set[PurePosixPath](), list[Complaint]()
    for part in report if isinstance(report, list) else [report]:
        if part.get("summary", {}).get("parsing_errors"):
            complaints += [Complaint(path, "parsing", "a document of this scan cannot be parsed") for path in asked]
        results = part.get("results", {})
        for outcome in ("passed_checks", "failed_checks"):
            for check in results.get(outcome, ()):
                path = by_name.get(PurePosixPath(check["file_path"]).name)
                if path is None:
                    continue
                judged.add(path)
                if outcome == "passed_checks":
                    continue
                complaints.append(Complaint(path, check["check_id"], f"{check['check_name']}: {check['resource']}"))
    return Scan(frozenset(judged), tuple(complaints))


def _trivy(directory: Path, asked: tuple[PurePosixPath, ...]) -> list[str]:
    cache = directory.parent / "trivy"
    return ["config", "--quiet", "--skip-check-update", "--cache-dir", str(cache), "--format", "json", str(asked[0])]


def _trivy_report(report: Any, asked: tuple[PurePosixPath, ...]) -> Scan:
    results, judged, complaints = report.get("Results") or [], False, list[Complaint]()
    for result in results:
        summary = result.get("MisconfSummary") or {}
        judged |= bool(summary.get("Successes", 0) + summary.get("Failures", 0))
        for found in result.get("Misconfigurations") or []:
            complaints.append(Complaint(asked[0], found["ID"], found.get("Message") or found["Title"]))
    return Scan(frozenset(asked if judged else ()), tuple(complaints))


def _kube_score(directory: Path, _asked: tuple[PurePosixPath, ...]) -> list[str]:
    return ["score", "--output-format", "json", *_kubernetes_files(directory)]


def _kube_score_report(report: Any, asked: tuple[PurePosixPath, ...]) -> Scan:
    by_name = {path.name: path for path in asked}
    judged, complaints = set[PurePosixPath](), list[Complaint]()
    for thing in report:
        path = by_name.get(PurePosixPath(thing["file_name"]).name)
        if path is None:
            continue
        for check in thing["checks"] or []:
            if check["skipped"]:
                continue
            judged.add(path)
            if check["grade"] < _BEST_GRADE:
                words = "; ".join(comment["summary"] for comment in check["comments"] or [])
                complaints.append(Complaint(path, check["check"]["id"], f"{words}: {thing['object_name']}"))
    return Scan(frozenset(judged), tuple(complaints))


def _kubernetes_files(directory: Path) -> list[str]:
    """Return all of them: they refer to one another."""
    return sorted(f"kubernetes/{path.name}" for path in (directory / "kubernetes").glob("*.yaml"))


SCANNERS: tuple[Scanner, ...] = (
    Scanner(
        "checkov",
        "checkov",
        ("docker/Dockerfile", "kubernetes/10-*.yaml", "kubernetes/[34]*.yaml"),
        _checkov,
        _checkov_report,
        "sh requirements/manifest-tools",
        opens=_KUBERNETES,
    ),
    Scanner(
        "trivy",
        "trivy",
        ("docker/Dockerfile", "kubernetes/*.yaml"),
        _trivy,
        _trivy_report,
        "sh requirements/manifest-tools",
        one_by_one=True,
    ),
    Scanner(
        "kube-score",
        "kube-score",
        ("kubernetes/20-network.yaml", "kubernetes/3*.yaml", "kubernetes/4*.yaml"),
        _kube_score,
        _kube_score_report,
        "sh requirements/manifest-tools, where Go is present",
        version_arguments=("version",),
        opens=_KUBERNETES,
    ),
)
