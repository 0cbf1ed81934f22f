"""What every block is made of: a strict, frozen model, and the field types that several blocks share.

A type here is a parser (text to value), its inverse (value to text) and its JSON Schema (for editors). Parsers raise
ValueError with what is allowed; faults.py adds file, line, field and what was found.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    PlainSerializer,
    WithJsonSchema,
)
from pydantic_core import CoreSchema, core_schema

from synapse_ops.spec.cron import CRON_FORM, TIME_ZONE_FORM, Cron, parse_cron, parse_time_zone
from synapse_ops.spec.secrets import REFERENCE_FORM, SecretRef, parse_secret
from synapse_ops.spec.units import (
    CORES_FORM,
    DURATION_FORM,
    RETENTION_FORM,
    SIZE_FORM,
    format_cores,
    format_duration,
    format_size,
    parse_cores,
    parse_duration,
    parse_size,
)

FORM = "x-allowed"  # in a JSON Schema: what a type allows, in words
REFERENCE = "x-reference"  # in a JSON Schema: the field takes a reference to a secret


class Block(BaseModel):
    """A part of the spec: unknown keys are refused, nothing is coerced, nothing changes after loading."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, arbitrary_types_allowed=True)


def _parse_positive(value: object, *, bare_unit: str, form: str) -> timedelta:
    duration = parse_duration(value, bare_unit=bare_unit)
    if duration <= timedelta(0):
        raise ValueError(f"{form}, more than 0")
    return duration


def _text_schema(form: str, *examples: Any, kinds: tuple[str, ...] = ("string",)) -> WithJsonSchema:
    kind: Any = kinds[0] if len(kinds) == 1 else list(kinds)
    return WithJsonSchema({"type": kind, FORM: form, "examples": list(examples)})


@dataclass(frozen=True)
class TextForm:
    """Text that matches all of `pattern`; `form` says in words what that is, `example` goes into the JSON Schema."""

    pattern: str
    form: str
    example: str = ""
    most_bytes: int = 0  # in UTF-8; 0 is no limit
    holds: Callable[[str], bool] | None = None  # what a pattern cannot say; may raise ValueError

    def parse(self, value: object) -> str:
        """Return the text; raises ValueError with the form."""
        if not isinstance(value, str) or re.fullmatch(self.pattern, value) is None:
            raise ValueError(self.form)
        if self.most_bytes and len(value.encode("utf-8")) > self.most_bytes:
            raise ValueError(self.form)
        if self.holds is not None and not self._holds(value, self.holds):
            raise ValueError(self.form)
        return value

    @staticmethod
    def _holds(value: str, holds: Callable[[str], bool]) -> bool:
        try:
            return holds(value)
        except ValueError:
            return False

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.parse, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        examples = {"examples": [self.example]} if self.example else {}
        return {"type": "string", "pattern": f"^(?:{self.pattern})$", FORM: self.form} | examples


def _parse_schedule_or_off(value: object) -> Cron | None:
    if value is None or value == "off":
        return None
    try:
        return parse_cron(value)
    except ValueError as fault:
        raise ValueError(f"{fault}; or off") from None


_duration_out = PlainSerializer(format_duration, return_type=str)

Duration = Annotated[  # more than 0; a bare number is seconds
    timedelta,
    BeforeValidator(partial(_parse_positive, bare_unit="s", form=DURATION_FORM)),
    _duration_out,
    _text_schema(DURATION_FORM, "30s", "5m", 60, kinds=("string", "number")),
]
DurationOrZero = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    _duration_out,
    _text_schema(DURATION_FORM, "0s", "30s", kinds=("string", "number")),
]
Retention = Annotated[  # more than 0; a bare number is days
    timedelta,
    BeforeValidator(partial(_parse_positive, bare_unit="d", form=RETENTION_FORM)),
    _duration_out,
    _text_schema(RETENTION_FORM, "30d", 7, kinds=("string", "number")),
]
Size = Annotated[  # bytes
    int,
    BeforeValidator(parse_size),
    PlainSerializer(format_size, return_type=str),
    _text_schema(SIZE_FORM, "4Gi", "1MiB", kinds=("string", "integer")),
]
Cores = Annotated[
    Decimal,
    BeforeValidator(parse_cores),
    PlainSerializer(format_cores, return_type=str),
    _text_schema(CORES_FORM, 2, "500m", kinds=("string", "number")),
]
Schedule = Annotated[
    Cron, BeforeValidator(parse_cron), PlainSerializer(str, return_type=str), _text_schema(CRON_FORM, "0 2 * * 0")
]
ScheduleOrOff = Annotated[  # None: off
    Cron | None,
    BeforeValidator(_parse_schedule_or_off),
    PlainSerializer(lambda value: "off" if value is None else str(value), return_type=str),
    _text_schema(f"{CRON_FORM}, or off", "0 4 * * 6", "off"),
]
TimeZone = Annotated[str, BeforeValidator(parse_time_zone), _text_schema(TIME_ZONE_FORM, "UTC", "Europe/Berlin")]
Secret = Annotated[
    SecretRef,
    BeforeValidator(parse_secret),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^(env|file|kubernetes):.+", FORM: REFERENCE_FORM, REFERENCE: True}),
]

Port = Annotated[int, Field(ge=1, le=65535)]
Count = Annotated[int, Field(ge=1)]
Ratio = Annotated[float, Field(gt=0, le=1)]
Percent = Annotated[int, Field(ge=1, le=100)]

_CONTROL = r"\x00-\x1f\x7f-\x9f\u2028\u2029"  # and what readers of lines take for the end of one
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DNS_NAME = rf"{_LABEL}(?:\.{_LABEL})*"
_IPV6 = r"[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}"


def is_host(text: str) -> bool:
    """Return whether what looks like a host or a socket's directory is one; a malformed address raises ValueError."""
    return ":" not in text or text.startswith("/") or ipaddress.ip_address(text).version == 6


def is_authority(text: str) -> bool:
    """Return whether host, host:port, [IPv6] or [IPv6]:port names a host and a port that there can be."""
    host, port = text, ""
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest.removeprefix(":") if rest else "1"
        ipaddress.IPv6Address(host)
    elif ":" in text:
        host, port = text.rsplit(":", 1)
    return not port or 1 <= int(port) <= 65535


def is_url(text: str) -> bool:
    """Return whether the host and the port of an http URL are ones that there can be."""
    return is_authority(text.split("//", 1)[1].split("/", 1)[0])


Host = Annotated[
    str,
    TextForm(
        rf"{_DNS_NAME}\.?|{_IPV6}",
        "a host name or an IP address, without port or scheme",
        "db.example.org",
        holds=is_host,
    ),
]
SocketHost = Annotated[
    str,
    TextForm(
        rf"{_DNS_NAME}\.?|{_IPV6}|/[^{_CONTROL}]+",
        "a host name, an IP address or the absolute directory of a socket, without port or scheme",
        "db.example.org",
        holds=is_host,
    ),
]
Node = Annotated[
    str,
    TextForm(
        r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?", "a node name: lower-case letters, digits, - and .", "db-primary"
    ),
]
Address = Annotated[
    str,
    TextForm(rf"(?:{_DNS_NAME}|\[{_IPV6}\]):[0-9]{{1,5}}", "host:port", "10.0.0.7:5432", holds=is_authority),
]
Name = Annotated[
    str,
    TextForm(
        r"[A-Za-z][A-Za-z0-9_.-]{0,62}", "a name: a letter, then letters, digits, _ . or -, at most 63", "service_down"
    ),
]
StackName = Annotated[
    str,
    TextForm(
        r"[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?",
        "lower-case letters, digits and -, starting with a letter, at most 63",
        "synapse",
    ),
]
DatabaseName = Annotated[
    str,
    TextForm(  # PostgreSQL cuts identifiers at 63 bytes
        rf"[^{_CONTROL}]{{1,63}}", "a name of 1 to 63 bytes without control characters", "synapse", most_bytes=63
    ),
]
Text = Annotated[str, TextForm(rf"[^{_CONTROL}]{{1,500}}", "text of 1 to 500 characters without control characters")]
AbsolutePath = Annotated[
    str,
    # Logstash's strings know no escapes; what follows a $ is a variable to nginx, Logstash and Filebeat, quoted or not
    TextForm(
        rf"/[^{_CONTROL}\\\"$]*",
        'an absolute path, starting with /, without \\, " or $',
        "/etc/ssl/certs/synapse.crt",
    ),
]
ImageName = Annotated[
    str,
    TextForm(
        r"[a-z0-9][A-Za-z0-9._:/-]{0,254}(?:@sha256:[0-9a-f]{64})?",
        "an image such as registry/name:tag or name@sha256:<64 hex digits>",
        "python:3.11-slim",
    ),
]
# A service of compose may have _ in its name. A path is what a URL may hold unescaped, and %; no fragment, which is
# never sent, and no @, after which the text before it reads as a password: write %40.
URL_PATH = r"/[A-Za-z0-9._~!$&'()*+,;=:%/?-]*"
AUTHORITY = rf"(?:[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*|\[{_IPV6}\])(?::[0-9]{{1,5}})?"
URL_BASE = rf"https?://{AUTHORITY}"
HttpUrl = Annotated[
    str,
    TextForm(
        rf"{URL_BASE}(?:{URL_PATH})?",
        "a URL that starts with http:// or https:// and holds no user or password",
        "http://localhost:8333",
        holds=is_url,
    ),
]


BUCKET_FORM = "s3://BUCKET/ or s3://BUCKET/PREFIX/, bucket names as S3 allows them, no empty, . or .. part"
NETWORK_FORM = "a network such as 10.0.0.0/8, 0.0.0.0/0 or 2001:db8::/32, without host bits, or one address"


def _parse_bucket_url(value: object) -> str:
    match = (
        re.fullmatch(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?", value) if isinstance(value, str) else None
    )
    if match is None:
        raise ValueError(BUCKET_FORM)
    parts = match[2].removesuffix("/").split("/") if match[2] else []
    if any(part in ("", ".", "..") or re.search(r"[\x00-\x20\x7f\\?#]", part) for part in parts):
        raise ValueError(BUCKET_FORM)
    return "/".join(["s3:/", match[1], *parts, ""])


BucketUrl = Annotated[  # always ends in /, so that joining a key is concatenation
    str,
    BeforeValidator(_parse_bucket_url),
    WithJsonSchema({"type": "string", "pattern": "^s3://", FORM: BUCKET_FORM, "examples": ["s3://backups/database/"]}),
]


def _parse_network(value: object) -> str:
    if not isinstance(value, str) or "%" in value:  # a zone such as fe80::1%eth0 means nothing on another host
        raise ValueError(NETWORK_FORM)
    try:
        return str(ipaddress.ip_network(value))
    except ValueError as fault:
        raise ValueError(NETWORK_FORM) from fault


Network = Annotated[str, BeforeValidator(_parse_network), _text_schema(NETWORK_FORM, "10.0.0.0/8", "0.0.0.0/0")]
