"""Rules on the nodes of PostgreSQL: `failover` names one or two, `database.nodes` says where they are."""

from __future__ import annotations

from collections.abc import Iterator

from synapse_ops.spec.conflict import Conflict
from synapse_ops.spec.document import Spec
from synapse_ops.spec.faults import FieldPath


def nodes(spec: Spec) -> Iterator[Conflict]:
    """`failover.standby` equal to `failover.primary`; a node in `database.nodes` that `failover` does not name (there
    is one standby at most, and it follows the primary), or with the address of the other; a `failover.stonith_command`
    without an absolute path.
    """
    primary: FieldPath = ("failover", "primary")
    if spec.failover.standby == spec.failover.primary:
        found = f'"{spec.failover.standby}", which is failover.primary too'
        yield Conflict(("failover", "standby"), found, "another node than failover.primary", (primary,))
    seen: dict[str, FieldPath] = {}
    for node, address in spec.database.nodes.items():
        path: FieldPath = ("database", "nodes", node)
        if node not in spec.failover.nodes:
            names = " or ".join(f'"{name}"' for name in spec.failover.nodes)
            allowed = f"a node of `failover`, {names}: there is one standby at most, and it follows the primary"
            yield Conflict(path, f'a node "{node}" at {address}', allowed, (primary, ("failover", "standby")))
        if address in seen:
            yield Conflict(path, f"{address}, which is {{other}} too", "another address", (seen[address],))
        seen.setdefault(address, path)
    command = spec.failover.stonith_command
    if command is not None and not command[0].startswith("/"):
        found = f'"{command[0]}" as the program'
        yield Conflict(("failover", "stonith_command", 0), found, "an absolute path: PATH may differ in an outage")


def no_standby(spec: Spec) -> Iterator[Conflict]:
    """What waits for a standby where `failover.standby` is null: `failover.synchronous`, and `alerts` on replication
    lag, which would never fire.
    """
    standby: FieldPath = ("failover", "standby")
    if spec.failover.standby is not None:
        return
    if spec.failover.synchronous != "off" and spec.failover.manager != "external":
        found = f"{spec.failover.synchronous}, and {{other}} is null"
        yield Conflict(("failover", "synchronous"), found, "off", (standby,))
    for index, alert in enumerate(spec.alerts):
        if alert.condition.measure in ("replication_lag", "replication_lag_bytes"):
            found = f'"{alert.condition}", and {{other}} is null'
            yield Conflict(("alerts", index, "condition"), found, "a condition on another measure", (standby,))


def other_manager(spec: Spec) -> Iterator[Conflict]:
    """Commits that wait, beside `failover.manager: external`: it sets `synchronous_standby_names` in a file of its own,
    which `ALTER SYSTEM` would override, and it would not empty ours before it promotes.
    """
    if spec.failover.manager != "external":
        return
    manager: FieldPath = ("failover", "manager")
    if spec.failover.synchronous != "off":
        found = f"{spec.failover.synchronous}, and {{other}} is external"
        yield Conflict(("failover", "synchronous"), found, "off; the other manager decides", (manager,))
    if spec.backup.database.wal.synchronous:
        path: FieldPath = ("backup", "database", "wal", "synchronous")
        yield Conflict(path, "true, and {other} is external", "false; the other manager decides", (manager,))


def fencing_password(spec: Spec) -> Iterator[Conflict]:
    """A password in `failover.stonith_command`: it would appear in the spec, in rendered files and in every list of
    processes.
    """
    words = spec.failover.stonith_command or ()
    for index, word in enumerate(words):
        option, _, value = word.partition("=")
        is_asked = option in ("-p", "--password", "--passwd")
        if is_asked and (value or index + 1 < len(words)):
            path: FieldPath = ("failover", "stonith_command", index if value else index + 1)
            yield Conflict(path, "a password (not shown)", "a program that reads it from a file, as --password-script")
