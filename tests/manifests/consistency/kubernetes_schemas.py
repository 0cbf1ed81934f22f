"""Each Kubernetes object is what the API servers of three versions take, unknown fields refused.

The schemas are Kubernetes' own, from `kubernetes-validate`; a kind without one is a fault, never a pass. Gateway and
HTTPRoute are custom resources and have none there: strict models of the part that we render stand for them (source:
gateway-api.sigs.k8s.io, v1).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from tests.manifests.consistency.findings import Finding, View, name_of

if TYPE_CHECKING:
    import jsonschema_rs

MINORS = ("1.33", "1.35", "1.37")  # the oldest still supported upstream, one between, the newest known here
_RULE = "kubernetes_objects_hold"


def kubernetes_objects_hold(view: View) -> Iterator[Finding]:
    """Every Kubernetes object fits the schemas of three versions; an unknown kind or version of one does not."""
    for path, found in view.objects:
        for fault in object_faults(found):
            yield Finding(_RULE, path, f"{name_of(found)}: {fault}")


def object_faults(found: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the versions refuse of one object, each complaint once with the versions that make it."""
    kind, api_version = str(found.get("kind")), str(found.get("apiVersion"))
    if model := _CUSTOM.get((kind, api_version)):
        yield from _model_faults(model, found)
        return
    complaints: dict[str, list[str]] = {}
    for minor in MINORS:
        validator = _validator(minor, kind, api_version)
        if validator is None:
            complaints.setdefault(f"{kind} of {api_version} is not known", []).append(minor)
            continue
        for error in validator.iter_errors(found):
            complaints.setdefault(f"{'.'.join(map(str, error.instance_path))}: {error.message}", []).append(minor)
    for complaint, minors in complaints.items():
        yield f"{complaint} (Kubernetes {', '.join(minors)})"


@cache
def _definitions(minor: str) -> tuple[str, jsonschema_rs.Registry]:
    """Return the folder of a version's strict schemas, and a registry with what they share."""
    from jsonschema_rs import Draft202012, Registry
    from kubernetes_validate.utils import all_versions, major_minor, schema_contents

    [*_, version] = (known for known in all_versions() if major_minor(known) == minor)
    folder = f"kubernetes-json-schema/v{version}-local-strict"
    shared = schema_contents(f"{folder}/_definitions.json", minor)
    return folder, Registry([(shared["$id"], shared)], draft=Draft202012)


@cache
def _validator(minor: str, kind: str, api_version: str) -> jsonschema_rs.Draft202012Validator | None:
    """Return the validator of one kind, None where the version does not know it."""
    from jsonschema_rs import Draft202012Validator
    from kubernetes_validate.utils import schema_contents

    folder, registry = _definitions(minor)
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    try:
        schema = schema_contents(f"{folder}/{kind.lower()}-{group}.json", minor)
    except FileNotFoundError:
        return None
    return Draft202012Validator(schema, registry=registry)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, alias_generator=to_camel)


_Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
_Hostname = Annotated[str, Field(pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")]
_Port = Annotated[int, Field(ge=1, le=65535)]
_Duration = Annotated[str, Field(pattern=r"^([0-9]{1,5}(h|m|s|ms)){1,4}$")]


class _Metadata(_Strict):
    name: _Name
    namespace: _Name
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class _CertificateRef(_Strict):
    kind: Literal["Secret"]
    name: str = Field(min_length=1, max_length=253)


class _ListenerTls(_Strict):
    mode: Literal["Terminate"]
    certificate_refs: list[_CertificateRef] = Field(min_length=1, max_length=64)


class _RouteNamespaces(_Strict):
    from_: Literal["Same"] = Field(alias="from")


class _AllowedRoutes(_Strict):
    namespaces: _RouteNamespaces


class _Listener(_Strict):
    name: _Name
    protocol: Literal["HTTPS"]
    port: _Port
    tls: _ListenerTls
    hostname: _Hostname | None = None
    allowed_routes: _AllowedRoutes


class _GatewaySpec(_Strict):
    gateway_class_name: str = Field(min_length=1, max_length=253)
    listeners: list[_Listener] = Field(min_length=1, max_length=64)


class _Gateway(_Strict):
    api_version: Literal["gateway.networking.k8s.io/v1"]
    kind: Literal["Gateway"]
    metadata: _Metadata
    spec: _GatewaySpec


class _ParentRef(_Strict):
    name: _Name


class _PathMatch(_Strict):
    type: Literal["PathPrefix"]
    value: str = Field(pattern="^/")


class _Match(_Strict):
    path: _PathMatch


class _BackendRef(_Strict):
    name: _Name
    port: _Port


class _Timeouts(_Strict):
    request: _Duration


class _NewPath(_Strict):
    type: Literal["ReplaceFullPath"]
    replace_full_path: str = Field(pattern="^/", max_length=1024)


class _Rewrite(_Strict):
    path: _NewPath


class _Filter(_Strict):
    type: Literal["URLRewrite"]
    url_rewrite: _Rewrite


class _RouteRule(_Strict):
    matches: list[_Match] = Field(min_length=1)
    filters: list[_Filter] = Field([], max_length=16)
    backend_refs: list[_BackendRef] = Field(min_length=1)
    timeouts: _Timeouts


class _RouteSpec(_Strict):
    parent_refs: list[_ParentRef] = Field(min_length=1)
    hostnames: list[_Hostname] = Field([], max_length=16)
    rules: list[_RouteRule] = Field(min_length=1, max_length=16)


class _Route(_Strict):
    api_version: Literal["gateway.networking.k8s.io/v1"]
    kind: Literal["HTTPRoute"]
    metadata: _Metadata
    spec: _RouteSpec


_CUSTOM: Mapping[tuple[str, str], type[_Strict]] = {
    ("Gateway", "gateway.networking.k8s.io/v1"): _Gateway,
    ("HTTPRoute", "gateway.networking.k8s.io/v1"): _Route,
}


def _model_faults(model: type[_Strict], found: Mapping[str, Any]) -> Iterator[str]:
    try:
        model.model_validate(found)
    except ValidationError as problem:
        for error in problem.errors(include_url=False, include_input=False):
            yield f"{'.'.join(map(str, error['loc']))}: {error['msg']}"
