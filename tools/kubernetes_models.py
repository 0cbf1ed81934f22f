"""Validate one Kubernetes document against the strict models of the official client. A script for another Python:

the models came with version 37 of the client, and beside Dagster only an older one can be installed.
Status 0: every object holds. 1: one does not. 3: nothing in it is a built-in kind, so that nothing was judged.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import yaml

UNJUDGED_STATUS = 3


def main() -> int:
    """Judge the file that the first argument names."""
    models = importlib.import_module("kubernetes.client")
    judged, status = 0, 0
    for number, found in enumerate(yaml.safe_load_all(Path(sys.argv[1]).read_text(encoding="utf-8"))):
        group, _, version = found["apiVersion"].rpartition("/")
        if "." in group and (not group.endswith(".k8s.io") or group.startswith("gateway.")):
            continue  # a custom resource: its schema is in the cluster, not in the client
        judged += 1
        name = f"V{version[1:]}{found['kind']}"
        model = getattr(models, name, None)
        try:
            if model is None:
                raise ValueError(f"the client has no {name}")  # noqa: TRY301 - told as the model's own errors are
            model.model_validate(found)
        except ValueError as error:
            words = " ".join(str(error).split())
            print(f"object {number}, {found['kind']} {found.get('metadata', {}).get('name')}: {words[:500]}")
            status = 1
    if not judged:
        print("it holds only custom resources, which the client has no models of")
    return status if judged else UNJUDGED_STATUS


if __name__ == "__main__":
    sys.exit(main())
