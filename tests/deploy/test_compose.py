"""deploy/compose.yaml fits to the rendered project that it is part of, to dagster.yaml and to the image."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from synapse_ops import __version__
from synapse_ops.manifests.bundle import render_bundle
from synapse_ops.services.dagster.home import dagster_environment, prepare_home
from synapse_ops.spec import Spec, load_spec

ROOT = Path(__file__).parents[2]
OURS = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
SPEC_FILE = ROOT / "deploy" / "compose-infrastructure.yaml"
SPEC = load_spec(SPEC_FILE).spec


def project_of(spec: Spec) -> dict[str, Any]:
    """Return the rendered compose project."""
    found: dict[str, Any] = yaml.safe_load(render_bundle(spec).by_path["docker/compose.yaml"].text)
    return found


RENDERED = project_of(SPEC)


def test_all_that_is_named_and_not_defined_is_rendered() -> None:
    """Networks, the prober and its volume, secrets: in a project of both files each name leads to something."""
    named: dict[str, set[str]] = {"networks": set(), "secrets": set(), "volumes": set(), "services": set()}
    for service in OURS["services"].values():
        named["networks"] |= set(service["networks"])
        named["secrets"] |= set(service["secrets"])
        named["volumes"] |= {each["source"] for each in service["volumes"] if each["type"] == "volume"}
        named["services"] |= set(service.get("depends_on", ()))

    for kind, names in named.items():
        assert names <= set(OURS.get(kind, ())) | set(RENDERED[kind]), kind
        assert not set(OURS.get(kind, ())) & set(RENDERED[kind]), kind


def test_what_runs_in_the_container_is_what_the_prober_s_container_is() -> None:
    """One image, one user, one volume at one place: the prober's history is read where it is written."""
    dagster, prober = OURS["services"]["dagster"], RENDERED["services"]["synapse-ops"]

    def mounted(service: dict[str, Any]) -> dict[str, str]:
        return {each["target"]: each["source"] for each in service["volumes"] if each["type"] == "volume"}

    same = ("image", "user", "init", "read_only", "cap_drop", "security_opt", "restart", "tmpfs", "group_add")
    assert {key: dagster[key] for key in same} == {key: prober[key] for key in same}
    assert dagster["image"] == f"synapse-ops:{__version__}"
    assert mounted(dagster) == mounted(prober) == {"/var/lib/synapse-ops": "synapse-ops-state"}
    assert set(prober["secrets"]) <= set(dagster["secrets"])
    postgres, rendered = OURS["services"]["dagster-postgres"], RENDERED["services"]["db-primary"]
    assert {key: postgres[key] for key in same} == {key: rendered[key] for key in same}


def test_the_environment_is_all_that_dagster_yaml_asks_for(tmp_path: Path) -> None:
    """The password comes from the file of a secret: `docker inspect` shows the environment."""
    given = dict(OURS["services"]["dagster"]["environment"])
    assert not [name for name in given if name.endswith("PASSWORD")]
    secret = tmp_path / "dagster-password"
    secret.write_text("of the file\n")
    home = prepare_home(tmp_path / "state", SPEC_FILE)

    made = dagster_environment(home, code_port=1, environ=given | {"DAGSTER_PG_PASSWORD_FILE": str(secret)})

    asked = re.findall(r"\{env: (\w+)\}", (ROOT / "dagster.yaml").read_text(encoding="utf-8"))
    assert set(asked) <= set(made)
    assert made["DAGSTER_PG_PASSWORD"] == "of the file"


def test_the_ui_is_published_for_this_machine_alone_on_a_port_that_is_free_there() -> None:
    published = [port for each in RENDERED["services"].values() for port in each.get("ports", ())]
    dagster = OURS["services"]["dagster"]
    [port] = dagster["ports"]
    address, outer, inner = port.split(":")

    assert (address, outer) == ("127.0.0.1", inner)  # the guard knows its own port's names alone
    assert dagster["command"] == ["ui", "--port", inner]
    assert outer not in {each.split(":")[-2] for each in published}


@pytest.mark.parametrize("store", ["database", "redis", "qdrant"])
def test_a_store_at_the_name_of_its_own_service_is_the_project_s(store: str) -> None:
    """One spec serves Dagster in the project and the renderer: the same stores as where `host` is localhost."""
    local = load_spec(ROOT / "examples" / "synapse" / "infrastructure.yaml").spec
    named = local.model_copy(update={store: getattr(SPEC, store)})

    assert set(project_of(named)["services"]) == set(project_of(local)["services"])
