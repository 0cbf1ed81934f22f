"""The link in the metadata of a check, a failure and a job: the UI serves the pages itself."""

import dagster as dg

from synapse_ops.defs.event_metadata import Metadata
from synapse_ops.domain.runbooks import CHECK_PAGES, UI_PATH

RUNBOOK = "runbook"


def runbook_of_check(name: str) -> Metadata:
    """Return the link of a check, as metadata of its definition and of each evaluation."""
    return runbook(CHECK_PAGES[name])


def runbook(page: str) -> Metadata:
    """Return the link to a page of docs/runbooks."""
    return {RUNBOOK: dg.MetadataValue.url(f"{UI_PATH}{page}")}
