"""The scanners of hardening: what each is asked, and how its report is read."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

from synapse_ops.systems.manifest_tools.scanner import Complaint, Scan, Scanner

_BEST_GRADE = 10  # of kube-score: less is a finding


def _checkov(_directory: Path, asked: tuple[PurePosixPath, ...]) -> list[str]:
    files = [argument for path in asked for argument in ("--file", str(path))]
    return [*files, "--framework", "dockerfile", "kubernetes", "--compact", "--skip-download", "--output", "json"]


def _checkov_report(report: Any, asked: tuple[PurePosixPath, ...]) -> Scan:
    by_name = {path.name: path for path in asked}
    judged, complaints = set[PurePosixPath](), list[Complaint]()
    for part in report if isinstance(report, list) else [report]:
        if part.get("summary", {}).get("parsing_errors"):
            complaints += [Complaint(path, "parsing", "a document of this scan cannot be parsed") for path in asked]
        results = part.get("results", {})
        for check in (*results.get("passed_checks", ()), *results.get("failed_checks", ())):
            judged.add(by_name[PurePosixPath(check["file_path"]).name])
        for check in results.get("failed_checks", ()):
            path = by_name[PurePosixPath(check["file_path"]).name]
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
    files = sorted(path.name for path in (directory / "kubernetes").glob("*.yaml"))  # they refer to one another
    return ["score", "--output-format", "json", *(f"kubernetes/{name}" for name in files)]


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


SCANNERS: tuple[Scanner, ...] = (
    Scanner(
        "checkov",
        "checkov",
        ("docker/Dockerfile", "kubernetes/10-*.yaml", "kubernetes/[34]*.yaml"),
        _checkov,
        _checkov_report,
        "sh requirements/manifest-tools",
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
        ("kubernetes/20-network.yaml", "kubernetes/3*.yaml", "kubernetes/4[12]-*.yaml"),
        _kube_score,
        _kube_score_report,
        "sh requirements/manifest-tools, where Go is present",
        version_arguments=("version",),
    ),
)
