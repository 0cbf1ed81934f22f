"""The specs that deploy/ starts from are told nothing that is not so; the same facts of another spec are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from synapse_ops.spec import load_spec
from synapse_ops.spec.effects import notes_on
from synapse_ops.spec.loading import check_text

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.mark.parametrize("name", ["kubernetes/infrastructure.yaml", "compose-infrastructure.yaml"])
def test_a_database_of_the_stack_is_not_said_to_be_elsewhere_or_out_of_reach(name: str) -> None:
    """Its nodes meet through Services or in the compose network, by whatever name and port of a host's firewall."""
    notes = notes_on(load_spec(DEPLOY / name).spec)

    assert notes
    assert not [note for note in notes if "database.host" in note or "database.nodes" in note]


@pytest.mark.parametrize(
    ("database", "told"),
    [
        ("{host: db.example.org}", 'database.host "db.example.org" is elsewhere'),
        ("{host: localhost, nodes: {db-primary: 10.0.0.7:5432, db-standby: 10.0.0.8:5432}}", "database.nodes cannot"),
        ("{host: db-primary, nodes: {db-standby: 10.0.0.8:5432}}", "database.nodes cannot connect"),
    ],
)
def test_servers_of_hosts_are_still_told_of(database: str, told: str) -> None:
    loaded, faults = check_text(f"name: shop\ndatabase: {database}\n", Path("spec.yaml"))
    assert loaded is not None, faults

    assert [note for note in notes_on(loaded.spec) if note.startswith(told)]
