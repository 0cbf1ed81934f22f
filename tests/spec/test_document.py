"""The document as a whole: defaults, descriptions, JSON Schema, digests, and that showing and loading are inverses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck as Checks
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from ruamel.yaml import YAML

from synapse_ops.spec import Spec, default_spec
from synapse_ops.spec.allowed import allowed_in_words, json_schema, resolved
from synapse_ops.spec.blocks.deployment import ResourceLimits, Resources
from synapse_ops.spec.blocks.monitoring import Alert, Alerting, HealthCheck
from synapse_ops.spec.condition import Condition
from synapse_ops.spec.cron import parse_cron
from synapse_ops.spec.loaded import LoadedSpec, digests_of
from synapse_ops.spec.loading import check_text
from synapse_ops.spec.secrets import holds_literal_secret
from synapse_ops.spec.showing import format_spec
from synapse_ops.spec.units import format_duration

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "synapse" / "infrastructure.yaml"
REFERENCE_BLOCKS = Path(__file__).with_name("reference_blocks.yaml")
FILE = Path("f")


def _fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for key, field in schema.get("properties", {}).items():
        below = resolved(field)
        yield f"{path}.{key}".lstrip("."), below
        yield from _fields(resolved(below["items"]) if "items" in below else below, f"{path}.{key}")


def _load(text: str) -> LoadedSpec:
    loaded, faults = check_text(text, FILE)
    assert loaded is not None, [fault.render(FILE) for fault in faults]
    return loaded


def test_every_block_and_field_has_a_description() -> None:
    """What an editor shows and the configuration page prints is never empty, and ends like a sentence."""
    described = {name: field.get("description", "") for name, field in _fields(resolved(json_schema()))}

    assert len(described) > 140
    assert [name for name, text in described.items() if not text or text[-1] not in ".:)"] == []


def test_every_field_says_what_it_allows() -> None:
    """No field's form is just "text"."""
    vague = [name for name, field in _fields(resolved(json_schema())) if allowed_in_words(field) == "text"]

    assert vague == []


def test_the_schema_accepts_the_example_and_each_block_of_the_reference() -> None:
    """Editors do not mark valid files. The schema itself is valid."""
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    yaml = YAML(typ="safe", pure=True)

    for document in [yaml.load(EXAMPLE), *yaml.load_all(REFERENCE_BLOCKS)]:
        assert list(validator.iter_errors(document)) == []


@pytest.mark.parametrize("document", [{"srever": {}}, {"server": {"port": 0}}, {"tls": {"min_version": "SSLv3"}}, {}])
def test_the_schema_refuses_what_the_loader_refuses(document: dict[str, Any]) -> None:
    """Unknown keys, ranges, choices and an empty file are marked while typing."""
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(document)


def test_the_defaults_in_the_schema_are_the_defaults_of_the_models() -> None:
    """Written as a spec writes them, so that a default copied from an editor's hint is valid."""
    schema = json_schema()
    written = {key: field["default"] for key, field in resolved(schema)["properties"].items()}

    assert _load(json.dumps(written)).spec == default_spec()
    assert resolved(schema["properties"]["server"])["properties"]["timeout"]["default"] == "1m"


def test_the_example_is_complete_and_holds_the_defaults() -> None:
    """Every field of every block stands in the example with its default, beside its comment."""
    loaded, _ = check_text(EXAMPLE.read_text(encoding="utf-8"), EXAMPLE)
    assert loaded is not None
    in_example = {name.replace("[0]", "") for name in loaded.origins}
    flat = {f"backup.{key}" for key in ("schedule", "destination", "retention", "compression", "method")}

    off = ("backup.redis.", "alerting.mail.", "alerting.slack.", "alerting.pagerduty.")
    unset = ("vectors.sources.", *off)  # below a list that is empty, and blocks that are off

    known = {name for name, _ in _fields(resolved(json_schema()))} - flat
    assert {name for name in known - in_example if not name.startswith(unset)} == set()
    assert loaded.spec == default_spec()


def test_a_change_of_one_block_changes_its_digest_only() -> None:
    """Block digests are Dagster's data versions: a change of `tls` makes only what reads `tls` stale."""
    before = _load("name: synapse")
    after = _load("tls: {min_version: TLSv1.3}")

    changed = {block for block in before.block_digests if before.block_digests[block] != after.block_digests[block]}
    assert changed == {"tls"}
    assert before.digest != after.digest


def test_a_digest_is_of_the_meaning_not_of_the_spelling() -> None:
    """Comments, order, units and defaults that are written out change nothing."""
    one = _load("# a\nserver: {timeout: 60, port: 8000}\nname: synapse")
    other = _load("name: synapse\nserver:\n  port: 8000\n  timeout: 1m # same\n")

    assert one.digest == other.digest == digests_of(default_spec())[0]


def test_the_default_spec_shown_is_a_spec_with_the_same_digest() -> None:
    """`spec show` prints what can be checked and used again."""
    loaded = _load("name: synapse")

    assert _load(format_spec(loaded)).digest == loaded.digest


_durations = st.integers(1, 10**9).map(lambda milliseconds: timedelta(milliseconds=milliseconds))
_names = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,10}", fullmatch=True) | st.sampled_from(["null", "true", "No", "y"])
_words = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=15)
_databases = st.lists(_words, min_size=1, max_size=3, unique=True)
_actions = st.dictionaries(_names, st.sampled_from(["notify", "none"]), max_size=3)
_alerts = st.builds(
    Alert,
    name=_names,
    condition=st.builds(
        Condition, st.just("cpu"), st.sampled_from("<>"), st.integers(1, 99).map(Decimal), st.just("%")
    ),
    duration=_durations,
    severity=st.sampled_from(["info", "warning", "critical"]),
)
_health = st.builds(
    HealthCheck, name=_names, url=st.sampled_from(["/", "/a?b=c:d", "http://[::1]:80/x?y"]), interval=_durations
).map(lambda check: check.model_copy(update={"timeout": check.interval}))


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Build valid specs with values that YAML could misread: words of any script, null as a name, odd durations."""
    base = default_spec()
    pods = st.none() | st.just(base.autoscaling)
    cron = st.tuples(st.integers(0, 59), st.integers(0, 23)).map(lambda at: parse_cron(f"{at[0]} {at[1]} * * *"))
    return base.model_copy(
        update={
            "name": draw(st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)),
            "worker": base.worker.model_copy(update={"timeout": draw(_durations)}),
            "database": base.database.model_copy(update={"databases": tuple(draw(_databases))}),
            "autoscaling": draw(pods),
            "proof": base.proof.model_copy(update={"schedule": draw(cron)}),
            "failover": base.failover.model_copy(update={"max_lag_bytes": draw(st.integers(0, 1 << 60))}),
            "resources": Resources(limits=ResourceLimits(cpu=Decimal(draw(st.integers(500, 10**6))) / 1000)),
            "alerts": tuple(draw(st.lists(_alerts, max_size=3, unique_by=lambda alert: alert.name))),
            "health": tuple(draw(st.lists(_health, max_size=3, unique_by=lambda check: check.name))),
            "alerting": Alerting(actions=draw(_actions)),
        }
    )


@given(specs())
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[Checks.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking loads hundreds of documents
)
def test_every_spec_shown_and_loaded_is_the_same(spec: Spec) -> None:
    """load(show(spec)) == spec, through YAML and through JSON."""
    assume(not any(holds_literal_secret(name) for name in spec.database.databases))
    digest, blocks = digests_of(spec)
    shown = LoadedSpec(spec=spec, path=FILE, digest=digest, block_digests=blocks, origins={}, ignored={})

    assert _load(format_spec(shown)).spec == spec
    assert _load(json.dumps(spec.model_dump(mode="json"))).spec == spec


def test_durations_of_the_dump_are_as_an_operator_writes_them() -> None:
    """A dump holds `1m`, not seconds or ISO 8601."""
    assert default_spec().model_dump(mode="json")["server"]["timeout"] == format_duration(timedelta(minutes=1)) == "1m"


def test_loading_imports_no_client() -> None:
    """`spec check` does not pay for Dagster, boto3 or a database driver; benchmarks/render.py measures its time."""
    script = (
        "import sys\n"
        f"from pathlib import Path; from synapse_ops.spec import load_spec; load_spec(Path({str(EXAMPLE)!r}))\n"
        "heavy = {'dagster', 'boto3', 'botocore', 'psycopg', 'redis', 'httpx', 'pyrage', 'rich'} & set(sys.modules)\n"
        "print(*heavy)"
    )

    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()

    assert output == []


def test_the_configuration_page_is_up_to_date() -> None:
    """docs/configuration.md says what the models say."""
    result = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"], capture_output=True, text=True, check=False
    )

    assert "configuration.md" not in result.stderr
